"""Which process of a job this is, and what one process says for all of them.

torchrun starts the processes of a job and tells each its place by RANK and WORLD_SIZE; without both
there is one process.
"""

import multiprocessing
import os
import threading
import unicodedata

from tqdm import tqdm

BIDI_MARKS = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def rank() -> int:
    """The number of this process in its job, from 0."""
    return int(os.environ["RANK"]) if _is_in_job() else 0


def size() -> int:
    """The number of processes of this job."""
    return int(os.environ["WORLD_SIZE"]) if _is_in_job() else 1


def is_first() -> bool:
    """Whether this is the process that speaks, reports and saves for all."""
    return rank() == 0


def _is_in_job() -> bool:
    return bool(os.environ.get("RANK") and os.environ.get("WORLD_SIZE"))


def end_with_parent() -> None:
    """End this process as soon as the one that has started it is gone, however that ended."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def printable(text: str) -> str:
    """Text that can be shown anywhere: control characters, bidi marks, lone surrogates escaped."""
    return "".join(_escaped(char) if _is_unsafe(char) else char for char in text)


def _is_unsafe(char: str) -> bool:
    return char in BIDI_MARKS or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()


prefix = ""  # of what this process says, where it is one of several that train side by side


def say(*lines: str, file=None) -> None:
    """Print lines at once, on the first process alone."""
    if is_first():
        print("\n".join(prefix + line for line in lines), file=file, flush=True)


def progress(*args, **options) -> tqdm:
    """A progress bar on a terminal, of the first process alone."""
    return tqdm(*args, disable=None if is_first() and not prefix else True, **options)
