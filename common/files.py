"""Files that are whole or not there: written in one step, locked, and checked by SHA-256.

What is read back later (checkpoint, manifest, results, packed images) has its SHA-256 in the file
SHA256SUMS beside it, as `sha256sum` writes it: `save` or `record` enters it, `load` or `check`
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
def full_disk_named(place: Path) -> Iterator[None]:
    """Turn a full disk, while something is written, into a UserError that names the place."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        reason = f"{place}: cannot be written ({error.strerror})"
        raise UserError(f"{reason}; free space or choose another folder") from None


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an error."""
    temporary = path.with_name(f".unfinished-{path.name}")
    try:
        with full_disk_named(path):
            temporary.unlink(missing_ok=True)  # it may be a link
            yield temporary
            os.replace(temporary, path)
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
        # Until the file is replaced that of before stands, and may stay if we are killed here.
        _enter(path, {digest, *_sums_of(path)})
    _enter(path, {digest})
    return digest


def load(path: Path) -> bytes:
    """The content of a file that `save` wrote; a UserError where it is not what was saved."""
    content = path.read_bytes()
    _compare(path, hashlib.sha256(content).hexdigest())
    return content


def record(path: Path) -> str:
    """Enter the SHA-256 of a file that was written by other means; returns it."""
    digest = sha256_of(path)
    _enter(path, {digest})
    return digest


def check(path: Path) -> str:
    """Compare a file, however large, with SHA256SUMS. Returns its SHA-256."""
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


def _lines(folder: Path) -> list[str]:
    path = folder / SUMS
    lines = path.read_text("utf-8", "replace").splitlines() if path.exists() else []
    return [line for line in lines if line[66:]]  # 64 digits, two spaces, a file's name


def _sums_of(path: Path) -> set[str]:
    return {line[:64] for line in _lines(path.parent) if line[66:] == path.name}


def _enter(path: Path, digests: set[str]) -> None:
    """List a file by these SHA-256s alone, and leave out files that are no longer there."""
    folder = path.parent
    others = [line for line in _lines(folder) if (folder / line[66:]).exists()]
    lines = {line for line in others if line[66:] != path.name}
    lines |= {f"{digest}  {path.name}" for digest in digests}
    with atomic(folder / SUMS) as temporary:
        in_order = sorted(lines, key=lambda line: (line[66:], line))
        temporary.write_text("".join(f"{line}\n" for line in in_order), "utf-8")


def save_json(path: Path, value) -> None:
    """Save a nest of dicts and lists as JSON; infinities and NaN become null."""
    save(path, json.dumps(finite(value), indent=1, allow_nan=False) + "\n")


def load_json(path: Path):
    """The nest of dicts and lists of a file that `save_json` wrote, checked as by `load`."""
    return json.loads(load(path))


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
    """Make a folder where it is missing, and try to write in it; `flag` is what chose it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        reason = f"cannot write to {folder}: {error.strerror}"
        raise UserError(f"{reason}; choose another {flag}") from None


@contextlib.contextmanager
def locked(folder: Path, doing: str, wait: bool = True) -> Iterator[None]:
    """Hold a folder's lock: of processes of which each is `doing` something, one goes on."""
    lock = FileLock(folder / ".lock")
    try:
        held = lock.acquire(timeout=WAIT_SECONDS)
    except Timeout:
        busy = f"another process {doing} in {folder}"
        if not wait:
            raise UserError(f"{busy}; wait for it, or choose another folder") from None
        say(f"waiting: {busy}", file=sys.stderr)
        held = lock.acquire()
    with held:
        yield


def cached_folder(cache: Path, name: str, fill: Callable[[Path], None]) -> Path:
    """The folder `name` in a cache, which `fill(folder)` writes where it is not there yet.

    It appears in one step, so one that a killed run left unfinished is never opened.
    """
    folder = make_folder(cache, flag="--cache") / name
    with locked(cache, "fills the cache"):
        if folder.exists():
            return folder
        partial = cache / ".unfinished-folder"
        shutil.rmtree(partial, ignore_errors=True)  # we hold the lock: nobody writes there any more
        partial.mkdir()
        try:
            with full_disk_named(cache):
                fill(partial)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder
