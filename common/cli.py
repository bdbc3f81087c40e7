"""The command line that all problems share: the parser, argument types, titles and durations."""

import argparse
import difflib
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from tabulate import tabulate

from common.job import is_first, printable


class Parser(argparse.ArgumentParser):
    """A parser that reports errors in one line, suggests the nearest flag and shows defaults."""

    def __init__(self, doc: str | None):
        as_written = argparse.RawDescriptionHelpFormatter
        super().__init__(description=doc, formatter_class=as_written, allow_abbrev=False)

    def add(self, *names: str, **options) -> None:
        """Add an argument as argparse does; its help line ends with the default."""
        default = options.get("default")
        if default is not None:
            as_typed = " ".join(map(str, default)) if isinstance(default, tuple) else "%(default)s"
            options["help"] += f" (default: {as_typed})"
        self.add_argument(*names, **options)

    def parse_args(self, argv: list[str] | None = None) -> argparse.Namespace:  # type: ignore[override]
        """Parse the command line; the error for an unknown flag suggests the nearest known one."""
        args, unknown = self.parse_known_intermixed_args(argv)
        if unknown:
            flag = unknown[0].split("=")[0]
            near = difflib.get_close_matches(flag, self._option_string_actions, n=1, cutoff=0.75)
            hint = f"; did you mean {near[0]}?" if near else ";"
            self.error(f"unknown argument {unknown[0]}{hint} --help lists all flags")
        return args

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {printable(message)}\n" if is_first() else None)


class ProblemParser(Parser):
    """The command line of a problem: its parts and the flags that all problems share."""

    def __init__(self, doc: str | None, parts: Mapping[str, Callable]):
        super().__init__(doc)
        self.parts = parts
        meaning = f"parts to run: {', '.join(parts)} (default: all)"
        self.add_argument("parts", nargs="*", metavar="PART", help=meaning)
        self.add_argument("--list", action="store_true", help="list the parts and exit")
        self.add("--out", type=path, default=Path("outputs"), help="folder for the results")
        self.add("--seed", type=seed, default=0, help="random seed, 0 to 2^63 - 1")
        devices = ("auto", "cpu", "cuda", "mps")
        meaning = "auto: cuda if available, else cpu; mps: a Mac's GPU, never tested"
        self.add("--device", choices=devices, default="auto", help=meaning)
        self.add("--threads", type=positive, help="CPU threads (default: one per core)")

    def parse_args(self, argv: list[str] | None = None) -> argparse.Namespace:  # type: ignore[override]
        """Parse the command line, and put the parts in order; `--list` prints them and exits."""
        args = super().parse_args(argv)
        if args.list:
            titles = [(number, title(part)) for number, part in self.parts.items()]
            print(tabulate(titles, tablefmt="plain"))
            self.exit(0)
        for part in args.parts:
            if part not in self.parts:
                self.error(f"no part {part}; the parts are {', '.join(self.parts)}")
        args.parts = [part for part in self.parts if part in args.parts or not args.parts]
        return args


def title(part: Callable) -> str:
    """A part's title: the first line of its docstring, without the full stop."""
    return (part.__doc__ or part.__name__).splitlines()[0].rstrip(".")


def duration(seconds: float) -> str:
    """Seconds in words: "44 s", "25 min" or "1.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def path(text: str) -> Path:
    """The argparse type of paths: a leading ~ is the user's home, as in a shell."""
    if not text:  # such as an unset "$DIR"
        raise argparse.ArgumentTypeError("'' is not the path of a file or folder")
    return Path(text).expanduser()


def word_or_path(text: str) -> str:
    """The argparse type of a keyword or a path, returned as a string; ./word means a path."""
    path(text)
    return os.path.expanduser(text)


def _numbers(kind: type, allowed: Callable, wanted: str) -> Callable:
    """The argparse type of numbers of `kind` (int or float) for which `allowed` holds."""

    def convert(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan  # lies in no range
        if not allowed(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
        return value

    return convert


def at_least(minimum: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    """The argparse type of integers from `minimum` to `most`."""
    wanted = f"a whole number from {minimum} to {most:,}"
    return _numbers(int, lambda value: minimum <= value <= most, wanted)


def up_to(most: float) -> Callable[[str], float]:
    """The argparse type of numbers above 0 and not above `most`."""
    return _numbers(float, lambda value: 0 < value <= most, f"a number above 0, at most {most:g}")


whole, positive, seed = at_least(0), at_least(1), at_least(0, 2**63 - 1)
fraction = _numbers(float, lambda value: 0 <= value <= 1, "a number from 0 to 1")
non_negative = _numbers(float, lambda value: 0 <= value < math.inf, "a finite number of 0 or more")
