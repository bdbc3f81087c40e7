"""What the command lines of all problems share: flags, parts, one-line errors, results files."""

import argparse
import contextlib
import difflib
import errno
import io
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from filelock import FileLock
from tabulate import tabulate
from tqdm import tqdm

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ROOT = Path(__file__).resolve().parent.parent


class UserError(Exception):
    """Something the user can mend. The message is one line: what, where, and what to type next."""


class Parser(argparse.ArgumentParser):
    """argparse with errors on one line, the nearest flag suggested, and defaults in the help."""

    def __init__(self, doc: str | None):
        super().__init__(
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def add(self, *names: str, **options) -> None:
        """`add_argument`, with the default told at the end of the help line."""
        default = options.get("default")
        if default is not None:
            shown = " ".join(map(str, default)) if isinstance(default, (list, tuple)) else default
            options["help"] += f" (default: {shown})"
        self.add_argument(*names, **options)

    def parse_args(self, argv: list[str] | None = None) -> argparse.Namespace:  # type: ignore[override]
        """Parse; a wrong flag exits 2."""
        args, unknown = self.parse_known_intermixed_args(argv)
        if unknown:
            flag = unknown[0].split("=")[0]
            near = difflib.get_close_matches(flag, self._option_string_actions, n=1, cutoff=0.75)
            hint = f", did you mean {near[0]}?" if near else ""
            self.error(f"unknown argument {unknown[0]}{hint}; --help lists them")
        return args

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message}\n")


class ProblemParser(Parser):
    """The command line of a problem: its parts and the flags that all problems share."""

    def __init__(self, doc: str | None, parts: Mapping[str, Callable]):
        super().__init__(doc)
        self.parts = parts
        self.add_argument(
            "parts",
            nargs="*",
            metavar="PART",
            help=f"parts to run: {', '.join(parts)} (default: all)",
        )
        self.add_argument("--list", action="store_true", help="name the parts and stop")
        self.add("--out", type=Path, default=Path("outputs"), help="folder for the results")
        self.add("--seed", type=seed, default=0, help="seed of all randomness, below 2^63")
        self.add(
            "--device",
            choices=("auto", "cpu", "cuda"),
            default="auto",
            help="auto: cuda where there is one",
        )

    def parse_args(self, argv: list[str] | None = None) -> argparse.Namespace:  # type: ignore[override]
        """Parse; `--list` prints the parts and exits 0; a wrong flag or part exits 2."""
        args = super().parse_args(argv)
        if args.list:
            print(
                tabulate(
                    [(number, title(part)) for number, part in self.parts.items()], tablefmt="plain"
                )
            )
            self.exit(0)
        for part in args.parts:
            if part not in self.parts:
                self.error(f"no part {part}; the parts are {', '.join(self.parts)}")
        args.parts = [part for part in self.parts if part in args.parts or not args.parts]
        return args


def title(part: Callable) -> str:
    """A part's title: the first line of its docstring, without the full stop."""
    return (part.__doc__ or part.__name__).splitlines()[0].rstrip(".")


def whole(text: str) -> int:
    """argparse type: an integer of 0 or more."""
    return _number(text, int, lambda value: value >= 0, "a whole number of 0 or more")


def positive(text: str) -> int:
    """argparse type: an integer of 1 or more."""
    return _number(text, int, lambda value: value >= 1, "a whole number of 1 or more")


def seed(text: str) -> int:
    """argparse type: an integer that every generator takes as a seed."""
    return _number(text, int, lambda value: 0 <= value < 2**63, "a whole number from 0 to 2^63 - 1")


def at_least(minimum: int) -> Callable[[str], int]:
    """argparse type: an integer of `minimum` or more."""
    wanted = f"a whole number of {minimum} or more"
    return lambda text: _number(text, int, lambda value: value >= minimum, wanted)


def non_negative(text: str) -> float:
    """argparse type: a finite number of 0 or more."""
    return _number(text, float, lambda value: 0 <= value < math.inf, "a finite number of 0 or more")


def share(text: str) -> float:
    """argparse type: a number from 0 to 1."""
    return _number(text, float, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def _number(text: str, kind: type, allowed: Callable, wanted: str):
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not allowed(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
    return value


def pick_device(name: str) -> torch.device:
    """The device of `--device`.

    Raises:
        UserError: cuda was asked for and torch sees none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; try --device cpu")
    return torch.device(name)


def rank() -> int:
    """Number of this process in its job, from 0: always 0 without torchrun."""
    return int(os.environ.get("RANK", 0))


def progress(*args, **options) -> tqdm:
    """A progress bar on a terminal, of the first process of a job."""
    return tqdm(*args, disable=None if rank() == 0 else True, **options)


def guard(main: Callable[[], None]) -> int:
    """Run `main`; a mistake of the user's ends in one line on stderr. Returns the exit code."""
    script = Path(sys.argv[0]).name
    try:
        if rank() > 0:
            sys.stdout = io.StringIO()  # one process of a job speaks
        main()
    except UserError as error:
        # Before the processes of a job have joined, all of them meet the same mistake.
        if rank() == 0 or torch.distributed.is_initialized():
            print(f"{script}: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno not in (*DISK_FULL, errno.EACCES, errno.EROFS):
            raise
        remedy = "free space" if error.errno in DISK_FULL else "see to its permissions"
        print(f"{script}: error: {error}; {remedy} or choose another place", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        kept = str(stop) or "results of finished parts are kept"
        print(f"{script}: stopped; {kept}", file=sys.stderr)
        return 130
    return 0


def run_parts(
    parts: Mapping[str, Callable[..., dict]],
    args: argparse.Namespace,
    problem: str,
    make_experiment: Callable,
) -> None:
    """Run `args.parts` in order; store each part's dict as soon as it is there.

    `make_experiment(args)` is handed to every part; its `provenance()` (data, weights, device as
    strings) is stored beside the part's own keys.
    """
    results = Results(args.out / problem)
    experiment = make_experiment(args)
    for number in args.parts:
        print(f"\n== {number} {title(parts[number])}")
        start, began_at = time.perf_counter(), time.time()
        found = parts[number](experiment, results.folder)
        seconds = time.perf_counter() - start
        _remove_older(results.folder, f"{number}_*", began_at)
        results.store(
            number, {**found, **provenance(args), **experiment.provenance(), "seconds": seconds}
        )
        print(f"-> {results.path} [{number}] in {seconds:.1f} s")


def _remove_older(folder: Path, pattern: str, time_seconds: float) -> None:
    """Drop files of an earlier run that this one did not replace: they belong to other flags."""
    if rank() == 0:
        for path in folder.glob(pattern):
            if path.is_file() and path.stat().st_mtime < time_seconds - 1:
                path.unlink()


def provenance(args: argparse.Namespace) -> dict:
    """What is needed to make a result again: the command, the seed and the commit."""
    return {
        "command": shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "seed": args.seed,
        "threads": torch.get_num_threads(),
        "git_commit": git_commit(),
    }


def git_commit() -> str | None:
    """Commit of this checkout, with `+changes` where tracked files differ; None outside git.

    Results do not count: a run that replaces published ones changes them itself.
    """

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        code = ("--untracked-files=no", "--", ".", ":(exclude)outputs")
        return commit + ("+changes" if git("status", "--porcelain", *code) else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def environment() -> dict:
    """Versions and hardware of this run."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def make_folder(folder: Path, flag: str = "--out") -> Path:
    """The folder, made where it is missing and tried by writing.

    Raises:
        UserError: it can't be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror}; choose another {flag}"
        ) from None


def write_json(path: Path, value) -> None:
    """Write a nest of dicts and lists in one step; infinities and NaN become null."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(finite(value), indent=1, allow_nan=False) + "\n")


class Results:
    """`results.json` of one problem: {"environment": {...}, "parts": {"1.1": {...}}}.

    Raises:
        UserError: the folder can't be written, or an existing file is not such a results file.
    """

    def __init__(self, folder: Path):
        self.folder = make_folder(folder)
        self.path = folder / "results.json"
        self._read()

    def _read(self) -> dict:
        if not self.path.exists():
            return {"environment": {}, "parts": {}}
        try:
            stored = json.loads(self.path.read_text())
            return {"environment": {}, "parts": dict(stored["parts"])}
        except (ValueError, KeyError, TypeError, OSError):
            raise UserError(
                f"{self.path} is not a results file of this project; move it away and run again"
            ) from None

    def store(self, part: str, result: dict) -> None:
        """Replace one part's result and leave the others, also when two runs end at once."""
        with FileLock(self.folder / ".lock"):
            stored = self._read()
            stored["environment"] = environment()
            stored["parts"][part] = result
            stored["parts"] = dict(sorted(stored["parts"].items()))
            write_json(self.path, stored)


def finite(value):
    """The same nest of dicts and lists as plain JSON values, infinities and NaN as null."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an error.

    Of the processes of a job the first alone writes files.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        if rank() == 0:
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def aligned(headers: list[str], rows: list[list[str | None]]) -> str:
    """An aligned text table of cells as they shall appear; None is shown as "-"."""
    align = ["left"] + ["right"] * (len(headers) - 1)
    return tabulate(rows, headers, missingval="-", disable_numparse=True, colalign=align)


def show_table(path: Path, caption: str, headers: list[str], rows: list[list[str | None]]) -> None:
    """Print an aligned table under its caption, and keep it as text in `path`."""
    show_text(path, f"{caption}\n{aligned(headers, rows)}\n")


def show_text(path: Path, text: str) -> None:
    """Print a text and keep it in `path`."""
    print(text)
    with atomic(path) as temporary:
        temporary.write_text(text)
