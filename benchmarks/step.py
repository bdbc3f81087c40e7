"""What do the convolutions' forms for small maps bring a training step on this processor?

EfficientNetV2-S as torchvision has it, and with `common.training.convolutions`, take steps in turn
in one process: forward pass, backward pass and AdamW, on the same images and threads.

    python -m benchmarks.step                   64 px, 32 images, the threads of this machine
    python -m benchmarks.step --image-size 32 --threads 1
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python -m benchmarks.step   without AVX-512
"""

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torchvision.models import efficientnet_v2_s
from tqdm import tqdm

from benchmarks import report
from common import cli, files
from common.errors import guard
from common.reporting import results, tables
from common.training.convolutions import with_fast_convolutions
from common.training.parallel import pick_device
from common.training.precision import PRECISIONS, autocast

CLASSES, CPU = 102, torch.device("cpu")


def stepper(network: nn.Module, precision: str, image_size_px: int, images: int) -> Callable:
    """A function that takes a training step and returns its seconds."""
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    batch = torch.rand(images, 3, image_size_px, image_size_px)
    batch, labels = batch.to(memory_format=torch.channels_last), torch.arange(images) % CLASSES

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        with autocast(precision, CPU):
            logits = network(batch)
        functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        return time.perf_counter() - start

    return step


def main() -> None:
    args = parse_args()
    pick_device("cpu", threads=args.threads)
    folder = files.make_folder(args.out / "benchmarks")
    networks = {
        "torchvision": efficientnet_v2_s(num_classes=CLASSES),
        "ours": with_fast_convolutions(efficientnet_v2_s(num_classes=CLASSES), CPU),
    }
    options = (args.precision, args.image_size, args.batch_size)
    steps = {name: stepper(network, *options) for name, network in networks.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in tqdm(range(2 + args.repeats), desc="steps", disable=None):
        for name, step in steps.items():
            taken = step()
            seconds[name] += [taken] if repeat >= 2 else []  # two to warm up
    rates = {name: args.batch_size / statistics.median(taken) for name, taken in seconds.items()}
    ratios = [a / b for a, b in zip(seconds["torchvision"], seconds["ours"], strict=True)]
    result = {
        "command": shlex.join(["python", "-m", "benchmarks.step", *sys.argv[1:]]),
        "environment": results.environment() | {"threads": torch.get_num_threads()},
        "images_per_second": rates,
        "ours_over_torchvision": statistics.median(ratios),
        "seconds": seconds,
    }
    about = f"{args.image_size}px_{torch.get_num_threads()}threads_{args.precision}"
    capability = torch.backends.cpu.get_cpu_capability().lower()
    caption = (
        f"A step of EfficientNetV2-S, {args.batch_size} images of {args.image_size} px,"
        f" {args.precision}, {torch.get_num_threads()} thread(s), {results.processor()};\n"
        f"median of {args.repeats} steps, in turn."
    )
    ratio = {"torchvision": "1", "ours": f"{result['ours_over_torchvision']:.2f}"}
    records = [{"form": name, "rate": rates[name], "ratio": ratio[name]} for name in rates]
    columns = {"convolutions": "{form}", "images/s": "{rate:.1f}", "ratio": "{ratio}"}
    report.keep(
        folder, f"step_{about}_{capability}", tables.table(caption, columns, records), result
    )


def parse_args() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    add = parser.add
    add("--image-size", type=cli.at_least(32), default=64, help="side of the input in px")
    add("--batch-size", type=cli.at_least(2), default=32, help="images a step")
    add("--precision", choices=tuple(PRECISIONS), default="fp32", help="of the convolutions")
    add("--threads", type=cli.positive, help="of a CPU (default: as many as cores)")
    add("--repeats", type=cli.positive, default=9, help="timed steps of each")
    add("--out", type=cli.path, default=Path("outputs"), help="results folder")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(guard(main))
