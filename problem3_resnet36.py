"""Problem 3: does a 36-layer ResNet learn with the activation x^2 / 0.2x; why did it diverge?

Method: a class-balanced subset is drawn from class folders, verified and kept as a manifest; the
report's network with the activation inside each block's branch is trained beside ResNet-34 and
beside itself with ReLU; the report's own form, with the activation after the sum, is watched module
by module until its loss is non-finite, and changed one thing at a time.

    python problem3_resnet36.py --data DIR             all parts, DIR holds class folders
    python problem3_resnet36.py --data synthetic       all parts, embedded data
    python problem3_resnet36.py 3.4 --data DIR --diagnose     the doctor alone, no training

Hardware: any CPU or GPU; at 64 px and half the width, three seeds of three networks take 1.5 hours
on 2 CPU cores.
Finding (numbers: README, outputs/published/problem3): with the activation inside the branch the
network learns, nine points of accuracy behind the same one with ReLU; after the sum, as in the
report, it squares the skip path and leaves fp32 in the second step.
"""

import argparse
import contextlib
import csv
import hashlib
import io
import math
import shutil
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from weakref import WeakSet, finalize

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, is_tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.models import resnet34
from torchvision.models.resnet import BasicBlock

from common import cli, data, manifest, parallel, plotting, summary, synthetic, training
from common.augment import Normalized, centre_square
from common.cli import UserError
from common.data import FileSet
from common.experiment import (
    TrainingExperiment,
    count_parameters,
    over_seeds,
    show_runs,
    train_runs,
)
from common.recipe import PRECISIONS, Recipe, add_flags

RESIDUALS = ("branch", "sum")
SYNTHETIC_CLASSES = 10
REPORT_SIZE_PX = 224  # of the report's tables
IMAGE_SIZE_MIN_PX = 32  # below, the stem leaves nothing
DRAW_FLAGS = ("classes", "per_class", "allow_fewer", "split")  # that a manifest answers
SAMPLE_CLASSES = 5
DEVIATIONS = (0.5, 1.0, 2.0)  # of the normal input of part 3.3
SAMPLES = 4_000_000
TIMED_IMAGES, REPEATS = 4, 9  # of the activation's timing
STAGE_BLOCKS = (3, 3, 3, 2)
STAGE_CHANNELS = (128, 256, 512, 1024)
REPORT = "resnet36_sum"  # the report's network, activation after the sum
# He et al. 2016's, as the report does not print its own; the learning rate is held, not annealed.
REPORT_WORDS = "SGD with Nesterov momentum 0.9, learning rate 0.1, fp32, no warm-up, no clipping"
REPORT_RECIPE = {
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "weight_decay": 1e-4,
    "warmup_epochs": 0,
    "label_smoothing": 0,
    "ema_decay": 0,
    "clip_norm": 0,
    "precision": "fp32",
    "compile": False,
    "epochs": 10**6,
}
CLAMP = 6  # as ReLU6
RESNET34_F = "(ResNet-34 with f for its ReLUs)"
LAST_STEPS = 10  # that a loss reached is averaged over
NOT_FOUND = {"step": None, "module": None, "direction": None}


class Experiment(TrainingExperiment):
    """The flags, the data set that part 3.1 draws, and the runs of part 3.4."""

    def __init__(self, args: argparse.Namespace):
        super().__init__(args)
        manifest.check_split(args.split)
        wanting = [part for part in args.parts if part in ("3.1", "3.4")]
        if wanting and not args.data:
            raise UserError(
                f"part {wanting[0]} needs --data DIR, a folder of class folders, or --data"
                " synthetic, the embedded data; or name other parts: 3.2 3.3"
            )
        if args.manifest and args.data != "synthetic":
            parser = make_parser()
            for name in DRAW_FLAGS:
                if getattr(args, name) != parser.get_default(name):
                    flag = f"--{name.replace('_', '-')}"
                    raise UserError(f"{flag}: --manifest says what was drawn; leave one out")
        if args.image_size < IMAGE_SIZE_MIN_PX:
            raise UserError(
                f"--image-size {args.image_size}: ResNet-36 needs {IMAGE_SIZE_MIN_PX} px or more"
            )
        if args.diagnose and "3.4" not in args.parts:
            raise UserError("--diagnose is of part 3.4; name it too, or leave the parts out")
        parallel.start(self.device)

    @property
    def data(self) -> str:
        """What tables and figures say of the data."""
        if self.args.data == "synthetic":
            return f"EMBEDDED DRAWN FLOWERS, {self.args.classes or SYNTHETIC_CLASSES} classes"
        if not self.args.data:
            return "no data"
        folder = Path(self.args.data).absolute()
        named = folder.name not in manifest.SPLITS  # "train" alone says nothing
        return folder.name if named else f"{folder.parent.name}/{folder.name}"

    @cached_property
    def drawn(self) -> manifest.Manifest:
        """The data set, every image of it decoded once. Each process of a job draws the same."""
        args = self.args
        root = embedded_folders(args) if args.data == "synthetic" else Path(args.data)
        if args.manifest:
            return manifest.read(args.manifest, root)
        return manifest.draw(
            root, args.classes, args.per_class, args.split, args.seed, args.allow_fewer
        )

    @cached_property
    def sources(self) -> dict[str, FileSet]:
        """Train, val and test of the data set."""
        sets = self.drawn.sets()
        parallel.check_images(min(len(one.labels) for one in sets.values()))
        return sets

    @property
    def init(self) -> str:
        """How the networks compared start, which a run that goes on must share."""
        return "scratch" + (", last gammas at 0" if self.args.zero_init_residual else "")

    def tag(self) -> str:
        """What every table and figure of a training says of its origin."""
        place = ", f AFTER THE SUM" if self.args.residual == "sum" else ""
        return super().tag() + place + _width_words(self.args, of="ResNet-36 ")


def embedded_folders(args: argparse.Namespace) -> Path:
    """The drawn flowers as class folders in the cache, which the first use writes.

    Raises:
        UserError: a full disk, or more classes than there are.
    """
    classes = args.classes or SYNTHETIC_CLASSES
    side_px = round(args.image_size * 8 / 7)
    code = hashlib.sha256(Path(synthetic.__file__).read_bytes()).hexdigest()[:16]
    name = f"flowers-{classes}x{args.per_class}-{side_px}px-seed{args.seed}-{code}"
    folder = cli.make_folder(args.cache, flag="--cache") / name
    with FileLock(args.cache / ".lock"):  # of several processes one draws, the others wait
        if not folder.exists():
            partial_folder = Path(tempfile.mkdtemp(prefix=".partial-", dir=args.cache))
            try:
                synthetic.write_folders(
                    partial_folder, classes, args.per_class, side_px, args.seed, ("train",)
                )
                partial_folder.rename(folder)
            finally:
                shutil.rmtree(partial_folder, ignore_errors=True)
    return folder / "train"


# -------------------------------------------------------------------------- 3.1 the data set


def part_3_1(experiment: Experiment, folder: Path) -> dict:
    """The prototype data set: catalogue, manifest, samples."""
    drawn = experiment.drawn
    sha256 = drawn.write(folder / "3.1_manifest.csv")
    catalogue = drawn.catalogue()
    _show_catalogue(folder, experiment, catalogue)
    _show_samples(folder, experiment)
    return {**catalogue, "quarantined": drawn.quarantined, "manifest_sha256": sha256}


def _show_catalogue(folder: Path, experiment: Experiment, catalogue: dict) -> None:
    per_class = catalogue["images_per_class"]
    shown = per_class if isinstance(per_class, list) else [per_class]
    rows = [
        ["classes", f"{catalogue['classes']:,}"],
        ["images per class", " - ".join(f"{one:,}" for one in shown)],
        ["images", f"{catalogue['total']:,}"],
        *([split, f"{catalogue[split]:,}"] for split in manifest.SPLITS),
        ["quarantined", f"{len(experiment.drawn.quarantined):,}"],
    ]
    caption = f"Drawn from {experiment.data}, counted from the manifest."
    cli.show_table(folder / "3.1_catalogue.txt", caption, ["", "number"], rows)
    for line in experiment.drawn.quarantined:
        print(f"quarantined: {line}")


def _show_samples(folder: Path, experiment: Experiment) -> None:
    """A grid of random classes, one image of each split."""
    rng = np.random.default_rng(experiment.args.seed)
    sets = experiment.drawn.sets()
    names = sets["train"].class_names
    chosen = sorted(rng.choice(len(names), min(SAMPLE_CLASSES, len(names)), replace=False))
    rows = {}
    for split, source in sets.items():
        of_class = [np.flatnonzero(source.labels == label) for label in chosen]
        pictures = [source.picture(int(rng.choice(indexes))) for indexes in of_class]
        rows[split] = [data.fit_to(picture, 300, 300) for picture in pictures]
    headers = ["\n".join(textwrap.wrap(names[label].split(",")[0], 18)) for label in chosen]
    title = f"{experiment.data}: {len(chosen)} random classes"
    plotting.image_grid(folder / "3.1_samples.png", title, headers, rows)


# -------------------------------------------------------------------------- 3.3 the activation


class _SquareLeaky(torch.autograd.Function):
    """The activation, and -x, which is all that its backward pass needs.

    ATen's `elu_backward` on a result u computes g * p * (u + n) where u <= 0 and g * s * u' where
    not: with n = 0 both f and its derivative are one pass of it over u = -x, without a mask.
    -x is an output, so that the backward pass can be differentiated again.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> tuple[Tensor, Tensor]:
        u = -x
        ctx.save_for_backward(u)
        ctx.set_materialize_grads(False)
        return torch.ops.aten.elu_backward(u, 0, -0.2, 1, True, u), u

    @staticmethod
    def backward(ctx, grad: Tensor | None, grad_u: Tensor | None) -> Tensor | None:
        (u,) = ctx.saved_tensors
        if grad is None:
            return None if grad_u is None else -grad_u
        grad_x = torch.ops.aten.elu_backward(grad, 0, 0.2, -2, True, u)
        return grad_x if grad_u is None else grad_x - grad_u


def square_leaky(x: Tensor) -> Tensor:
    """f(x) = x^2 for x > 0, 0.2 x for x < 0, 0 at 0, elementwise; f'(0) is 0.

    Of any floating dtype and shape; NaN and infinities pass through.
    """
    return _SquareLeaky.apply(x)[0]


class SquareLeaky(nn.Module):
    """`square_leaky` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        """The same shape and dtype as x."""
        return square_leaky(x)


# ----------------------------------------------------------------------------- 3.2 the network


class ResidualBlock(nn.Module):
    """Three 3x3 convolutions with batch norm, and a 1x1 shortcut where the shape changes.

    `residual` says where the activation is: "branch", between batch norm and the next convolution
    alone; "sum", after the residual sum too, as in He et al. 2016 and the report.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        activation: Callable[[Tensor], Tensor],
        residual: str,
    ):
        super().__init__()
        self.activation1 = self.activation2 = activation
        self.activation3 = activation if residual == "sum" else None
        conv = partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)
        self.conv1, self.bn1 = conv(inputs, outputs, stride=stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.conv3, self.bn3 = conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        branch = self.activation1(self.bn1(self.conv1(x)))
        branch = self.activation2(self.bn2(self.conv2(branch)))
        total = self.bn3(self.conv3(branch)) + self.shortcut(x)
        return self.activation3(total) if self.activation3 else total


class ResNet36(nn.Module):
    """The report's network: 36 weighted layers on the main path, `width` times as wide.

    `activation` is a function, so that torchsummary lists the rows that the report does.
    `zero_init_residual`: each branch's last batch norm starts at gamma 0, as torchvision's does.
    """

    def __init__(
        self,
        classes: int = 500,
        activation: Callable[[Tensor], Tensor] = square_leaky,
        residual: str = "branch",
        width: float = 1,
        zero_init_residual: bool = False,
    ):
        super().__init__()
        if residual not in RESIDUALS:
            raise ValueError(f"residual {residual!r} is not one of {', '.join(RESIDUALS)}")
        self.activation1 = self.activation2 = activation
        half, *channels = (max(1, round(width * c)) for c in (64, *STAGE_CHANNELS))
        self.conv1 = nn.Conv2d(3, half, 7, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, channels[0], 7, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels[0])
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs = channels[0]
        for stage, (outputs, blocks) in enumerate(zip(channels, STAGE_BLOCKS, strict=True)):
            strides = [1 if stage == 0 else 2] + [1] * (blocks - 1)
            layer = nn.Sequential()
            for stride in strides:
                layer.append(ResidualBlock(inputs, outputs, stride, activation, residual))
                inputs = outputs
            self.add_module(f"layer{stage + 1}", layer)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():  # as torchvision's ResNets
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if zero_init_residual and isinstance(module, ResidualBlock):
                nn.init.zeros_(module.bn3.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, 3, H, W)."""
        x = self.activation1(self.bn1(self.conv1(images)))
        x = self.maxpool(self.activation2(self.bn2(self.conv2(x))))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return self.fc(self.avgpool(x).flatten(1))


def part_3_2(experiment: Experiment, folder: Path) -> dict:
    """ResNet-36: tables and counts."""
    args = experiment.args
    classes = args.classes or manifest.CLASSES
    build = partial(ResNet36, classes, residual=args.residual, width=args.width)
    network = summary.without_weights(build)
    width = "" if args.width == 1 else f", {args.width:g} TIMES AS WIDE AS THE REPORT'S"
    caption = f"ResNet-36, {classes} classes, activation: {args.residual}{width}."
    tables = [f"{name}\n{table}" for name, table in summary_tables(network).items()]
    cli.show_text(folder / "3.2_summary.txt", "\n".join([caption, *tables]))
    layers = len(weighted_layers(network))
    print(f"{layers} weighted layers on the main path, {count_parameters(network):,} parameters")
    return {
        "parameters": count_parameters(network),
        "weighted_layers": layers,
        "classes": classes,
        "residual": args.residual,
        "width": args.width,
    }


def summary_tables(network: ResNet36) -> dict[str, str]:
    """torchsummary's tables at 224 px, of the stem, of each stage on its own, and of the whole."""
    stem = (network.conv1, network.bn1, network.conv2, network.bn2, network.maxpool)
    parts = {"stem": nn.Sequential(*stem)}
    parts |= {f"layer{stage}": network.get_submodule(f"layer{stage}") for stage in (1, 2, 3, 4)}
    image = size = (3, REPORT_SIZE_PX, REPORT_SIZE_PX)
    tables = {}
    for name, part in parts.items():
        tables[name] = summary.summary_table(part, size)
        _, (_, *shape), _ = summary.layer_rows(tables[name])[-1]
        size = tuple(shape)
    return {**tables, "whole network": summary.summary_table(network, image)}


def weighted_layers(network: ResNet36) -> list[str]:
    """Names of the convolutions and linear layers on the main path: shortcuts do not count."""
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and "shortcut" not in name
    ]


def part_3_3(experiment: Experiment, folder: Path) -> dict:
    """The activation: its curve, and what it does to a normal input."""
    _show_curves(folder)
    moments = normal_moments(experiment.args.seed)
    _show_moments(folder, moments)
    costs = activation_costs(experiment.device)
    _show_costs(folder, experiment, costs)
    return {**cost_ratios(costs), "moments": moments, "costs": costs}


def _show_curves(folder: Path) -> None:
    x = torch.linspace(-3, 3, 601, dtype=torch.float64)
    functions = {"f(x) = x^2, 0.2x": square_leaky, "ReLU": functional.relu}
    curves = {name: (of(x), derivative(of, x)) for name, of in functions.items()}
    plotting.functions(folder / "3.3_activation.png", x, curves)


def derivative(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Of an elementwise function, at x."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


def half_moment(power: int, deviation: float) -> float:
    """E[x^power; x > 0] for x ~ N(0, deviation^2): half the absolute moment."""
    gamma = math.gamma((power + 1) / 2) / math.sqrt(math.pi)
    return (deviation * math.sqrt(2)) ** power * gamma / 2


def moments_in_closed_form(deviation: float) -> dict[str, dict[str, float]]:
    """Mean, variance and kurtosis of f(x) and ReLU(x), x ~ N(0, deviation^2).

    E[f^k] = E[x^2k; x > 0] + (-0.2)^k E[x^k; x > 0], by the symmetry of x; kurtosis is
    E[(f - mean)^4] / variance^2, which is 3 for a normal value.
    """
    half = {power: half_moment(power, deviation) for power in range(1, 9)}
    f = [half[2 * k] + (-0.2) ** k * half[k] for k in (1, 2, 3, 4)]
    return {"f": _central(*f), "ReLU": _central(*(half[k] for k in (1, 2, 3, 4)))}


def _central(first: float, second: float, third: float, fourth: float) -> dict[str, float]:
    """Mean, variance and kurtosis from the raw moments."""
    variance = second - first**2
    about_mean = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
    return {"mean": first, "variance": variance, "kurtosis": about_mean / variance**2}


def normal_moments(seed: int) -> list[dict]:
    """The moments, measured on `SAMPLES` normal values and in closed form, for `DEVIATIONS`."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(SAMPLES, dtype=torch.float64, generator=generator)
    rows = []
    for deviation in DEVIATIONS:
        exact = moments_in_closed_form(deviation)
        for name, function in (("f", square_leaky), ("ReLU", functional.relu)):
            y = function(deviation * normal)
            measured = _central(*((y**k).mean().item() for k in (1, 2, 3, 4)))
            about = {"function": name, "deviation": deviation}
            rows.append({**about, "measured": measured, "closed_form": exact[name]})
    return rows


def _show_moments(folder: Path, moments: list[dict]) -> None:
    keys = ("mean", "variance", "kurtosis")
    rows = []
    for row in moments:
        pairs = [f"{row[way][key]:.4g}" for key in keys for way in ("closed_form", "measured")]
        rows.append([row["function"], f"{row['deviation']:g}", *pairs])
    headers = ["of", "s", *(name for key in keys for name in (key, "measured"))]
    caption = (
        f"Moments for x ~ N(0, s^2) in closed form, and measured on {SAMPLES:,} values;\n"
        "the kurtosis of a normal value is 3."
    )
    cli.show_table(folder / "3.3_moments.txt", caption, headers, rows)


def where_form(x: Tensor) -> Tensor:
    """f as it is usually written, which `square_leaky` is measured against."""
    return torch.where(x > 0, x * x, 0.2 * x)


FORMS = {"f": square_leaky, "where": where_form, "ReLU": functional.relu}


def activation_shapes() -> Counter:
    """(channels, height, width) of what ResNet-36's activations see at 224 px, and how often."""
    shapes = Counter()

    def record(x: Tensor) -> Tensor:
        shapes[tuple(x.shape[1:])] += 1
        return x

    with torch.device("meta"):
        ResNet36(activation=record)(torch.empty(1, 3, REPORT_SIZE_PX, REPORT_SIZE_PX))
    return shapes




def activation_costs(device: torch.device) -> list[dict]:
    """Seconds and peak bytes of forward + backward of each of `FORMS`, fp32, channels_last.

    A row a shape: "shape", "times" (that the network has it), "seconds" and "bytes" by form; the
    median of `REPEATS` in turn, after a warm-up.
    """
    rows = []
    for shape, times in activation_shapes().items():
        x = torch.randn(TIMED_IMAGES, *shape, device=device)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        gradient = torch.ones_like(x)
        seconds, peaks = {name: [] for name in FORMS}, {}
        for _ in range(REPEATS + 2):
            for name, form in FORMS.items():
                seconds[name].append(_seconds(form, x, gradient))
        for name, form in FORMS.items():
            with PeakMemory() as memory:
                torch.autograd.grad(form(x), x, gradient)
            peaks[name] = memory.peak
        medians = {name: float(np.median(of[2:])) for name, of in seconds.items()}
        rows.append({"shape": shape, "times": times, "seconds": medians, "bytes": peaks})
    return rows




def cost_ratios(costs: list[dict]) -> dict[str, float]:
    """Of all activations of the network together."""

    def total(key: str, form: str) -> float:
        return sum(row["times"] * row[key][form] for row in costs)

    return {
        "time_vs_where": total("seconds", "f") / total("seconds", "where"),
        "memory_vs_where": total("bytes", "f") / total("bytes", "where"),
        "time_vs_relu": total("seconds", "f") / total("seconds", "ReLU"),
    }


def _show_costs(folder: Path, experiment: Experiment, costs: list[dict]) -> None:
    rows = []
    for row in costs:
        milliseconds = [f"{1e3 * row['seconds'][form]:.2f}" for form in FORMS]
        rows.append(["x".join(map(str, row["shape"])), str(row["times"]), *milliseconds])
        rows[-1] += [f"{one:.2f}" for one in cost_ratios([row]).values()]
    ratios = [f"{one:.2f}" for one in cost_ratios(costs).values()]
    rows.append(["all", str(sum(row["times"] for row in costs)), None, None, None, *ratios])
    caption = (
        f"Forward + backward in ms, {TIMED_IMAGES} images of {REPORT_SIZE_PX} px, fp32,"
        f" channels_last, {experiment.device.type};\nmedian of {REPEATS}. where: f as"
        " torch.where(x > 0, x * x, 0.2 * x). memory: peak, ours over where's."
    )
    headers = ["shape", "times", *FORMS, "f / where", "memory", "f / ReLU"]
    cli.show_table(folder / "3.3_cost.txt", caption, headers, rows)


# -------------------------------------------------------------------------------- 3.4 training


def networks_of(experiment: Experiment) -> dict[str, Callable[[int], nn.Module]]:
    """The three networks compared, each by its seed, for images in [0, 1]."""
    classes, args = experiment.classes, experiment.args
    start = {"zero_init_residual": args.zero_init_residual}
    ours = partial(ResNet36, classes, residual=args.residual, width=args.width, **start)
    return {
        "resnet34": partial(seeded, partial(resnet34, num_classes=classes, **start)),
        "resnet36": partial(seeded, ours),
        "resnet36_relu": partial(seeded, partial(ours, activation=functional.relu)),
    }


class Elementwise(nn.Module):
    """A function as a module, so that what it puts out can be watched."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """What the function makes of x."""
        return self.function(x)


def with_watched_activations(network: nn.Module) -> nn.Module:
    """The network, each place of a ResNet-36's activation now a module with a name."""
    for module in list(network.modules()):
        if isinstance(module, (ResNet36, ResidualBlock)):
            for name in ("activation1", "activation2", "activation3"):
                if function := getattr(module, name, None):
                    setattr(module, name, Elementwise(function))
    return network


def seeded(build: Callable[[], nn.Module], seed: int) -> Normalized:
    """A network for images in [0, 1] whose initial weights depend on the seed alone."""
    torch.manual_seed(seed)
    return Normalized(with_watched_activations(build()))


def train_networks(experiment: Experiment, folder: Path) -> dict:
    """Train the three in lock step, test each once; returns what `3.4` says of them.

    With the seed all of them see the same images in the same order, augmented alike: that is all
    that order and augmentation depend on.
    """
    place = {"branch": "", "sum": "_sum"}[experiment.args.residual]
    runs = {
        name: train_runs(experiment, name + place * name.startswith("resnet36"), build, folder)
        for name, build in networks_of(experiment).items()
    }
    show_runs(folder, experiment, "3.4", runs)
    images = len(experiment.packed["test"])
    return {
        name: {"epochs": of[0]["history"], **over_seeds(of, images), "runs": of}
        for name, of in runs.items()
    }


# ------------------------------------------------------------------------ 3.4 the overflow forecast


def block_names(network: nn.Module) -> list[str]:
    """What a value passes through on its way down: stem, residual blocks, logits."""
    kinds = (ResidualBlock, BasicBlock)
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, kinds) or name.endswith(("maxpool", "fc"))
    ]




def resnet34_with_f(classes: int) -> nn.Module:
    """torchvision's ResNet-34 with f for each of its ReLUs: after every sum too."""
    network = resnet34(num_classes=classes)
    for module in network.modules():
        if hasattr(module, "relu"):
            module.relu = SquareLeaky()
    return network


def forecast_all(experiment: Experiment, folder: Path) -> dict:
    """Forecast the networks compared, of which it warns if need be, and the report's."""
    args, device, train = experiment.args, experiment.device, experiment.packed["train"]
    generator = torch.Generator().manual_seed(args.seed)
    packed, _ = train.batch(
        torch.randperm(len(train), generator=generator)[: args.batch_size], device
    )
    images = centre_square(packed, args.image_size)
    compared = networks_of(experiment)
    of_the_report = {
        REPORT: partial(report_network, experiment),
        "resnet34_f": partial(seeded, partial(resnet34_with_f, experiment.classes)),
    }
    found, rows, limit = {}, [], RANGES["fp16"]
    for name, build in (compared | of_the_report).items():
        network = build(args.seed).to(device)
        values = forecast(network, images)
        largest = max(values, key=lambda module: values[module]["peak"])
        peak = values[largest]["peak"]
        beyond = next((module for module, one in values.items() if one["peak"] > limit), None)
        blocks = {short(block): values[short(block)] for block in block_names(network)}
        found[name] = {"peak": peak, "module": largest, "beyond_fp16": beyond, "blocks": blocks}
        verdict = f"beyond fp16 from {beyond} on" if beyond else "within fp16"
        stem, logits = blocks["maxpool"]["peak"], blocks["fc"]["peak"]
        rows.append([name, f"{stem:.3g}", f"{peak:.3g}", largest, f"{logits:.3g}", verdict])
        if beyond and name in compared and cli.rank() == 0:
            print(
                f"warning: overflow forecast: {name} starts with values up to {peak:.2g} in"
                f" {largest}, beyond fp16's largest {limit:.3g} from {beyond} on: within a few"
                " steps they may leave bf16 and fp32 too; try --residual branch, or --diagnose to"
                " see where",
                file=sys.stderr,
            )
    caption = (
        "Overflow forecast, before the first step: largest |output| of any module of new networks"
        f"\nfor one batch; {experiment.tag()}, seed {args.seed}; the pass itself in fp32.\n"
        f"{REPORT}: the report's, f after the sum. resnet34_f: ResNet-34 with f for its ReLUs."
    )
    headers = ["network", "stem", "largest", "in", "logits", "forecast"]
    cli.show_table(folder / "3.4_forecast.txt", caption, headers, rows)
    return found


# -------------------------------------------------------------------------------- 3.4 the doctor












# ---------------------------------------------------------------------- 3.4 one change at a time


def clamped(x: Tensor) -> Tensor:
    """f, at most `CLAMP`."""
    return square_leaky(x).clamp(max=CLAMP)


@dataclass(frozen=True)
class Change:
    """What differs from the report's network or from its recipe."""

    name: str
    network: dict = field(default_factory=dict)
    recipe: dict = field(default_factory=dict)


NONE, BRANCH = Change("none"), Change("f inside the branch alone", network={"residual": "branch"})
TWO_CHANGES = Change(
    "(f inside the branch, rate 0.01)",
    network={"residual": "branch"},
    recipe={"learning_rate": 0.01},
)


def single_changes(half_epochs: float) -> tuple[Change, ...]:
    """What is tried; half of the steps take so many epochs."""
    return (
        NONE,
        BRANCH,
        Change(f"f clamped at {CLAMP}", network={"activation": clamped}),
        Change("last BN's gamma starts at 0", network={"zero_init_residual": True}),
        Change("gradients clipped to norm 1", recipe={"clip_norm": 1.0}),
        Change("learning rate 10 times smaller", recipe={"learning_rate": 0.01}),
        Change("warm-up over half of the steps", recipe={"warmup_epochs": half_epochs}),
        Change("bf16 for fp32", recipe={"precision": "bf16"}),
        Change("AdamW, 0.001, for SGD", recipe={"optimizer": "adamw", "learning_rate": 1e-3}),
        Change("ReLU for f, the control", network={"activation": functional.relu}),
    )


def report_network(experiment: Experiment, seed: int, **changes) -> Normalized:
    """ResNet-36 with f after the sum, or with `changes` of the constructor's arguments."""
    arguments = {"residual": "sum", "width": experiment.args.width, **changes}
    return seeded(partial(ResNet36, experiment.classes, **arguments), seed)


def report_recipe(experiment: Experiment, **changes) -> Recipe:
    """`REPORT_RECIPE`, or with `changes`, at the batch and image size of the flags."""
    return replace(experiment.recipe, **{**REPORT_RECIPE, **changes})


def try_changes(experiment: Experiment) -> dict[str, Followed]:
    """Follow the report's training, and with each single change; the first two are watched.

    All start from the same seed and see the same images.
    """
    steps_per_epoch = training.steps_per_epoch(experiment.packed["train"], experiment.recipe)
    half_epochs = experiment.args.steps / 2 / steps_per_epoch
    return {
        change.name: try_change(experiment, change, watch=change in (NONE, BRANCH))
        for change in single_changes(half_epochs)
    }


def try_change(experiment: Experiment, change: Change, watch: bool = False) -> Followed:
    """Follow the report's training with a change."""
    network = report_network(experiment, experiment.args.seed, **change.network)
    recipe = report_recipe(experiment, **change.recipe)
    return follow(experiment, change.name, network, recipe, watch)


# ------------------------------------------------------------------------------- 3.4 the part


def part_3_4(experiment: Experiment, folder: Path) -> dict:
    """Training beside ResNet-34, and why the report's network diverged."""
    args = experiment.args
    forecasts = forecast_all(experiment, folder)
    networks = {} if args.diagnose else train_networks(experiment, folder)
    changed = try_changes(experiment)
    others = {TWO_CHANGES.name: try_change(experiment, TWO_CHANGES)}
    ours = networks_of(experiment)["resnet36"](args.seed)
    as_given = follow(experiment, "resnet36, as trained", ours, experiment.recipe, watch=True)
    resnet34_f = seeded(partial(resnet34_with_f, experiment.classes), args.seed)
    report = report_recipe(experiment)
    others[RESNET34_F] = follow(experiment, RESNET34_F, resnet34_f, report)
    watched = {"sum": changed[NONE.name], "branch": changed[BRANCH.name], "as trained": as_given}
    _show_doctor(folder, experiment, watched, list(forecasts[REPORT]["blocks"]))
    _show_changes(folder, experiment, changed | others)
    return {
        "networks": networks,
        "forecast": forecasts,
        "divergence": {"network": REPORT, **(watched["sum"].divergence or NOT_FOUND)},
        "beyond_range": {name: one.doctor.beyond for name, one in watched.items()},
        "single_changes": [_change_row(name, one) for name, one in changed.items()],
        "not_single_changes": [_change_row(name, one) for name, one in others.items()],
        "steps": args.steps,
        "chance_loss": math.log(experiment.classes),
        "residual": args.residual,
        "width": args.width,
        "init": experiment.init,
        "recipe": experiment.recipe.as_dict(),
    }


def _change_row(name: str, followed: Followed) -> dict:
    last = followed.losses[-LAST_STEPS:]
    return {
        "change": name,
        "diverged_at_step": followed.divergence and followed.divergence["step"],
        "divergence": followed.divergence,
        "first_loss": followed.losses[0] if followed.losses else None,
        "last_loss": sum(last) / len(last) if last else None,
        "steps": len(followed.losses),
        "seconds": followed.seconds,
    }


def _show_changes(folder: Path, experiment: Experiment, followed: dict[str, Followed]) -> None:
    rows = []
    for name, one in followed.items():
        row, where = _change_row(name, one), one.divergence
        losses = [row[key] and f"{row[key]:.4g}" for key in ("first_loss", "last_loss")]
        end = f"step {where['step']}: {where['direction']} of {where['module']}" if where else "-"
        rows.append([name, *losses, str(row["steps"]), end])
    args = experiment.args
    caption = (
        "One change at a time to the report's network and recipe; in brackets, two changes to it,"
        f" and the report's other network.\n{REPORT_WORDS}, batch"
        f" {args.batch_size}.\n{args.steps} steps, or until a value is not finite; same seed, same"
        f" images; loss: mean of the last {LAST_STEPS} steps,\nof equal logits"
        f" {math.log(experiment.classes):.3f}. {experiment.data}, {args.image_size} px,"
        f" {experiment.device.type}{_width_words(args)}."
    )
    headers = ["change", "first loss", "loss", "finite steps", "diverges in"]
    cli.show_table(folder / "3.4_single_changes.txt", caption, headers, rows)


def _show_doctor(
    folder: Path, experiment: Experiment, watched: dict[str, Followed], blocks: list[str]
) -> None:
    """Where values leave the ranges, all rows that were kept, and the peaks of `blocks`."""
    args, rows, curves = experiment.args, [], {}
    for name, one in watched.items():
        one.doctor.write(folder / f"3.4_doctor_{name.replace(' ', '_')}.csv")
        for precision, limit in RANGES.items():
            where = one.doctor.beyond.get(precision)
            cells = [str(where[key]) for key in ("step", "module", "direction")] if where else []
            rows.append([name, precision, f"{limit:.3g}", *(cells or [None] * 3)])
        steps = sorted({1, one.doctor.step - 1})
        curves[name] = {step: one.doctor.peaks(step, blocks) for step in steps}
    about = f"{experiment.data}, {args.image_size} px{_width_words(args)}"
    caption = (
        "The first value, output or gradient, beyond the range of a precision, in"
        f" {args.steps} steps or until\nthe loss is not finite. sum: the report's network; branch:"
        " the same with f inside the branch alone;\n"
        f"{REPORT_WORDS}.\nas trained: resnet36 as the flags have it,"
        f" f: {args.residual}, {experiment.recipe.optimizer} {experiment.recipe.learning_rate:g},"
        f" {experiment.recipe.precision}. {about}."
    )
    headers = ["activation", "range of", "largest", "step", "module", "direction"]
    cli.show_table(folder / "3.4_doctor.txt", caption, headers, rows)
    limits = {"largest\nof fp16": RANGES["fp16"], "largest of\nbf16, fp32": RANGES["bf16"]}
    title = f"f after the sum, in the branch alone, and resnet36 as trained: {about}"
    plotting.peaks(folder / "3.4_doctor.png", title, blocks, curves, limits)


def _width_words(args: argparse.Namespace, of: str = "") -> str:
    return "" if args.width == 1 else f", {of}{args.width:g} TIMES AS WIDE"


PARTS = {"3.1": part_3_1, "3.2": part_3_2, "3.3": part_3_3, "3.4": part_3_4}


def make_parser() -> cli.ProblemParser:
    """The command line of this problem."""
    parser = cli.ProblemParser(__doc__, PARTS)
    add = parser.add
    add("--data", metavar="DIR", help="folder of class folders; synthetic: embedded drawn flowers")
    add(
        "--classes",
        type=cli.at_least(2),
        help="classes drawn (default: 500, or all where fewer; synthetic: 10)",
    )
    add("--per-class", type=cli.positive, default=600, help="images drawn of each class")
    add("--allow-fewer", action="store_true", help="take smaller classes too (default: no)")
    add(
        "--split",
        type=cli.share,
        nargs=3,
        metavar=("TRAIN", "VAL", "TEST"),
        default=(0.7, 0.15, 0.15),
        help="shares of each class",
    )
    add("--manifest", type=Path, metavar="FILE", help="this data set again (default: draw one)")
    add("--cache", type=Path, default=Path("data/cache"), help="folder of the packed cache")
    add("--skip-bad", action="store_true", help="leave bad images out, listed (default: stop)")
    add("--image-size", type=cli.positive, default=224, help="side of the networks' input in px")
    add("--width", type=positive_number, default=1.0, help="of ResNet-36, in the report's widths")
    add(
        "--residual",
        choices=RESIDUALS,
        default="branch",
        help="f in each branch alone, or after the sum too",
    )
    add(
        "--zero-init-residual",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="of the networks trained: gamma of each block's last batch norm starts at 0",
    )
    add(
        "--diagnose",
        action="store_true",
        help="3.4: the doctor alone, into a folder of its own (default: no)",
    )
    add("--steps", type=cli.positive, default=200, help="3.4: steps of the doctor and each change")
    parallel.add_flag(parser)
    add_flags(parser, epochs=10, batch_size=64, learning_rate=1e-3, warmup_epochs=1, cutmix=0)
    return parser


def positive_number(text: str) -> float:
    """argparse type: a finite number above 0."""
    value = cli.non_negative(text)
    if value == 0:
        raise argparse.ArgumentTypeError("0 is not above 0")
    return value


def main() -> None:
    args = make_parser().parse_args()
    # Of its own, so that the networks trained before are kept.
    cli.run_parts(PARTS, args, "problem3/diagnose" if args.diagnose else "problem3", Experiment)
    parallel.stop()


if __name__ == "__main__":
    sys.exit(cli.guard(main))
