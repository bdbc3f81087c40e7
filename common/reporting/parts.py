"""How a script runs the parts that its command line asks for, and tells of each."""

import argparse
import importlib.util
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from common.cli import duration, title
from common.errors import UserError
from common.job import is_first, printable, say
from common.reporting import html, results
from common.reporting.html_charts import trainings


def run_parts(
    parts: Mapping[str, Callable],
    args: argparse.Namespace,
    folder: Path,
    shared,
    forecast_seconds: Callable[..., float],
    described: Callable[[], dict],
) -> None:
    """Run parts in order, publish what each found as soon as it is there, and make the page.

    A part is called with `shared`, `forecast_seconds` with a part's number and `shared`;
    `described` gives what a part's provenance says beside its command, seed and seconds.
    """
    has_log = "tensorboard" in args and args.tensorboard
    if has_log and importlib.util.find_spec("tensorboard") is None:
        how = "type: python -m pip install tensorboard"
        raise UserError(f"--tensorboard: the package tensorboard is not installed; {how}")
    for number in args.parts:
        seconds = forecast_seconds(number, shared)
        say(f"\n== {number} {title(parts[number])} ({duration(seconds)})")
        start = time.perf_counter()
        findings = parts[number](shared)
        about = results.provenance(args.seed, time.perf_counter() - start, **described())
        results.publish(folder, number, findings, about)
    html.write(args.out)
    if has_log and is_first():
        write_tensorboard(folder)


def write_tensorboard(folder: Path) -> None:
    """Write each seed's scalars and each part's figures, in the place of those of before."""
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    stored, logs = results.read(folder), folder / "tensorboard"
    for before in logs.rglob("events.out.tfevents.*"):
        before.unlink()
    for part, result in stored["parts"].items():
        for name, runs in trainings(result):
            for seed, history in enumerate(runs):
                with SummaryWriter(str(logs / printable(f"{part} {name} seed {seed}"))) as writer:
                    for row in history:
                        for key, value in row.items():
                            if key != "epoch" and isinstance(value, (int, float)):
                                writer.add_scalar(key, value, row["epoch"])
        with SummaryWriter(str(logs / f"{part} figures")) as writer:
            for path in (folder / name for name in stored["files"].get(part, ())):
                if path.suffix == ".png" and path.is_file():
                    with Image.open(path) as image:
                        pixels = np.asarray(image.convert("RGB"))
                    writer.add_image(path.name, pixels, dataformats="HWC")
    say(f"-> {logs}: type tensorboard --logdir {folder}")
