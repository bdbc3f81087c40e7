"""Files that are whole or not there: written in one step, locked, and checked by SHA-256.

What is read back later (checkpoint, manifest, results, packed images) has its SHA-256 in the file
SHA256SUMS beside it, in the format of `sha256sum`: `save` or `record` writes it, `load` or `check`
compares. What is only looked at (tables, figures) is written through `atomic`.
"""

import contextlib
import hashlib
import json
import math
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from common.errors import DISK_FULL, UserError
from common.job import say

SUMS = "SHA256SUMS"
WAIT_SECONDS = 1  # for a lock, before it is said


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an error.

    What a killed process leaves there, the next one that writes `path` replaces.
    """
    temporary = path.with_name(f".unfinished-{path.name}")
    try:
        temporary.unlink(missing_ok=True)  # it may be a link
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        reason = f"{path}: cannot be written ({error.strerror})"
        raise UserError(f"{reason}; free space or choose another folder") from None
    finally:
        temporary.unlink(missing_ok=True)


def save(path: Path, content: bytes | memoryview | str) -> str:
    """Write a file that will be read back, in one step. Returns its hexadecimal SHA-256.

    A killed process or a full disk leaves the file as it was before. Of processes that save into
    one folder at once, each has to hold the folder's lock.
    """
    written = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    digest = hashlib.sha256(written).hexdigest()
    with atomic(path) as temporary:
        temporary.write_bytes(written)
        # The file of before stands until it is replaced, and may stay if we are killed here.
        _write_sums(path, {digest, *_sums_of(path)})
    _write_sums(path, {digest})
    return digest


def load(path: Path) -> bytes:
    """The content of a file that `save` wrote; a UserError where it is not what was saved."""
    content = path.read_bytes()
    _compare(path, hashlib.sha256(content).hexdigest())
    return content


def record(path: Path) -> str:
    """Take the SHA-256 of a file that was written by other means into SHA256SUMS; returns it."""
    digest = sha256_of(path)
    _write_sums(path, {digest})
    return digest


def check(path: Path) -> str:
    """Compare a file, however large, with SHA256SUMS as `load` does. Returns its SHA-256."""
    digest = sha256_of(path)
    _compare(path, digest)
    return digest


def _compare(path: Path, digest: str) -> None:
    known = _sums_of(path)
    if digest not in known:
        why = f"damaged or changed: its SHA-256 is not that in {SUMS} beside it"
        if not known:
            why = f"not listed in {SUMS} beside it: of an earlier version, or copied alone"
        name, folder = shlex.quote(path.name), shlex.quote(str(path.parent))
        accept = f"to take it as it is: cd {folder}; sha256sum -- {name} >> {SUMS}"
        raise UserError(f"{path}: {why} ({accept})")


def _read_sums(folder: Path) -> list[tuple[str, str]]:
    """The (name, SHA-256) of each line: a name is there twice while its file is replaced."""
    path = folder / SUMS
    lines = path.read_text("utf-8", "replace").splitlines() if path.exists() else []
    return [(line[66:], line[:64]) for line in lines if len(line) > 66]


def _sums_of(path: Path) -> set[str]:
    return {digest for name, digest in _read_sums(path.parent) if name == path.name}


def _write_sums(path: Path, digests: set[str]) -> None:
    """List a file by these SHA-256s alone, and leave out files that are no longer there."""
    folder, sums = path.parent, {(path.name, digest) for digest in digests}
    sums |= {(n, d) for n, d in _read_sums(folder) if n != path.name and (folder / n).exists()}
    lines = [f"{digest}  {name}\n" for name, digest in sorted(sums)]
    with atomic(folder / SUMS) as temporary:
        temporary.write_text("".join(lines), "utf-8")


def save_json(path: Path, value) -> None:
    """Save a nest of dicts and lists as JSON; infinities and NaN become null."""
    save(path, json.dumps(finite(value), indent=1, allow_nan=False) + "\n")


def load_json(path: Path):
    """The nest of dicts and lists of a file that `save_json` wrote, checked as by `load`."""
    try:
        return json.loads(load(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None


def finite(value):
    """The same nest of dicts and lists as plain JSON values, infinities and NaN as None."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # an array of NumPy, or a tensor
        return finite(value.tolist())
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def digest_of(value) -> str:
    """16 hexadecimal digits that name a nest of plain values, for a file's name."""
    written = json.dumps(finite(value), sort_keys=True)
    return hashlib.sha256(written.encode()).hexdigest()[:16]


def sha256_of(path: Path) -> str:
    """The hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(folder: Path, flag: str = "--out") -> Path:
    """A folder, made where it is missing and tried by writing; `flag` is the one that chose it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        reason = f"cannot write to {folder}: {error.strerror}"
        raise UserError(f"{reason}; choose another {flag}") from None


@contextlib.contextmanager
def locked(folder: Path, doing: str, wait: bool = True) -> Iterator[None]:
    """Hold a folder's lock: of several processes one goes on, the others say so and wait.

    `doing` ends the line that they say, such as "packs images".
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=WAIT_SECONDS)
    except Timeout:
        if not wait:
            busy = f"another process {doing} in {folder}"
            raise UserError(f"{busy}; wait for it, or choose another folder") from None
        say(f"waiting for another process that {doing} in {folder}", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def cached_folder(cache: Path, name: str, fill: Callable[[Path], None]) -> Path:
    """The folder `name` in a cache, which `fill(folder)` writes where it is not there yet.

    It appears in one step, so one that a killed run left unfinished is never opened; such are
    removed. Who may read the cache may read the folder.
    """
    folder = make_folder(cache, flag="--cache") / name
    with locked(cache, "fills the cache"):
        if folder.exists():
            return folder
        partial = cache / ".unfinished-folder"
        shutil.rmtree(partial, ignore_errors=True)  # we hold the lock: nobody writes there any more
        partial.mkdir()
        try:
            fill(partial)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder
