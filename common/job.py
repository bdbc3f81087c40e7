"""This process's rank in its torchrun job, and output by the job's first process alone."""

import os
import re

from tqdm import tqdm

# Control characters, line and paragraph separators, marks of writing direction, lone surrogates.
UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def rank() -> int:
    """The number of this process in its job, from 0."""
    return int(os.environ.get("RANK", 0))


def size() -> int:
    """How many processes this job has."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first() -> bool:
    """Whether this is the process that prints, reports and saves for the whole job."""
    return rank() == 0


def printable(text: str) -> str:
    """Escape the characters of a text that would move or hide other text when shown."""
    return UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


prefix = ""  # of each printed line, where several processes train side by side


def say(*lines: str, file=None) -> None:
    """Print lines without delay, on the first process alone."""
    if is_first():
        print("\n".join(prefix + line for line in lines), file=file, flush=True)


def progress(*args, **options) -> tqdm:
    """A progress bar, which only the first process shows, and only on a terminal."""
    return tqdm(*args, disable=None if is_first() and not prefix else True, **options)
