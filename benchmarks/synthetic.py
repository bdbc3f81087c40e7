"""Do the drawn flowers need more than a linear classifier, and how fast are they drawn?

Ten classes at 64 px: softmax regression on the pixels (learning rate chosen on val) beside a
small convolutional network (one setting, nothing chosen); both see test once, at the end.

    python -m benchmarks.synthetic
"""

import argparse
import itertools
import math
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common import cli, synthetic
from common.data import centre_crop

NUM_CLASSES, SIDE_PX, BATCH = 10, 64, 100
LINEAR_RATES = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4)
Split = tuple[Tensor, Tensor]


def draw_split(seed: int, split: str, n: int) -> Split:
    """Square pictures, float (n, 3, 64, 64) in [0, 1], and their labels (n,)."""
    images = torch.empty(n, 3, SIDE_PX, SIDE_PX, dtype=torch.uint8)
    labels = torch.empty(n, dtype=torch.long)
    for index in tqdm(range(n), desc=split, disable=None):
        flower = synthetic.draw_flower(seed, split, index, NUM_CLASSES, SIDE_PX)
        picture = torch.from_numpy(flower.image).permute(2, 0, 1)
        images[index], labels[index] = centre_crop(picture, SIDE_PX, SIDE_PX), flower.label
    return images.float() / 255, labels


def images_per_second(seed: int, batches: int = 5, batch: int = 100) -> float:
    """Median over batches, drawn on one core."""
    rates = []
    for _ in range(batches):
        start = time.perf_counter()
        for index in range(batch):
            synthetic.draw_flower(seed, "train", index, NUM_CLASSES, SIDE_PX)
        rates.append(batch / (time.perf_counter() - start))
    return statistics.median(rates)


@torch.no_grad()
def accuracy(model: nn.Module, split: Split) -> float:
    """Share of right answers."""
    model.eval()
    images, labels = split
    answers = torch.cat([model(part).argmax(1) for part in images.split(250)])
    return (answers == labels).float().mean().item()


def fit_linear(train: Split, rate: float, seed: int, epochs: int = 10) -> nn.Module:
    """Softmax regression on standardised pixels; AdamW at a steady learning rate."""
    torch.manual_seed(seed)
    images, labels = train
    scale = nn.BatchNorm1d(images[0].numel(), affine=False, momentum=None)
    inputs = scale(images.flatten(1))  # a momentum of None keeps the exact mean and variance
    linear = nn.Linear(inputs.shape[1], NUM_CLASSES)
    optimizer = torch.optim.AdamW(linear.parameters(), rate, weight_decay=1)
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(linear(inputs[chosen]), labels[chosen]).backward()
            optimizer.step()
    return nn.Sequential(nn.Flatten(), scale, linear)


def make_network() -> nn.Sequential:
    """Five blocks of convolution, batch norm, ReLU and 2x2 pooling, then the mean over places."""
    widths = (3, 32, 64, 96, 128, 192)
    blocks = [
        nn.Sequential(
            nn.Conv2d(wide_in, wide_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(wide_out),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        for wide_in, wide_out in itertools.pairwise(widths)
    ]
    head = nn.Linear(widths[-1], NUM_CLASSES)
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def fit_network(train: Split, epochs: int, seed: int) -> nn.Module:
    """AdamW with one learning-rate cycle, in bf16; pictures are mirrored at random."""
    torch.manual_seed(seed)
    model = make_network().to(memory_format=torch.channels_last)
    images, labels = train
    steps = epochs * math.ceil(len(labels) / BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in tqdm(range(epochs), desc="epochs", disable=None):
        model.train()
        for chosen in torch.randperm(len(labels)).split(BATCH):
            batch, mirror = images[chosen], torch.rand(2, len(chosen), 1, 1, 1) < 0.5
            for axis in (2, 3):
                batch = torch.where(mirror[axis - 2], batch.flip(axis), batch)
            with torch.autocast("cpu", torch.bfloat16):
                answers = model(batch.contiguous(memory_format=torch.channels_last))
            optimizer.zero_grad()
            nn.functional.cross_entropy(answers.float(), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    return model


def compare(splits: dict[str, Split], epochs: int, seed: int) -> dict[str, dict]:
    """Accuracy on val and test, and seconds of training, of both classifiers."""
    found = {}
    start = time.perf_counter()
    linear = {rate: fit_linear(splits["train"], rate, seed) for rate in LINEAR_RATES}
    seconds = time.perf_counter() - start
    chosen = max(linear, key=lambda rate: accuracy(linear[rate], splits["val"]))
    found["linear on pixels"] = {"learning_rate": chosen, "seconds": seconds}
    start = time.perf_counter()
    network = fit_network(splits["train"], epochs, seed)
    found["5-block CNN"] = {"epochs": epochs, "seconds": time.perf_counter() - start}
    for way, model in zip(found, (linear[chosen], network), strict=True):
        found[way] |= {split: accuracy(model, splits[split]) for split in splits}
    return found


def main() -> None:
    args = parse_args()
    results = cli.make_folder(args.out / "benchmarks")
    rate = images_per_second(args.seed)
    sizes = {"train": args.train, "val": args.val, "test": args.test}
    splits = {split: draw_split(args.seed, split, n) for split, n in sizes.items()}
    found = {
        "command": f"python -m benchmarks.synthetic {' '.join(sys.argv[1:])}".strip(),
        "environment": cli.environment() | {"threads": torch.get_num_threads()},
        "seed": args.seed,
        "images": sizes,
        "images_per_second_one_core": rate,
        "accuracy": compare(splits, args.epochs, args.seed),
    }
    cli.write_json(results / "synthetic.json", found)
    show(found, results / "synthetic.txt")


def show(found: dict, path: Path) -> None:
    """Table of both classifiers; the interval is the normal approximation of a share's."""
    n, rows = found["images"], []
    for way, values in found["accuracy"].items():
        margin = 1.96 * math.sqrt(values["test"] * (1 - values["test"]) / n["test"])
        shares = [f"{100 * values[split]:.1f}" for split in n]
        rows.append([way, *shares, f"{100 * margin:.1f}", f"{values['seconds']:.0f}"])
    caption = (
        f"Drawn flowers, {NUM_CLASSES} classes, {SIDE_PX}x{SIDE_PX} px, seed {found['seed']}:"
        f" {n['train']} train, {n['val']} val, {n['test']} test; chance {100 // NUM_CLASSES} %."
        f"\nDrawing: {found['images_per_second_one_core']:.0f} images/s on one core."
    )
    headers = ["accuracy in %", *n, "test, 95 % +-", "training s"]
    cli.show_table(path, caption, headers, rows)


def parse_args() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    add = parser.add
    add("--train", type=cli.positive, default=4000, help="training pictures")
    add("--val", type=cli.positive, default=500, help="validation pictures")
    add("--test", type=cli.positive, default=1000, help="test pictures")
    add("--epochs", type=cli.positive, default=15, help="of the network")
    add("--seed", type=cli.seed, default=0, help="of pictures and training")
    add("--out", type=Path, default=Path("outputs"), help="results folder")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(cli.guard(main))
