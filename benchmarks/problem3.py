"""Benchmarks of ResNet-36's step, its activation and its data set against the usual ways."""

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import random_split
from torchvision.datasets import ImageFolder
from tqdm import tqdm

from benchmarks import photos
from benchmarks.bench import PEAK, Machine, Ways, bench, training_flops
from benchmarks.problem2 import stepper
from common.data import manifest
from common.data.images import list_classes
from common.networks.activations import WhereForm, square_leaky, where_form
from common.networks.resnet36 import ResNet36
from common.networks.timing import PeakMemory
from common.training.convolutions import with_fast_convolutions

SPLIT = (0.7, 0.15, 0.15)

# --------------------------------------------------------------------------------------- a step

PLAIN = "torch.where, fp32, contiguous"
WANTED = {PLAIN: {"bf16": 3, "AVX512": 1.5, "AVX2": 1.5}}
WANTED[PEAK] = {"bf16": 0.5, "AVX512": 0.6, "AVX2": 0.6}


def step_ways(machine: Machine, side_px: int, batch_size: int) -> Ways:
    """A step of our network at full width, and a step of the network as it is usually written."""
    size = (batch_size, side_px, machine.device)
    ours = with_fast_convolutions(ResNet36(), machine.device)
    plain = stepper(ResNet36(activation=WhereForm), *size, plain=True)
    return Ways(
        stepper(ours, *size, machine.precision.name),
        {PLAIN: plain},
        work=training_flops(ResNet36, batch_size, side_px),
        peak=f"{machine.precision.name} matrix product",
    )


@bench("resnet36-64", "P3: a step of ResNet-36, 64 px", WANTED)
def resnet36_64(machine: Machine) -> Iterator[Ways]:
    yield step_ways(machine, 64, machine.size(16, 2))


@bench("resnet36-224", "P3: a step of ResNet-36, 224 px", WANTED)
def resnet36_224(machine: Machine) -> Iterator[Ways]:
    yield step_ways(machine, machine.size(224, 96), machine.size(4, 2))


EAGER = "the same without --compile"


@bench("resnet36-gpu", "P3: a step of ResNet-36, 224 px, bf16, --compile", {EAGER: None, PEAK: 0.5})
def resnet36_gpu(machine: Machine) -> Iterator[Ways | str]:
    if machine.device.type != "cuda":
        yield "not run on a GPU"
        return
    size = (machine.size(128, 8), 224, machine.device, machine.precision.name)
    compiled = stepper(torch.compile(ResNet36()), *size)
    operations = training_flops(ResNet36, *size[:2])
    peak = f"{machine.precision.name} matrix product"
    yield Ways(compiled, {EAGER: stepper(ResNet36(), *size)}, work=operations, peak=peak)


# ------------------------------------------------------------------------------------ activation

WHERE, RELU = "torch.where", "ReLU"
FORMS = {WHERE: where_form, RELU: torch.relu}


@bench(
    "activation",
    "P3: the activation, forward and backward",
    {WHERE: 1 / 0.19, RELU: 1 / 1.58, PEAK: None},
    repeats=15,
)
def activation(machine: Machine) -> Iterator[Ways]:
    x, gradient = example(machine)

    def both(form) -> None:
        torch.autograd.grad(form(x), x, gradient)

    timed = {name: partial(both, form) for name, form in FORMS.items()}
    moved = 5 * x.numel() * x.element_size()  # reads x twice, the gradient once; writes twice
    yield Ways(partial(both, square_leaky), timed, work=moved, peak="memory copy")


@bench("activation-memory", "P3: most that the activation's tensors hold", {WHERE: 1 / 0.6})
def activation_memory(machine: Machine) -> Iterator[Ways]:
    x, gradient = example(machine)

    def peak_bytes(form) -> float:
        with PeakMemory() as memory:
            torch.autograd.grad(form(x), x, gradient)
        return float(memory.peak)

    ours, where = partial(peak_bytes, square_leaky), partial(peak_bytes, where_form)
    yield Ways(ours, {WHERE: where}, unit="bytes")


def example(machine: Machine) -> tuple[Tensor, Tensor]:
    """An input of the activation, as from 16 images in the stem, and a gradient of its output."""
    x = torch.randn(machine.size(16, 2), 64, 112, 112, device=machine.device)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    return x, torch.ones_like(x)


# -------------------------------------------------------------------------------------- data set

IMAGE_FOLDER, DECODING = "ImageFolder and random_split", "Pillow decoding them, a thread a core"


@bench("listing", "P3: listing 500 x 650 files, drawing 500 x 600", {IMAGE_FOLDER: 1})
def listing(machine: Machine) -> Iterator[Ways]:
    classes, per_class = machine.size(500, 20), machine.size(600, 20)
    with tempfile.TemporaryDirectory() as folder:
        for label in tqdm(range(classes), desc="making files", disable=None):
            (class_folder := Path(folder, f"n{label:08d}")).mkdir()
            for number in range(per_class * 13 // 12):
                (class_folder / f"{number}.JPEG").touch()

        def ours() -> None:
            listed, _ = list_classes(Path(folder))
            manifest.choose(listed, classes, per_class, 0)

        yield Ways(ours, {IMAGE_FOLDER: lambda: random_split(ImageFolder(folder), SPLIT)})


@bench("verifying", "P3: drawing and verifying 100 x 60 JPEG files of 224 px", {DECODING: 0.9})
def verifying(machine: Machine) -> Iterator[Ways]:
    classes, per_class = machine.size(100, 4), machine.size(60, 6)
    with tempfile.TemporaryDirectory() as folder:
        source = photos.write_folders(Path(folder), classes, per_class, 224, 224)
        ours = partial(manifest.draw, Path(folder), classes, per_class, SPLIT, 0, False)

        def decode(path: Path) -> None:
            with Image.open(path) as image:
                image.convert("RGB")

        def decode_all() -> None:
            with ThreadPoolExecutor(os.cpu_count()) as threads:
                list(threads.map(decode, source.files))

        about = {"images": len(source.files), "threads": os.cpu_count()}
        yield Ways(ours, {DECODING: decode_all}, about=about)
