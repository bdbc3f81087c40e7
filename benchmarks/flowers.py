"""How well do simple classifiers tell the drawn flowers apart, and how fast are they drawn?

Ten classes at 64 px: the nearest neighbour by colour histogram, softmax regression on the pixels
and a small convolutional network, each with a single setting that was not tuned.

    python -m benchmarks.flowers
"""

import argparse
import itertools
import math
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import report
from common import cli, files
from common.data import flowers
from common.data.images import to_tensor, to_uint8
from common.data.sets import DrawnSet
from common.errors import guard
from common.job import progress
from common.networks import features
from common.reporting import provenance, tables
from common.reporting.statistics import wilson_interval

CLASSES, SIDE_PX, BATCH_SIZE = 10, 64, 100


def draw_split(seed: int, split: str, n: int) -> tuple[Tensor, Tensor]:
    """Central squares of drawn flowers, float (n, 3, 64, 64) in [0, 1], and labels, int64 (n,)."""
    source = DrawnSet(split, n, CLASSES, seed)
    squares = (source.square(index, SIDE_PX) for index in progress(range(n), desc=split))
    return torch.stack(list(map(to_tensor, squares))), torch.from_numpy(source.labels)


def images_per_second(seed: int, batches: int = 5) -> float:
    """How many pictures of 64 px a core draws per second, the median over batches of 100."""
    rates = []
    for _ in range(batches):
        start = time.perf_counter()
        for index in range(100):
            flowers.draw_flower(seed, "train", index, CLASSES, SIDE_PX)
        rates.append(100 / (time.perf_counter() - start))
    return statistics.median(rates)


def nearest_label(images: Tensor, known_images: Tensor, known_labels: Tensor) -> Tensor:
    """For each image, the label of the known image with the nearest colour histogram."""
    histograms = [
        features.colour_histograms(np.stack([to_uint8(image) for image in batch]), SIDE_PX)
        for batch in (images, known_images)
    ]
    return known_labels[features.nearest(*histograms)]


def softmax_regression() -> nn.Sequential:
    """A linear classifier of standardised pixels."""
    inputs = 3 * SIDE_PX**2
    return nn.Sequential(
        nn.Flatten(), nn.BatchNorm1d(inputs, affine=False), nn.Linear(inputs, CLASSES)
    )


def small_network() -> nn.Sequential:
    """Five blocks of convolution, batch norm, ReLU and 2x2 pooling, then the mean over places."""
    widths, layers = (3, 32, 64, 96, 128, 192), []
    for wide_in, wide_out in itertools.pairwise(widths):
        layers += [nn.Conv2d(wide_in, wide_out, 3, padding=1, bias=False), nn.BatchNorm2d(wide_out)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    head = nn.Linear(widths[-1], CLASSES)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def fit(model: nn.Module, images: Tensor, labels: Tensor, peak_rate: float, epochs: int) -> None:
    """Train with AdamW and one learning-rate cycle; images are mirrored at random."""
    steps = epochs * math.ceil(len(labels) / BATCH_SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_rate, total_steps=steps)
    for _ in progress(range(epochs), desc="epochs"):
        for rows in torch.randperm(len(labels)).split(BATCH_SIZE):
            mirrored = torch.rand(len(rows), 1, 1, 1) < 0.5
            batch = torch.where(mirrored, images[rows].flip(3), images[rows])
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def compare(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], epochs: int) -> list[dict]:
    """Each classifier's test accuracy in per cent, with its 95 % interval, and its seconds."""
    records, (images, labels) = [], test
    ways = {
        "nearest colour histogram": (None, 0),
        "softmax regression": (softmax_regression(), 1e-4),
        "5-block CNN": (small_network(), 3e-3),
    }
    for name, (model, peak_rate) in ways.items():
        start = time.perf_counter()
        if model is None:
            answers = nearest_label(images, *train)
        else:
            fit(model, *train, peak_rate, epochs)
            with torch.no_grad():
                answers = torch.cat([model(batch).argmax(1) for batch in images.split(BATCH_SIZE)])
        right = int((answers == labels).sum())
        low, high = wilson_interval(right, len(labels))
        record = {"name": name, "top1": 100 * right / len(labels)}
        record |= {"low": 100 * low, "high": 100 * high, "seconds": time.perf_counter() - start}
        records.append(record)
    return records


def main() -> None:
    args = parse_args()
    torch.manual_seed(args.seed)
    folder, rate = files.make_folder(args.out / "benchmarks"), images_per_second(args.seed)
    train, test = (draw_split(args.seed, split, args.images) for split in ("train", "test"))
    result = {
        "command": provenance.command(),
        "environment": provenance.environment() | {"threads": torch.get_num_threads()},
        "images_per_second_one_core": rate,
        "classifiers": compare(train, test, args.epochs),
    }
    caption = (
        f"Drawn flowers, {CLASSES} classes, {SIDE_PX} px, seed {args.seed}: {args.images} train,"
        f" {args.images} test; chance {100 // CLASSES} %.\n"
        f"Drawing: {rate:.0f} images/s on one core."
    )
    columns = {"classifier": "{name}", "test top-1": "{top1:.1f}"}
    columns |= {"95 % interval": "{low:.1f} - {high:.1f}", "seconds": "{seconds:.0f}"}
    text = tables.table(caption, columns, result["classifiers"])
    report.keep(folder, "flowers", text, result)


def parse_args() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    parser.add("--images", type=cli.positive, default=600, help="training images, and test images")
    parser.add("--epochs", type=cli.positive, default=15, help="of what is trained")
    parser.add("--seed", type=cli.seed, default=0, help="of pictures and training")
    parser.add("--out", type=cli.path, default=Path("outputs"), help="results folder")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(guard(main))
