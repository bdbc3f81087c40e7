"""Files that are either complete or absent: written in one step, locked, checked by SHA-256.

A file that is read back later (checkpoint, manifest, results, packed images) has its SHA-256 in
SHA256SUMS beside it, in the format of `sha256sum`: `save` and `record` enter it, `load` and `check`
compare it. Files that are only looked at (tables, figures) are written through `atomic`.
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
from typing import BinaryIO

from filelock import FileLock, Timeout

from common.errors import DISK_FULL, UserError
from common.job import say

SUMS = "SHA256SUMS"
WAIT_SECONDS = 1  # for a lock, before a line says so


@contextlib.contextmanager
def full_disk_named(place: Path) -> Iterator[None]:
    """Turn a full-disk error in the block into a UserError that names `place`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # The RuntimeError is PyTorch's: it hides the system's error, or a stop signal.
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, KeyboardInterrupt):
            raise cause from None
        if getattr(cause, "errno", None) not in DISK_FULL:
            raise
        reason = f"{place}: cannot be written ({cause.strerror})"
        raise UserError(f"{reason}; free space or choose another folder") from None


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path, which replaces `path` when the block ends without an error."""
    temporary = path.with_name(f".unfinished-{path.name}")
    try:
        with full_disk_named(path):
            temporary.unlink(missing_ok=True)  # it may be a link
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save(path: Path, content: bytes | str | Callable[[BinaryIO], object]) -> str:
    """Write a file that will be read back, in one step. Returns its hexadecimal SHA-256.

    `content` may be a function that writes into the open file.
    If the process is killed or the disk is full, the previous file stays. Processes that save into
    one folder at the same time must each hold the folder's lock (`locked`).
    """
    content = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with atomic(path) as temporary:
        with temporary.open("wb") as file:
            content(file) if callable(content) else file.write(content)
        digest = sha256_of(temporary)
        # Both sums are listed until the file is replaced: a kill here leaves the previous file.
        _enter(path, {digest, *_sums_of(path)})
    _enter(path, {digest})
    return digest


def load(path: Path) -> bytes:
    """Read a file that `save` wrote; raises UserError if its content has changed since."""
    content = path.read_bytes()
    _compare(path, hashlib.sha256(content).hexdigest())
    return content


def record(path: Path) -> str:
    """Enter a file that was written by other means into SHA256SUMS; returns its SHA-256."""
    digest = sha256_of(path)
    _enter(path, {digest})
    return digest


def check(path: Path) -> str:
    """Compare a file of any size with SHA256SUMS; returns its SHA-256."""
    digest = sha256_of(path)
    _compare(path, digest)
    return digest


def _compare(path: Path, digest: str) -> None:
    known = _sums_of(path)
    if digest not in known:
        why = f"damaged or changed: its SHA-256 differs from that in {SUMS} beside it"
        if not known:
            why = f"not listed in {SUMS} beside it: from an earlier version or copied alone"
        name, folder = shlex.quote(path.name), shlex.quote(str(path.parent))
        accept = f"to accept it as it is: cd {folder}; sha256sum -- {name} >> {SUMS}"
        raise UserError(f"{path}: {why} ({accept})")


def _lines(folder: Path) -> list[str]:
    path = folder / SUMS
    lines = path.read_text("utf-8", "replace").splitlines() if path.exists() else []
    return [line for line in lines if line[66:]]  # 64 digits, two spaces, a file's name


def _sums_of(path: Path) -> set[str]:
    return {line[:64] for line in _lines(path.parent) if line[66:] == path.name}


def _enter(path: Path, digests: set[str]) -> None:
    """List exactly these SHA-256s for a file, and drop files that no longer exist."""
    folder = path.parent
    others = [line for line in _lines(folder) if (folder / line[66:]).exists()]
    lines = {line for line in others if line[66:] != path.name}
    lines |= {f"{digest}  {path.name}" for digest in digests}
    with atomic(folder / SUMS) as temporary:
        in_order = sorted(lines, key=lambda line: (line[66:], line))
        temporary.write_text("".join(f"{line}\n" for line in in_order), "utf-8")


def save_json(path: Path, value) -> None:
    """Save nested dicts and lists as JSON; infinities and NaN become null."""
    save(path, json.dumps(finite(value), indent=1, allow_nan=False) + "\n")


def load_json(path: Path):
    """Read the nested dicts and lists that `save_json` wrote, checked as by `load`."""
    return json.loads(load(path))


def finite(value):
    """Nested dicts and lists as plain JSON values, with None for infinities and NaN."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # an array of NumPy, or a tensor
        return finite(value.tolist())
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def digest_of(value) -> str:
    """16 hexadecimal digits that identify nested plain values, for a file's name."""
    written = json.dumps(finite(value), sort_keys=True)
    return hashlib.sha256(written.encode()).hexdigest()[:16]


def sha256_of(path: Path) -> str:
    """The hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(folder: Path, flag: str = "--out") -> Path:
    """Make a folder if it is missing and check that it is writable; `flag` is its option."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        reason = f"cannot write to {folder}: {error.strerror}"
        raise UserError(f"{reason}; choose another {flag}") from None


@contextlib.contextmanager
def locked(folder: Path, doing: str, wait: bool = True) -> Iterator[None]:
    """Hold a folder's lock, so that only one process at a time is `doing` something there."""
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
    """The folder `name` in a cache; `fill(folder)` writes its content if it is missing.

    It appears in one step, so a folder that a killed run left unfinished is never opened.
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
