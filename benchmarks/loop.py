"""How fast is the training loop beside the usual one?

In one process, on the same images and threads, in turn: (a) ours, the packed cache, whole-batch
augmentation, channels_last and autocast; (b) the usual loop, a torchvision data set and torchvision
transforms in a DataLoader with a worker a core, fp32, contiguous. Both train EfficientNetV2-S with
102 classes and AdamW on random resized crops, mirrored and colour-jittered.

    python -m benchmarks.loop --data-root DIR                            64 px, Flowers-102
    python -m benchmarks.loop --images DIR --image-size 224 --batch-size 16     class folders
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import Flowers102, ImageFolder
from torchvision.models import efficientnet_v2_s
from torchvision.transforms import v2
from tqdm import tqdm

from common import cli, data, training
from common.augment import IMAGENET_MEAN, IMAGENET_STD, Augmentation, Normalized
from common.recipe import Recipe, pick_precision

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


def our_steps(args: argparse.Namespace, device: torch.device, cache: Path) -> Iterator[None]:
    """One step of ours at each `next`; the cache is made before the first."""
    if args.images:
        folder = ImageFolder(args.images)
        files = [Path(path) for path, _ in folder.samples]
        source = data.FileSet("images train", files, folder.targets, [""] * CLASSES)
    else:
        source = data.flowers102(args.data_root)["train"]
    packed = data.pack(source, args.image_size, cache, skip_bad=False)
    recipe = Recipe(
        epochs=10**6,
        batch_size=args.batch_size,
        image_size_px=args.image_size,
        learning_rate=1e-4,
        ema_decay=0,
        precision=pick_precision("auto", device),
        augmentation=Augmentation(cutmix_prob=0),
    )
    run = training.Run(Normalized(efficientnet_v2_s(num_classes=CLASSES)), recipe, device)
    run.network.train()
    for indexes in cycle(torch.randperm(len(packed)).split(args.batch_size)):
        if len(indexes) == args.batch_size:
            training.train_step(run, packed, indexes, 1)
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
    device, folder = cli.pick_device("auto"), cli.make_folder(args.out / "benchmarks")
    with tempfile.TemporaryDirectory() as cache:
        ways = {"usual": usual_steps(args, device), "ours": our_steps(args, device, Path(cache))}
        seconds = time_in_turn(ways, args)
    images = args.batch_size * args.steps
    ratio = statistics.median(a / b for a, b in zip(*seconds.values(), strict=True))
    precision = pick_precision("auto", device)
    found = {
        "command": f"python -m benchmarks.loop {' '.join(sys.argv[1:])}".strip(),
        "environment": cli.environment() | {"threads": torch.get_num_threads()},
        "precision": precision,
        "images_per_second": {
            name: images / statistics.median(times) for name, times in seconds.items()
        },
        "seconds": seconds,
        "ours_over_usual": ratio,
    }
    rows = [
        [name, f"{rate:.1f}", "1" if name == "usual" else f"{ratio:.2f}"]
        for name, rate in found["images_per_second"].items()
    ]
    caption = (
        f"EfficientNetV2-S at {args.image_size} px, batch {args.batch_size}, {device.type},"
        f" {torch.get_num_threads()} threads;\nours in {precision}, the usual loop in fp32;"
        f" median of {args.repeats} repeats of {args.steps} steps."
    )
    name = f"loop_{args.image_size}px"
    cli.show_table(folder / f"{name}.txt", caption, ["loop", "images/s", "over usual"], rows)
    cli.write_json(folder / f"{name}.json", found)


def parse_args() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    add = parser.add
    add("--data-root", type=Path, default=Path("data"), help="folder that holds flowers-102")
    add("--images", type=Path, help="class folders instead of Flowers-102")
    add("--image-size", type=cli.at_least(32), default=64, help="side of the input in px")
    add("--batch-size", type=cli.at_least(2), default=64, help="images a step")
    add("--steps", type=cli.positive, default=5, help="timed steps a repeat")
    add("--repeats", type=cli.positive, default=3, help="timed repeats of each loop")
    add("--out", type=Path, default=Path("outputs"), help="results folder")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(cli.guard(main))
