"""Which process of a job this is, and what one process says for all of them.

torchrun starts the processes of a job and tells each its place by environment variables; without it
there is one process.
"""

import os

from tqdm import tqdm


def rank() -> int:
    """The number of this process in its job, from 0."""
    return int(os.environ.get("RANK", 0))


def size() -> int:
    """The number of processes of this job."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first() -> bool:
    """Whether this is the process that speaks, reports and saves for all."""
    return rank() == 0


def say(*lines: str, file=None) -> None:
    """Print lines at once, on the first process alone."""
    if is_first():
        print(*lines, sep="\n", file=file, flush=True)


def progress(*args, **options) -> tqdm:
    """A progress bar on a terminal, of the first process alone."""
    return tqdm(*args, disable=None if is_first() else True, **options)
