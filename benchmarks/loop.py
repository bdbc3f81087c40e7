"""How fast is the training loop beside the usual one?

In one process, on the same images and threads, in turn: (a) ours, the packed cache, whole-batch
augmentation, channels_last and the precision measured to be fastest; (b) the usual loop, a
torchvision data set and torchvision transforms in a DataLoader with a worker a core, fp32,
contiguous. Both train EfficientNetV2-S with 102 classes and AdamW on random resized crops, mirrored
and colour-jittered.

    python -m benchmarks.loop --data-root DIR                            64 px, Flowers-102
    python -m benchmarks.loop --images DIR --image-size 224 --batch-size 16     class folders
"""

import argparse
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import Flowers102, ImageFolder
from torchvision.models import efficientnet_v2_s
from torchvision.transforms import v2
from tqdm import tqdm

from benchmarks import report
from common import cli, files
from common.data.augment import Augmentation
from common.data.images import IMAGENET_MEAN, IMAGENET_STD
from common.data.packed import pack
from common.data.sets import FileSet, flowers102
from common.errors import guard
from common.networks.normalized import Normalized
from common.reporting import results, tables
from common.training.convolutions import with_fast_convolutions
from common.training.loop import train_step
from common.training.parallel import pick_device
from common.training.precision import Example, choose_precision
from common.training.recipe import Recipe
from common.training.run import Run

CLASSES = 102
SETTLE_SECONDS = 2  # the usual loop's workers fill their queue, and leave ours the cores


def usual_images(args: argparse.Namespace) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of the usual loop, without end."""
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(args.image_size, scale=(0.25, 1)),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.3, 0.3, 0.3),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    if args.images:
        images = ImageFolder(args.images, transform)
    else:
        images = Flowers102(args.data_root, "train", transform)
    loader = DataLoader(
        images,
        args.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=os.cpu_count() or 1,
        prefetch_factor=1,
        persistent_workers=True,
    )
    while True:
        yield from loader


def usual_steps(args: argparse.Namespace, device: torch.device) -> Iterator[None]:
    """One step of the usual loop at each `next`."""
    network = efficientnet_v2_s(num_classes=CLASSES).to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    for images, labels in usual_images(args):
        loss = criterion(network(images.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        yield


def our_steps(
    args: argparse.Namespace, device: torch.device, precision: str, cache: Path
) -> Iterator[None]:
    """One step of ours at each `next`; the cache is made before the first."""
    if args.images:
        folder = ImageFolder(args.images)
        paths = [Path(path) for path, _ in folder.samples]
        source = FileSet("images train", paths, folder.targets, [""] * CLASSES)
    else:
        source = flowers102(args.data_root)["train"]
    packed = pack(source, args.image_size, cache, skip_bad=False)
    recipe = Recipe(
        epochs=2,
        batch_size=args.batch_size,
        image_size_px=args.image_size,
        learning_rate=1e-4,
        warmup_epochs=0,
        ema_decay=0,
        precision=precision,
        augmentation=Augmentation(cutmix_prob=0),
    )
    network = Normalized(efficientnet_v2_s(num_classes=CLASSES))
    run = Run(with_fast_convolutions(network, device), recipe, device)
    run.network.train()
    for indexes in cycle(torch.randperm(len(packed)).split(args.batch_size)):
        if len(indexes) == args.batch_size:
            train_step(run, packed, indexes, epoch=0)
            run.step += 1
            yield


def time_in_turn(ways: dict[str, Iterator[None]], args: argparse.Namespace) -> dict:
    """Seconds for `--steps` steps, each repeat of each way, the ways in turn."""
    for steps in ways.values():  # warm-up
        next(steps)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in tqdm(range(args.repeats), desc="repeats", disable=None):
        for name, steps in ways.items():
            time.sleep(SETTLE_SECONDS)
            start = time.perf_counter()
            for _ in islice(steps, args.steps):
                pass
            seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    args = parse_args()
    device, folder = pick_device("auto"), files.make_folder(args.out / "benchmarks")
    network = partial(efficientnet_v2_s, num_classes=CLASSES)
    step = Example(network, args.batch_size, args.image_size, device)
    precision = choose_precision("auto", step)
    with tempfile.TemporaryDirectory() as cache:
        ours = our_steps(args, device, precision.name, Path(cache))
        seconds = time_in_turn({"usual": usual_steps(args, device), "ours": ours}, args)
    images = args.batch_size * args.steps
    result = {
        "command": shlex.join(["python", "-m", "benchmarks.loop", *sys.argv[1:]]),
        "environment": results.environment() | {"threads": torch.get_num_threads()},
        "precision": precision.name,
        "precision_why": precision.why,
        "images_per_second": {
            name: images / statistics.median(times) for name, times in seconds.items()
        },
        "seconds": seconds,
        "ours_over_usual": statistics.median(
            usual / ours for usual, ours in zip(*seconds.values(), strict=True)
        ),
    }
    caption = (
        f"EfficientNetV2-S at {args.image_size} px, batch {args.batch_size}, {device.type},"
        f" {torch.get_num_threads()} threads;\nours in {precision.name}, the usual loop in fp32;"
        f" median of {args.repeats} repeats of {args.steps} steps."
    )
    name, text = f"loop_{args.image_size}px", table(caption, result)
    report.keep(folder, name, text, result)


def table(caption: str, result: dict) -> str:
    """The rates of both loops, and their ratio."""
    ratios = {"usual": "1", "ours": f"{result['ours_over_usual']:.2f}"}
    records = [
        {"loop": name, "rate": rate, "ratio": ratios[name]}
        for name, rate in result["images_per_second"].items()
    ]
    columns = {"loop": "{loop}", "images/s": "{rate:.1f}", "over usual": "{ratio}"}
    return tables.table(caption, columns, records)


def parse_args() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    add = parser.add
    add("--data-root", type=cli.path, default=Path("data"), help="folder that holds flowers-102")
    add("--images", type=cli.path, help="class folders instead of Flowers-102")
    add("--image-size", type=cli.at_least(32), default=64, help="side of the input in px")
    add("--batch-size", type=cli.at_least(2), default=64, help="images a step")
    add("--steps", type=cli.positive, default=5, help="timed steps a repeat")
    add("--repeats", type=cli.positive, default=3, help="timed repeats of each loop")
    add("--out", type=cli.path, default=Path("outputs"), help="results folder")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(guard(main))
