"""The commands that make outputs/published, except for those that take only seconds.

Missing results are made in the list's order; a stopped run goes on. A result counts as made if
results.json has it from the same flags.

    python -m benchmarks.published                         what is there, what is missing, how long
    python -m benchmarks.published --run                   make what is missing
    python -m benchmarks.published 2.2 2.3 --run --minutes 60     two of them, in an hour at most
"""

import argparse
import itertools
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from common import cli
from common.errors import UserError, guard
from common.reporting import results
from common.reporting.results import ROOT
from common.reporting.tables import table

OUT = "outputs/published"
IN_TIME_SECONDS = 60  # for a training to save after it was asked to stop


@dataclass(frozen=True)
class Published:
    """A named command that writes its results into `folder` in about so many minutes.

    Minutes are for two cores with AVX-512. On cores with AVX2 but not AVX-512, trainings take three
    times as long.
    """

    name: str
    folder: str
    minutes: float
    command: str

    def is_made(self) -> bool:
        """Whether the folder's results.json has all parts, made with these flags (or more)."""
        (_, *numbers), flags = words_and_flags(self.command)
        given = {flag: values for flag, values in flags.items() if "{" not in "".join(values)}
        made = results.read(ROOT / OUT / self.folder)["parts"]
        numbers = numbers or ["1.3"]  # Problem 1 makes all its parts, 1.3 last
        commands = [made[n]["provenance"]["command"] if n in made else "" for n in numbers]
        return all(given.items() <= words_and_flags(command)[1].items() for command in commands)


def words_and_flags(command: str) -> tuple[list[str], dict[str, list[str]]]:
    """A command's words before its first flag, and each flag's values."""
    words = shlex.split(command)
    starts = [k for k, word in enumerate(words) if word.startswith("--")] + [len(words)]
    return words[: starts[0]], {words[a]: words[a + 1 : b] for a, b in itertools.pairwise(starts)}


PHOTOS = "problem1_perceptual.py --curve-size 200"
FLOWERS = "problem2_flowers.py {parts} --data-root {{flowers}} --image-size 64"
SCRATCH = FLOWERS.format(parts="2.2") + " --clip-norm 0"
TAUGHT = FLOWERS + " --teacher vgg16 --seeds 3"
SOLVED = " --solve-head --first-strength 1"
SHORT, TWICE = (
    f"{SOLVED} --epochs {n} --cutmix 0 --warmup-epochs 2 --val-interval 4" for n in (24, 48)
)
COMPARED = TAUGHT + SHORT + " --layer features.5"
BLOCKS = COMPARED.format(parts="2.5")
UNTAUGHT = FLOWERS.format(parts="2.2") + SHORT
CHANGES = {  # of the recipe, one at a time
    "without crops": "--crop-area 1 --seeds 3",
    "without growing": "--stages 1",
    "without smoothing": "--label-smoothing 0",
    "without averaging": "--ema 0",
    "without zero gammas": "--no-zero-init-residual",
    "with mixing": "--cutmix 0.8 --seeds 3",
}
# As many train images as in Flowers-102, but of classes that a network learns in minutes.
DRAWN = (
    "problem2_flowers.py {parts} --data synthetic --classes 30 --images-per-class 34"
    " --image-size 32 --epochs 12 --batch-size 16 --warmup-epochs 2 --ema 0.98 --crop-area 0.7"
    " --cutmix 0 --stages 1 --layer features.3"
)
SET = f"{PHOTOS} --max-images 64 --images"
TEN = "problem3_resnet36.py 3.4 --data {imagenet}"  # classes
SMALL = f"{TEN} --image-size 64"
HUNDRED = "problem3_resnet36.py 3.4 --data {hundred} --per-class 60 --image-size 64 --width 0.25"
ROWS = [
    ("1", "problem1", 3, PHOTOS),
    ("1 flowers", "flowers-originals/problem1", 12, f"{SET} {{originals}} --control-images 3"),
    ("1 imagenet", "imagenet-10/problem1", 9, f"{SET} {{imagenet}} --control-images 0"),
    ("two epochs", "two_epochs/problem2", 1, f"{SCRATCH} --epochs 2 --seeds 3"),
    ("two epochs 2.4", "two_epochs/problem2", 5,
     FLOWERS.format(parts="2.4") + " --clip-norm 0 --epochs 2 --seeds 3"),
    ("2.2", "problem2", 24, f"{FLOWERS.format(parts='2.2')}{TWICE} --seeds 3"),
    ("untaught", "recipe/untaught/problem2", 12, f"{UNTAUGHT} --seeds 3"),
    *(
        (name, f"recipe/{name.replace(' ', '_')}/problem2", 12 if "seeds" in flags else 5,
         f"{UNTAUGHT} {flags}")
        for name, flags in CHANGES.items()
    ),
    ("taught", "taught/problem2", 27, TAUGHT.format(parts="2.2") + TWICE),
    ("long 2.2", "long/problem2", 90, f"{SCRATCH} --solve-head --epochs 150 --seeds 3"),
    ("long taught", "long_taught/problem2", 60,
     TAUGHT.format(parts="2.2") + SOLVED + " --epochs 100 --cutmix 0.5"),
    ("2.3", "problem2", 42, COMPARED.format(parts="2.3")),
    ("2.5", "problem2", 15, BLOCKS),
    ("small block", "small_block/problem2", 15, f"{BLOCKS} --noise-area 0.02 0.1"),
    ("2.6", "problem2", 5, COMPARED.format(parts="2.6") + " --images 2 --curve-images 300"),
    ("drawn 2.2 2.5", "drawn-30/problem2", 15, DRAWN.format(parts="2.2 2.5") + " --seeds 5"),
    ("drawn 2.3", "drawn-30/problem2", 15, DRAWN.format(parts="2.3") + " --seeds 3"),
    ("drawn 2.6", "drawn-30/problem2", 6,
     DRAWN.format(parts="2.6") + " --images 2 --pointing-images 1000 --curve-images 300"),
    ("drawn 2.4", "drawn-30/problem2", 8, DRAWN.format(parts="2.4") + " --seeds 3"),
    ("3.4", "problem3", 210, f"{SMALL} --width 0.5 --seeds 3"),
    ("reproduce", "problem3/reproduce", 57, f"{TEN} --reproduce --seeds 5 --cure-steps 5"),
    ("stems", "problem3/stems", 120, f"{SMALL} --stems --width 0.25 --epochs 6 --seeds 3"),
    ("factorial", "problem3/factorial", 42, f"{SMALL} --factorial --width 0.25 --epochs 10"),
    ("exponents", "problem3/exponents", 72,
     f"{SMALL} --exponents --width 0.125 --epochs 6 --seeds 3"),
    ("hundred", "imagenet-100x32/problem3", 60, f"{HUNDRED} --epochs 12 --seeds 3 --steps 20"),
    ("full width", "full_width/problem3", 120, f"{SMALL} --width 1 --epochs 6 --steps 4"),
]  # fmt: skip
RUNS = [Published(*row) for row in ROWS]


def main() -> None:
    args = parse_args()
    known = {run.name for run in RUNS}
    if unknown := [name for name in args.names if name not in known]:
        raise UserError(f"no run {unknown[0]}; the runs are {', '.join(known)}")
    asked = [run for run in RUNS if run.name in args.names or not args.names]
    rows = [{**vars(run), "made": "made" if run.is_made() else "missing"} for run in asked]
    columns = {"run": "{name}", "": "{made}", "minutes": "{minutes:.0f}", "command": "{command}"}
    print(table("Minutes are those of two cores with AVX-512.", columns, rows))
    if not args.run:
        return
    end = time.monotonic() + 60 * args.minutes
    for run in asked:
        if not run.is_made():
            make(run, args, end - time.monotonic() - IN_TIME_SECONDS)


def make(run: Published, args: argparse.Namespace, seconds: float) -> None:
    """Run a command to its end, or stop it when the time is over; what it has trained is saved.

    Raises:
        UserError: the time is over, or the command failed.
    """
    if seconds <= 0:
        raise UserError("the minutes are over; the same command goes on")
    problem = run.folder.rsplit("problem", 1)[0]
    command = [sys.executable, *run_words(run, args), "--out", f"{OUT}/{problem}".rstrip("/")]
    print(f"\n$ {shlex.join(['python', *command[1:]])}", flush=True)
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        code = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise UserError(
            f"{run.name}: stopped, its time is over; the same command goes on"
        ) from None
    if code:
        raise UserError(f"{run.name} ended with exit code {code}; its message is above")


def run_words(run: Published, args: argparse.Namespace) -> list[str]:
    """The words of a run's command, completed by the user's data, device and jobs."""
    words = [word.format(**vars(args)) for word in shlex.split(run.command)]
    words += ["--device", args.device] if args.device != "auto" else []
    trains = not run.command.startswith("problem1")
    return words + (["--jobs", str(args.jobs)] if trains and args.jobs > 1 else [])


def parse_args() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    add = parser.add
    parser.add_argument("names", nargs="*", metavar="RUN", help="runs of the list (default: all)")
    add("--run", action="store_true", help="make what is missing (default: only say it)")
    add("--minutes", type=cli.non_negative, default=1e6, help="stop in time, what is made is saved")
    add("--flowers", type=cli.path, default=Path("data"), help="holds flowers-102, or gets it")
    originals = Path("data/flowers-102/jpg")
    add("--originals", type=cli.path, default=originals, help="photos of flowers at full size")
    add("--imagenet", type=cli.path, default=Path("data/imagenet"), help="class folders")
    add("--hundred", type=cli.path, default=Path("data/hundred"), help="a hundred class folders")
    jobs = 1 if torch.cuda.is_available() else min(2, os.cpu_count() or 1)
    add("--jobs", type=cli.at_least(1, 64), default=jobs, help="trainings at a time")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="of the trainings")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(guard(main))
