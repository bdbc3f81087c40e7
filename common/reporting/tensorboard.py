"""The trainings of results.json for TensorBoard, with the flag --tensorboard.

tensorboard.write(Path("outputs/problem2"))      into outputs/problem2/tensorboard

tensorboard --logdir outputs                     shows them
"""

import argparse
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from common import job
from common.reporting import results
from common.reporting.html_charts import trainings


class Flag(argparse.Action):
    """The flag --tensorboard; a mistake where the package is not there, before any work."""

    def __call__(self, parser, namespace, *_):
        if importlib.util.find_spec("tensorboard") is None:
            parser.error(
                "--tensorboard: the package tensorboard is not installed; type:"
                " python -m pip install tensorboard"
            )
        setattr(namespace, self.dest, True)


def write(folder: Path) -> None:
    """Write each seed's scalars and each part's figures, in the place of those of before."""
    if not job.is_first():
        return
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    def open_log(name: str) -> SummaryWriter:
        for before in (logs / name).glob("events.out.tfevents.*"):
            before.unlink()
        return SummaryWriter(str(logs / name))

    stored, logs = results.read(folder), folder / "tensorboard"
    for part, result in stored["parts"].items():
        for name, runs in trainings(result):
            for seed, history in enumerate(runs):
                with open_log(job.printable(f"{part} {name} seed {seed}")) as writer:
                    for scalar in _scalars(history):
                        writer.add_scalar(*scalar)
        with open_log(f"{part} figures") as writer:
            for path in (folder / name for name in stored["files"].get(part, ())):
                if path.suffix == ".png" and path.is_file():
                    with Image.open(path) as image:
                        pixels = np.asarray(image.convert("RGB"))
                    writer.add_image(path.name, pixels, dataformats="HWC")
    job.say(f"-> {logs}: type tensorboard --logdir {folder}")


def _scalars(history: list[dict]) -> Iterator[tuple[str, float, int]]:
    """The numbers of a training's epochs: name, value and epoch."""
    for row in history:
        for key, value in row.items():
            if key != "epoch" and isinstance(value, (int, float)):
                yield key, value, row["epoch"]
