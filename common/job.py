"""Which process of a job this is, by torchrun's variables, and what one says for all of them."""

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
    """Whether this is the process that speaks, reports and saves for all."""
    return rank() == 0


def printable(text: str) -> str:
    """Text that can be shown anywhere: what would move or hide other text is escaped."""
    return UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


prefix = ""  # of what this process says, where it is one of several that train side by side


def say(*lines: str, file=None) -> None:
    """Print lines at once, on the first process alone."""
    if is_first():
        print("\n".join(prefix + line for line in lines), file=file, flush=True)


def progress(*args, **options) -> tqdm:
    """A progress bar on a terminal, of the first process alone."""
    return tqdm(*args, disable=None if is_first() and not prefix else True, **options)
