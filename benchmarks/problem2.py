"""Benchmarks of Problem 2's training, its pieces and Grad-CAM against the usual ways."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import efficientnet_v2_s
from torchvision.transforms import v2

from benchmarks import photos
from benchmarks.bench import NO_BF16, PEAK, Machine, Ways, bench, in_turn, repeated, training_flops
from common import job
from common.data import streams
from common.data.augment import Draws
from common.data.packed import pack, packed_side_px
from common.networks.gradcam import grad_cam
from common.reporting.results import ROOT
from common.training import parallel
from common.training.convolutions import with_fast_convolutions
from common.training.parallel import launch
from common.training.precision import autocast
from problem2_flowers import NoiseBlock

CLASSES = 102
TWO, REOPENED_SECONDS = 2, 0.05

# ----------------------------------------------------------------------------------- whole training

USUAL = "DataLoader, v2 transforms, fp32, contiguous"
USUAL_BF16, ACCELERATE = f"{USUAL.replace('fp32', 'bf16')}", "Accelerate, channels_last"


def cold_training(machine: Machine, side_px: int, images: int, batch_size: int) -> Iterator[Ways]:
    """Whole training processes, ours and the usual ways, on JPEG files of 667 x 500 px.

    Usual loaders are tried with 0, 1 and 2 workers; the fastest counts.
    """
    count = machine.size(images, 16)
    sizes = ["--image-size", str(side_px), "--batch-size", str(batch_size)]
    precision = machine.precision.name
    with tempfile.TemporaryDirectory() as folder:
        photos.write_folders(Path(folder, "train"), 2, count // 2, *photos.ORIGINAL)
        photos.write_folders(Path(folder, "val"), 2, count // 8, *photos.ORIGINAL)

        def train(way: str, precision: str, workers: int) -> Callable[[], object]:
            words = [way, folder, *sizes, "--precision", precision, "--workers", str(workers)]
            command = [sys.executable, "-m", "benchmarks.cold", *words]
            command += ["--device", machine.device.type]
            threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
            options = {"cwd": ROOT, "check": True, "stdout": subprocess.DEVNULL}
            return partial(subprocess.run, command, env=os.environ | threads, **options)

        tried = {str(n): train("usual", "fp32", n) for n in range(machine.size(3, 1))}
        seconds = in_turn(tried, repeats=1, warm_ups=0)
        best = int(min(seconds, key=seconds.__getitem__))
        peers = {USUAL: tried[str(best)], ACCELERATE: train("accelerate", precision, best)}
        not_measured = {USUAL_BF16: NO_BF16}
        if precision == "bf16":
            peers[USUAL_BF16] = train("usual", "bf16", best)
        about = {"images": count, "seconds_by_workers": seconds, "precision": precision}
        yield Ways(train("ours", "auto", 0), peers, not_measured, warm_ups=0, about=about)


@bench(
    "train-64",
    "P2: training from a cold process, 2 epochs, 64 px",
    {USUAL: {"bf16": 2.5, "AVX512": 2, "AVX2": 1.6}, USUAL_BF16: None, ACCELERATE: 1.2},
)
def train_64(machine: Machine) -> Iterator[Ways]:
    yield from cold_training(machine, 64, images=256, batch_size=machine.size(32, 8))


@bench(
    "train-224",
    "P2: training from a cold process, 2 epochs, 224 px",
    {USUAL: {"bf16": 2.5, "AVX512": 1.5, "AVX2": 1.3}, USUAL_BF16: None, ACCELERATE: 1.2},
)
def train_224(machine: Machine) -> Iterator[Ways]:
    yield from cold_training(machine, 224, images=32, batch_size=machine.size(16, 8))


# -------------------------------------------------------------------------------------------- steps


def stepper(
    network: nn.Module,
    batch_size: int,
    side_px: int,
    device: torch.device,
    precision: str = "fp32",
    plain: bool = False,
) -> Callable[[], None]:
    """A function that takes one step (forward, backward, AdamW), always on the same images.

    It uses channels_last and the fused optimiser, or neither if `plain`.
    """
    memory_format = torch.contiguous_format if plain else torch.channels_last
    network = network.to(device, memory_format=memory_format).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=not plain)
    images = torch.rand(batch_size, 3, side_px, side_px).to(device, memory_format=memory_format)
    labels = torch.arange(batch_size, device=device) % CLASSES

    def step() -> None:
        optimizer.zero_grad()
        with autocast(precision, device):
            logits = network(images)
        functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return step


build = partial(efficientnet_v2_s, num_classes=CLASSES)
STOCK = "the same with torchvision's convolutions"


def step_ways(machine: Machine, side_px: int, batch_size: int) -> Ways:
    """A step with our convolutions, one with torchvision's; both channels_last, our precision."""
    size = (batch_size, side_px, machine.device, machine.precision.name)
    ours = with_fast_convolutions(build(), machine.device)
    operations = training_flops(build, batch_size, side_px)
    peak = f"{machine.precision.name} matrix product"
    return Ways(stepper(ours, *size), {STOCK: stepper(build(), *size)}, work=operations, peak=peak)


@bench("step-64", "P2: a step of EfficientNetV2-S, 64 px", {STOCK: None, PEAK: None}, repeats=9)
def step_64(machine: Machine) -> Iterator[Ways]:
    yield step_ways(machine, 64, machine.size(32, 4))


@bench("step-224", "P2: a step of EfficientNetV2-S, 224 px", {STOCK: None, PEAK: None})
def step_224(machine: Machine) -> Iterator[Ways]:
    yield step_ways(machine, 224, machine.size(8, 2))


ALONE = "the same alone"


@bench("step-beside", "P2: a step at 64 px beside a busy process", {ALONE: None}, repeats=9)
def step_beside(machine: Machine) -> Iterator[Ways]:
    step = stepper(
        with_fast_convolutions(build(), machine.device),
        *(machine.size(32, 4), 64, machine.device, machine.precision.name),
    )

    def beside() -> float:
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            time.sleep(0.2)  # wait until it is busy
            start = time.perf_counter()
            step()
            return time.perf_counter() - start
        finally:
            busy.kill()
            busy.wait()

    yield Ways(beside, {ALONE: step})


def seconds_in_process(size: tuple, threads: int) -> float:
    """Seconds per step in a process of a job, without its start and two warm-up steps."""
    device = parallel.pick_device("cpu", threads=threads)
    parallel.start(device)
    torch.manual_seed(0)
    batch_size, side_px, precision, steps = size
    network = with_fast_convolutions(build(), device).to(memory_format=torch.channels_last)
    network = parallel.wrap(network, device, gpus=0)
    step = stepper(network, batch_size // job.size(), side_px, device, precision)
    repeated(step, 2)()
    start = time.perf_counter()
    repeated(step, steps)()
    seconds = time.perf_counter() - start
    parallel.stop()
    return seconds / steps


ONE_PROCESS = "1 process of 2 threads"


@bench("gloo", "P2: a step at 64 px, 2 processes by gloo", {ONE_PROCESS: 1.3})
def gloo(machine: Machine) -> Iterator[Ways]:
    size = (machine.size(32, 8), 64, machine.precision.name, machine.size(8, 1))

    def run_job(processes: int) -> float:
        return launch(processes, seconds_in_process, size, TWO // processes)[0]

    yield Ways(partial(run_job, TWO), {ONE_PROCESS: partial(run_job, 1)}, warm_ups=0)


# --------------------------------------------------------------------------------------------- data

STEP, ERASING = "a step (100 times the block)", "v2.RandomErasing, a sample at a time"
BY_PIXEL = "the same block, a pixel at a time"
BLOCK_WANTED = {STEP: 100, ERASING: 20, BY_PIXEL: None, PEAK: None}


@bench("noise-block", "P2: noise block on 64 images of 64 px", BLOCK_WANTED)
def noise_block(machine: Machine) -> Iterator[Ways]:
    block, cpu = NoiseBlock(0.5, 0.02, 0.33), machine.device
    images = torch.rand(64, 3, 64, 64, device=cpu).contiguous(memory_format=torch.channels_last)
    erase = v2.RandomErasing(0.5, (0.02, 0.33), value="random")
    size = (machine.size(64, 4), 64, cpu, machine.precision.name)
    step = stepper(with_fast_convolutions(build(), machine.device), *size)
    draws, times = Draws(0, streams.AUGMENT, 0, 0, len(images), cpu), machine.size(30, 3)

    def one_block() -> float:
        start = time.perf_counter()
        repeated(partial(block, images, draws), times)()
        return (time.perf_counter() - start) / times

    def erased() -> Tensor:
        return torch.stack([erase(image) for image in images])

    pixels = (block(images, draws) != images).any(1).nonzero().tolist()

    def by_pixel() -> Tensor:  # as the report's long run times suggest
        noisy = images.clone()
        for image, row, column in pixels:
            noisy[image, :, row, column] = torch.rand(3)
        return noisy

    moved = 2 * images.numel() * images.element_size()
    peers = {STEP: step, ERASING: erased, BY_PIXEL: by_pixel}
    about = {"pixels": len(pixels)}
    yield Ways(one_block, peers, work=moved, peak="memory copy", about=about)


def pack_usually(folder: Path, side_px: int, file: Path) -> None:
    """Decode every image once in a DataLoader of two workers, and write an .npy file."""
    transform = v2.Compose([v2.Resize(side_px), v2.CenterCrop(side_px), np.array])
    images, start = ImageFolder(folder, transform), 0
    shape = (len(images), side_px, side_px, 3)
    array = np.lib.format.open_memmap(file, "w+", np.uint8, shape)
    for squares, _ in DataLoader(images, 32, num_workers=2):
        array[start : start + len(squares)] = squares
        start += len(squares)
    array.flush()


PILLOW, LIMIT = "Pillow in a DataLoader of 2 workers", "50 ms"


@bench("packing", "P2: packing JPEG files of 667 x 500 px for 224 px", {PILLOW: 2})
def packing(machine: Machine) -> Iterator[Ways]:
    with tempfile.TemporaryDirectory() as folder:
        count, root = machine.size(300, 20), Path(folder)
        source = photos.write_folders(root / "photos", 1, count, *photos.ORIGINAL)

        def ours() -> None:
            with tempfile.TemporaryDirectory(dir=root) as cache:
                pack(source, 224, Path(cache), skip_bad=False)

        usual = partial(pack_usually, root / "photos", packed_side_px(224), root / "usual.npy")
        yield Ways(ours, {PILLOW: usual}, about={"images": count, "threads": 2})


@bench("reopening", "P2: opening a packed cache of 1,020 images of 64 px again", {LIMIT: 1})
def reopening(machine: Machine) -> Iterator[Ways]:
    with tempfile.TemporaryDirectory() as folder:
        source = photos.write_folders(Path(folder, "photos"), 1, machine.size(1020, 20), 100, 80)
        open_again = partial(pack, source, 64, Path(folder), skip_bad=False)
        yield Ways(open_again, {LIMIT: REOPENED_SECONDS})


# ----------------------------------------------------------------------------------------- Grad-CAM

PACKAGE = "the grad-cam package"


@bench("grad-cam", "P2: Grad-CAM of 64 images, 224 px", {PACKAGE: 1.5})
def gradient_maps(machine: Machine) -> Iterator[Ways]:
    network, count = build().to(machine.device).eval(), machine.size(64, 4)
    layer, classes = network.features[-1], torch.arange(count, device=machine.device)
    images = torch.rand(count, 3, 224, 224, device=machine.device)
    targets = [ClassifierOutputTarget(label) for label in classes.tolist()]
    batches = [slice(start, start + 16) for start in range(0, count, 16)]

    def ours() -> list[Tensor]:
        return [grad_cam(network, layer, images[rows], classes[rows]) for rows in batches]

    def theirs() -> list[np.ndarray]:
        with GradCAM(network, [layer]) as cam:
            return [cam(images[rows], targets[rows]) for rows in batches]

    yield Ways(ours, {PACKAGE: theirs})
