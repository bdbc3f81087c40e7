"""Which process of a job this is, and what one process says for all of them.

torchrun starts the processes of a job and tells each its place by environment variables; without
all of these there is one process.
"""

import multiprocessing
import os
import re
import threading
import unicodedata
from collections.abc import Callable

from tqdm import tqdm

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
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
    return all(os.environ.get(name) for name in VARIABLES) and not fault()


def fault() -> str:
    """What is wrong with the place that the environment tells this process; empty if nothing."""
    values = {name: os.environ.get(name, "") for name in VARIABLES}
    if not all(values.values()):
        return ""
    numbers = [values[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")]
    if all(re.fullmatch("[0-9]{1,6}", number) for number in numbers):
        number, count, local, port = map(int, numbers)
        if number < count and local <= number and 0 < port < 2**16:
            return ""
    told = " ".join(f"{name}={value}" for name, value in values.items())
    return f"{told}: no place of a process in a job; unset them, or start with torchrun"


def partly_set() -> str:
    """The variables of a job that are set, where others of them are not; else empty."""
    there = [name for name in VARIABLES if name in os.environ]
    return "" if all(os.environ.get(name) for name in VARIABLES) else ", ".join(there)


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


def _tells_before_joining(otherwise: bool = False) -> bool:  # noqa: ARG001
    return is_first() or "TORCHELASTIC_RUN_ID" not in os.environ


joined = False  # whether this process has met the others of its job
# Whether this process tells an error that others may have too; `otherwise` where nobody can say.
# A job that has joined agrees on the first that asks, since an error may be of one process alone.
tells_error: Callable[..., bool] = _tells_before_joining
