"""Train EfficientNetV2-S in a new process for two epochs with evaluation: our way or a usual one.

All ways train with AdamW on the same JPEG files, on random resized crops, mirrored and colour-
jittered, and save a checkpoint after each epoch. `python -m benchmarks` times whole processes:

    python -m benchmarks.cold ours DIR
    python -m benchmarks.cold usual DIR --workers 2
    python -m benchmarks.cold accelerate DIR --precision bf16

DIR/train and DIR/val hold class folders.
"""

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import efficientnet_v2_s

from common import cli
from common.data.images import IMAGENET_MEAN, IMAGENET_STD
from common.errors import guard

WAYS = ("ours", "usual", "accelerate")
CLASSES, EPOCHS, LEARNING_RATE, SMOOTHING, JITTER, AREA_MIN = 102, 2, 1e-4, 0.1, 0.3, 0.25


def train_ours(args: argparse.Namespace, out: Path) -> None:
    """Our way: packed cache, whole-batch augmentation, channels_last, the fastest precision."""
    from common.data.augment import Augmentation
    from common.data.packed import pack
    from common.data.sets import FileSet
    from common.networks.normalized import seeded
    from common.training import loop
    from common.training.convolutions import with_fast_convolutions
    from common.training.parallel import pick_device
    from common.training.precision import Example, choose_precision
    from common.training.recipe import Recipe
    from common.training.run import Run, Saver

    device, packed = pick_device(args.device), {}
    for split in ("train", "val"):
        folder = ImageFolder(args.images / split)
        paths = [Path(path) for path, _ in folder.samples]
        source = FileSet(f"cold {split}", paths, folder.targets, [""] * CLASSES)
        packed[split] = pack(source, args.image_size, out / "cache", skip_bad=False)
    network = seeded(lambda: efficientnet_v2_s(num_classes=CLASSES), 0)
    step = Example(lambda: network.network, args.batch_size, args.image_size, device)
    recipe = Recipe(
        epochs=EPOCHS,
        batch_size=args.batch_size,
        image_size_px=args.image_size,
        learning_rate=LEARNING_RATE,
        warmup_epochs=0,
        label_smoothing=SMOOTHING,
        ema_decay=0,
        precision=choose_precision(args.precision, step).name,
        augmentation=Augmentation(AREA_MIN, JITTER, cutmix_prob=0),
    )
    network = with_fast_convolutions(network, device)
    save = Saver(Run(network, recipe, device), out / "run", {})
    loop.fit(save, packed["train"], packed["val"])


def usual_loaders(args: argparse.Namespace) -> tuple[DataLoader, DataLoader]:
    """The loaders of train and val: each worker decodes and augments one image at a time."""
    from torchvision.transforms import v2

    to_float = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    to_float.append(v2.Normalize(IMAGENET_MEAN, IMAGENET_STD))
    crop = v2.RandomResizedCrop(args.image_size, scale=(AREA_MIN, 1))
    jitter = v2.ColorJitter(JITTER, JITTER, JITTER)
    varied = v2.Compose([crop, v2.RandomHorizontalFlip(), jitter, *to_float])
    centre = [v2.Resize(round(args.image_size * 8 / 7)), v2.CenterCrop(args.image_size)]
    options = {"num_workers": args.workers, "persistent_workers": args.workers > 0}
    train, val = ImageFolder(args.images / "train", varied), ImageFolder(args.images / "val")
    val.transform = v2.Compose([*centre, *to_float])
    return (
        DataLoader(train, args.batch_size, shuffle=True, drop_last=True, **options),
        DataLoader(val, 2 * args.batch_size, **options),
    )


def train_usual(args: argparse.Namespace, out: Path) -> None:
    """A usual way: DataLoader and v2 transforms; "accelerate" adds Accelerate, channels_last."""
    network, (train, val) = efficientnet_v2_s(num_classes=CLASSES), usual_loaders(args)
    device, is_bf16 = torch.device(args.device), args.precision == "bf16"
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    backward, memory_format = torch.Tensor.backward, torch.contiguous_format
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=is_bf16)
    if args.way == "accelerate":
        from accelerate import Accelerator

        mixed = "bf16" if is_bf16 else "no"
        accelerator = Accelerator(mixed_precision=mixed, cpu=device.type == "cpu")
        network = network.to(memory_format=torch.channels_last)
        prepared = accelerator.prepare(network, optimizer, train, val)
        network, optimizer, train, val = prepared
        backward, memory_format = accelerator.backward, torch.channels_last
        autocast = accelerator.autocast
    network, criterion = network.to(device), nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    for _ in range(EPOCHS):
        network.train()
        for images, labels in train:
            images = images.to(device, memory_format=memory_format)
            with autocast():
                logits = network(images)
            loss = criterion(logits.float(), labels.to(device))
            optimizer.zero_grad()
            backward(loss)
            optimizer.step()
            loss.item()
        network.eval()
        right = 0
        with torch.inference_mode():
            for images, labels in val:
                with autocast():
                    logits = network(images.to(device, memory_format=memory_format))
                right += int((logits.argmax(1) == labels.to(device)).sum())
        state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, out / "last.pt")


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory() as out:
        (train_ours if args.way == "ours" else train_usual)(args, Path(out))


def parse_args() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    parser.add_argument("way", choices=WAYS, help="which loop trains")
    parser.add_argument("images", type=cli.path, metavar="DIR", help="holds train and val")
    add = parser.add
    add("--image-size", type=cli.at_least(32), default=64, help="side of the input in px")
    add("--batch-size", type=cli.at_least(2), default=32, help="images a step")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto: ours alone")
    add("--workers", type=cli.whole, default=0, help="processes of a usual loader")
    add("--device", default="cpu", help="of the training")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(guard(main))
