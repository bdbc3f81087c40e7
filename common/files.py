"""Files that are whole or not there: written in one step, locked, and told apart by SHA-256.

What is read back later (checkpoint, manifest, results) is written by `save` and opened by `load`,
and a cache by `cached_folder`, so that there is one place to check it. What is only looked at
(tables, figures) is written through `atomic`.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from filelock import FileLock

from common.errors import DISK_FULL, UserError


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an error."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save(path: Path, content: bytes | memoryview | str) -> str:
    """Write a file that will be read back, in one step. Returns its hexadecimal SHA-256.

    A killed process or a full disk leaves the file as it was before.

    Raises:
        UserError: the disk is full, which the system says without the file's name.
    """
    written = content.encode() if isinstance(content, str) else content
    with atomic(path) as temporary:
        try:
            temporary.write_bytes(written)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise UserError(f"{path}: cannot be written ({error.strerror}); free space") from None
    return hashlib.sha256(written).hexdigest()


def load(path: Path) -> bytes:
    """The content of a file that `save` wrote.

    Raises:
        OSError: it is missing or can't be read.
    """
    return path.read_bytes()


def save_json(path: Path, value) -> None:
    """Save a nest of dicts and lists as JSON; infinities and NaN become null."""
    save(path, json.dumps(finite(value), indent=1, allow_nan=False) + "\n")


def finite(value):
    """The same nest of dicts and lists as plain JSON values, infinities and NaN as None."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # an array of NumPy, or a tensor
        return finite(value.tolist())
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sha256_of(path: Path) -> str:
    """The hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(folder: Path, flag: str = "--out") -> Path:
    """A folder, made where it is missing and tried by writing. Returns it.

    Raises:
        UserError: it can't be written to; the message names the flag that chose it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror}; choose another {flag}"
        ) from None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock: of several processes one goes on, the others wait."""
    with FileLock(folder / ".lock"):
        yield


def cached_folder(cache: Path, name: str, fill: Callable[[Path], None]) -> Path:
    """The folder `name` in a cache, which `fill(folder)` writes where it is not there yet.

    It appears in one step, so one that a killed run left unfinished is never opened; such are
    removed, by their names `.unfinished-folder-*`.

    Raises:
        UserError: the cache can't be written to.
    """
    folder = make_folder(cache, flag="--cache") / name
    with locked(cache):
        if folder.exists():
            return folder
        for leftover in cache.glob(".unfinished-folder-*"):
            shutil.rmtree(leftover)  # we hold the lock: nobody writes there any more
        partial = Path(tempfile.mkdtemp(prefix=".unfinished-folder-", dir=cache))
        try:
            fill(partial)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder
