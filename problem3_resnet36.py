"""Problem 3: does a 36-layer ResNet learn with the activation x^2 / 0.2x; why did it diverge?

Method: a class-balanced subset is drawn from class folders, verified and kept as a manifest; the
network has the report's layers, with the activation inside each block's branch or, as in the
report, after the sum. Its training is still to come.

    python problem3_resnet36.py 3.1 --data DIR      draw a data set from class folders
    python problem3_resnet36.py 3.2 3.3             the network and its activation

Hardware: any CPU. Minutes and findings: README.
"""

import argparse
import functools
import math
import sys
import textwrap
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from common import cli, data, manifest, plotting, summary
from common.cli import UserError
from common.experiment import count_parameters

RESIDUALS = ("branch", "sum")
IMAGE_SIZE_PX = 224  # of the report's tables
SAMPLE_CLASSES = 5
DEVIATIONS = (0.5, 1.0, 2.0)  # of the normal input of part 3.3
SAMPLES = 4_000_000
STAGE_BLOCKS = (3, 3, 3, 2)
STAGE_CHANNELS = (128, 256, 512, 1024)


class Experiment:
    """The flags, and the data set that part 3.1 draws."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        manifest.check_split(args.split)
        if "3.1" in args.parts and not args.data:
            raise UserError(
                "part 3.1 needs --data DIR, a folder of class folders, or name other parts: 3.2 3.3"
            )

    @cached_property
    def drawn(self) -> manifest.Manifest:
        """The data set, every image of it decoded once."""
        args = self.args
        if args.manifest:
            return manifest.read(args.manifest, args.data)
        return manifest.draw(
            args.data, args.classes, args.per_class, args.split, args.seed, args.allow_fewer
        )

    def provenance(self) -> dict:
        """The data, for results.json."""
        return {"data": str(self.args.data), "device": "cpu"}


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
    caption = f"Drawn from {experiment.args.data.name}, counted from the manifest."
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
    title = f"{experiment.args.data.name}: {len(chosen)} random classes"
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
        self.activation, self.residual = activation, residual
        conv = functools.partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)
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
        branch = self.activation(self.bn1(self.conv1(x)))
        branch = self.activation(self.bn2(self.conv2(branch)))
        total = self.bn3(self.conv3(branch)) + self.shortcut(x)
        return self.activation(total) if self.residual == "sum" else total


class ResNet36(nn.Module):
    """The report's network: 36 weighted layers on the main path, `width` times as wide.

    `activation` is a function, so that torchsummary lists the rows that the report does.
    """

    def __init__(
        self,
        classes: int = 500,
        activation: Callable[[Tensor], Tensor] = square_leaky,
        residual: str = "branch",
        width: float = 1,
    ):
        super().__init__()
        if residual not in RESIDUALS:
            raise ValueError(f"residual {residual!r} is not one of {', '.join(RESIDUALS)}")
        self.activation = activation
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

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, 3, H, W)."""
        x = self.activation(self.bn1(self.conv1(images)))
        x = self.maxpool(self.activation(self.bn2(self.conv2(x))))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return self.fc(self.avgpool(x).flatten(1))


def part_3_2(experiment: Experiment, folder: Path) -> dict:
    """ResNet-36: tables and counts."""
    args = experiment.args
    classes = args.classes or manifest.CLASSES
    build = functools.partial(ResNet36, classes, residual=args.residual, width=args.width)
    network = summary.without_weights(build)
    table = summary.summary_table(network, (3, IMAGE_SIZE_PX, IMAGE_SIZE_PX))
    width = "" if args.width == 1 else f", {args.width:g} TIMES AS WIDE AS THE REPORT'S"
    caption = f"ResNet-36, {classes} classes, activation: {args.residual}{width}."
    cli.show_text(folder / "3.2_summary.txt", f"{caption}\n{table}")
    layers = len(weighted_layers(network))
    print(f"{layers} weighted layers on the main path, {count_parameters(network):,} parameters")
    return {
        "parameters": count_parameters(network),
        "weighted_layers": layers,
        "classes": classes,
        "residual": args.residual,
        "width": args.width,
    }


def weighted_layers(network: ResNet36) -> list[str]:
    """Names of the convolutions and linear layers on the main path: shortcuts do not count."""
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and "shortcut" not in name
    ]


def part_3_3(experiment: Experiment, folder: Path) -> dict:
    """The activation: its curve, and what it does to a normal input."""
    x = torch.linspace(-3, 3, 601, dtype=torch.float64)
    functions = {"f(x) = x^2, 0.2x": square_leaky, "ReLU": functional.relu}
    curves = {name: (of(x), derivative(of, x)) for name, of in functions.items()}
    plotting.functions(folder / "3.3_activation.png", x, curves)
    moments = normal_moments(experiment.args.seed)
    _show_moments(folder, moments)
    return {"moments": moments}


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


PARTS = {"3.1": part_3_1, "3.2": part_3_2, "3.3": part_3_3}


def make_parser() -> cli.ProblemParser:
    """The command line of this problem."""
    parser = cli.ProblemParser(__doc__, PARTS)
    add = parser.add
    add("--data", type=Path, metavar="DIR", help="folder of class folders, for part 3.1")
    add("--classes", type=cli.at_least(2), help="classes drawn (default: 500, or all where fewer)")
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
    add("--width", type=positive_number, default=1.0, help="of ResNet-36, in the report's widths")
    add("--residual", choices=RESIDUALS, default="branch", help="where a block's activation is")
    return parser


def positive_number(text: str) -> float:
    """argparse type: a finite number above 0."""
    value = cli.non_negative(text)
    if value == 0:
        raise argparse.ArgumentTypeError("0 is not above 0")
    return value


def main() -> None:
    args = make_parser().parse_args()
    cli.run_parts(PARTS, args, "problem3", Experiment)


if __name__ == "__main__":
    sys.exit(cli.guard(main))
