"""Run the parts that a script's command line asks for, and report each one."""

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
from common.reporting.provenance import provenance


def run_parts(
    parts: Mapping[str, Callable],
    args: argparse.Namespace,
    folder: Path,
    shared,
    forecast_seconds: Callable[..., float],
    described: Callable[[], dict],
) -> None:
    """Run the parts in order, publish the findings of each when it ends, and write the page.

    Each part is called as `part(shared)`, its forecast as `forecast_seconds(number, shared)`; a
    forecast of 0 is not told. `described()` returns what a part's provenance holds besides its
    command, seed and seconds.
    """
    has_log = "tensorboard" in args and args.tensorboard
    if has_log and importlib.util.find_spec("tensorboard") is None:
        how = "type: python -m pip install tensorboard"
        raise UserError(f"--tensorboard: the package tensorboard is not installed; {how}")
    for number in args.parts:
        seconds = forecast_seconds(number, shared)
        forecast = f" (about {duration(max(1, seconds))})" if seconds else ""
        say(f"\n== {number} {title(parts[number])}{forecast}")
        start = time.perf_counter()
        findings = parts[number](shared)
        about = provenance(args.seed, time.perf_counter() - start, **described())
        results.publish(folder, number, findings, about)
    html.write(args.out)
    if has_log and is_first():
        write_tensorboard(folder)


def write_tensorboard(folder: Path) -> None:
    """Write each seed's scalars and each part's figures, and remove the logs of earlier runs."""
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    stored, logs = results.read(folder), folder / "tensorboard"
    for before in logs.rglob("events.out.tfevents.*"):
        before.unlink()
    for part, result in stored["parts"].items():
        for name, runs in trainings(result):
            for run in runs:
                log = logs / printable(f"{part} {name} seed {run['seed']}")
                with SummaryWriter(str(log)) as writer:
                    for row in run["history"]:
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
