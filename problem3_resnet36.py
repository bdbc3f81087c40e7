"""Problem 3: does a 36-layer ResNet learn with the activation x^2 / 0.2x; why did it diverge?

Method: images are drawn from class folders, verified and kept as a manifest; the report's network
with the activation inside each block's branch is trained beside ResNet-34 and itself with ReLU; the
report's form, with it after the sum, is watched until it diverges, and changed one thing at a time.

    python problem3_resnet36.py --data DIR             all parts, DIR holds class folders
    python problem3_resnet36.py --data synthetic       all parts, embedded data
    python problem3_resnet36.py 3.4 --data DIR --diagnose     the doctor alone, no training

Hardware: any CPU or GPU; at 64 px and half the width, three seeds of three networks take 1.5 hours
on 2 CPU cores.
Finding (README, outputs/published/problem3): with the activation inside the branch the network
learns, 56 % of ten ImageNet classes at 64 px against 65 % with ReLU in its place; after the sum, as
in the report, it squares the skip path and leaves the range of fp32 in the second step.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out
import common.start  # noqa: F401 it handles Ctrl-C while the others load

# isort: split
import argparse
import hashlib
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models import resnet34

from common import cli, job
from common.data import manifest, prototype, sets
from common.data.augment import centre_square
from common.errors import UserError, guard
from common.networks import activations, doctor, summary
from common.networks.doctor import Followed
from common.networks.normalized import Normalized, seeded
from common.reporting import plotting, problem3, results
from common.reporting.results import Findings
from common.training import loop, parallel, runs
from common.training.precision import with_fp32_convolutions
from common.training.recipe import Recipe, add_flags
from common.training.runs import NetworkSpec, Setup

NAME_ENDS = {"branch": "", "sum": "_sum"}  # of networks, by where their activation is
RESIDUALS = tuple(NAME_ENDS)
REPORT_SIZE = (3, 224, 224)  # of the report's tables: channels, height, width
STAGE_BLOCKS, STAGE_CHANNELS = (3, 3, 3, 2), (128, 256, 512, 1024)
DEVIATIONS, SAMPLES = (0.5, 1.0, 2.0), 4_000_000  # of the normal input of part 3.3
TIMED_IMAGES, REPEATS = 4, 9  # of the activation's timing
BLOCK = re.compile(r"maxpool|layer\d\.\d+|fc")  # what a value passes through on its way down
CLAMP = 6  # as ReLU6
LAST_STEPS = 10  # that a loss reached is averaged over
# The report's network and its training; the same training with f inside the branch alone.
REPORT, BRANCH_BY_REPORT = "resnet36_sum", "resnet36_report_recipe"
REPORT_RECIPE = {  # He et al. 2016's, as the report does not print its own
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "schedule": "constant",
    "weight_decay": 1e-4,
    "warmup_epochs": 0,
    "label_smoothing": 0,
    "ema_decay": 0,
    "clip_norm": 0,
    "precision": "fp32",
    "compile": False,
}
NOT_FOUND = dict.fromkeys(("step", "module", "direction"))
Activation = Callable[[], nn.Module]


# ---------------------------------------------------------------------------- f, the activation
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
    """f(x) = x^2 for x > 0, 0.2 x for x < 0, elementwise; f'(0) is 0, NaN and infinities pass."""
    return _SquareLeaky.apply(x)[0]


class SquareLeaky(nn.Module):
    """The activation f as a module: `square_leaky` of what comes in."""

    def forward(self, x: Tensor) -> Tensor:
        """f(x), the same shape and dtype as x."""
        return square_leaky(x)


# --------------------------------------------------------------------------- 3.1 the data set
@dataclass(frozen=True)
class Prepared:
    """What the parts share; the data set, `drawn`, is None where no part needs images."""

    setup: Setup
    drawn: manifest.Manifest | None
    draw_seconds: float


def part_3_1(prepared: Prepared) -> Findings:
    """The prototype data set: catalogue, manifest, samples."""
    setup, drawn, listing = prepared.setup, prepared.drawn, prepared.drawn.csv_bytes()
    result = {
        **drawn.catalogue(),
        "quarantined": drawn.quarantined,
        "left_out": drawn.left_out,
        "manifest_sha256": hashlib.sha256(listing).hexdigest(),
    }
    samples = sets.sample_pictures(setup.sources, setup.args.seed)
    return Findings(
        result,
        tables={"3.1_catalogue.txt": problem3.catalogue_table(result, setup.data)},
        texts={"3.1_manifest.csv": listing},
        figures={"3.1_samples.png": problem3.samples_figure(setup.data, *samples)},
    )


# ---------------------------------------------------------------------------- 3.2 the network
class ResidualBlock(nn.Module):
    """Three 3x3 convolutions with batch norm, and a 1x1 shortcut where the shape changes.

    `residual` says where the activation is: "branch", between batch norm and the next convolution
    alone; "sum", after the residual sum too, as in He et al. 2016 and the report.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, activation: Activation, residual: str
    ):
        super().__init__()
        conv = partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)
        self.conv1, self.bn1 = conv(inputs, outputs, stride=stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.conv3, self.bn3 = conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.activation1, self.activation2 = activation(), activation()
        self.activation3 = activation() if residual == "sum" else None
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        branch = self.activation1(self.bn1(self.conv1(x)))
        branch = self.activation2(self.bn2(self.conv2(branch)))
        total = self.bn3(self.conv3(branch)) + self.shortcut(x)
        return total if self.activation3 is None else self.activation3(total)


class ResNet36(nn.Module):
    """The report's network: 36 weighted layers on the main path, `width` times as wide.

    `activation` makes the module of each place that has one, so that each has a name.
    `zero_init_residual`: each branch's last batch norm starts at gamma 0, as torchvision's does.
    """

    def __init__(
        self,
        classes: int = 500,
        activation: Activation = SquareLeaky,
        residual: str = "branch",
        width: float = 1,
        zero_init_residual: bool = False,
    ):
        super().__init__()
        if residual not in RESIDUALS:
            raise ValueError(f"residual {residual!r} is not one of {', '.join(RESIDUALS)}")
        half, *channels = (max(1, round(width * c)) for c in (64, *STAGE_CHANNELS))
        self.conv1 = nn.Conv2d(3, half, 7, padding=1, bias=False)
        self.bn1, self.activation1 = nn.BatchNorm2d(half), activation()
        self.conv2 = nn.Conv2d(half, channels[0], 7, stride=2, padding=1, bias=False)
        self.bn2, self.activation2 = nn.BatchNorm2d(channels[0]), activation()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs = channels[0]
        for stage, (outputs, blocks) in enumerate(zip(channels, STAGE_BLOCKS, strict=True), 1):
            layer = nn.Sequential()
            for block in range(blocks):
                stride = 2 if stage > 1 and block == 0 else 1
                layer.append(ResidualBlock(inputs, outputs, stride, activation, residual))
                inputs = outputs
            self.add_module(f"layer{stage}", layer)
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
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def part_3_2(prepared: Prepared) -> Findings:
    """ResNet-36: tables and counts."""
    args = prepared.setup.args
    classes = args.classes or manifest.CLASSES
    about = {"residual": args.residual, "width": args.width}
    network = summary.without_weights(partial(ResNet36, classes, **about))
    layers = len(summary.weighted_layers(network, skip="shortcut"))
    parameters = summary.count_parameters(network)
    job.say(f"{layers} weighted layers on the main path, {parameters:,} parameters")
    result = {"parameters": parameters, "weighted_layers": layers, "classes": classes, **about}
    text = problem3.summary_text(result, summary_tables(network))
    return Findings(result, tables={"3.2_summary.txt": text})


def summary_tables(network: ResNet36) -> dict[str, str]:
    """torchsummary's tables at 224 px of the stem, of each stage on its own, and of the whole.

    As in the report's Figures 22 to 24 the activation is not listed.
    """
    stem = (network.conv1, network.bn1, network.conv2, network.bn2, network.maxpool)
    parts = {"stem": nn.Sequential(*stem)}
    parts |= {f"layer{stage}": network.get_submodule(f"layer{stage}") for stage in (1, 2, 3, 4)}
    shown = {"input_size": REPORT_SIZE, "hide": ("SquareLeaky",)}
    whole = summary.summary_table(network, **shown)
    return {**summary.tables_in_turn(parts, **shown), "whole network": whole}


# ------------------------------------------------------------------------- 3.3 the activation
def where_form(x: Tensor) -> Tensor:
    """f as it is usually written, which `square_leaky` is measured against."""
    return torch.where(x > 0, x * x, 0.2 * x)


FORMS = {"f": square_leaky, "where": where_form, "ReLU": torch.relu}
# Each with what it is for x > 0 and x < 0, a x^p as (a, p).
POWERS = {"f": (square_leaky, (1, 2), (0.2, 1)), "ReLU": (torch.relu, (1, 1), (0, 1))}


def part_3_3(prepared: Prepared) -> Findings:
    """The activation: its curve, and what it does to a normal input."""
    device, seed = prepared.setup.device, prepared.setup.args.seed
    x = torch.linspace(-3, 3, 601, dtype=torch.float64)
    named = {"f(x) = x^2, 0.2x": square_leaky, "ReLU": torch.relu}
    curves = {name: (f(x), activations.derivative(f, x)) for name, f in named.items()}
    moments = activations.normal_moments(POWERS, DEVIATIONS, SAMPLES, seed)
    shapes = activations.output_shapes(ResNet36, SquareLeaky, REPORT_SIZE)
    costs = activations.costs_by_shape(FORMS, shapes, TIMED_IMAGES, REPEATS, device)
    ratio = partial(activations.cost_ratio, costs)
    result = {
        "time_vs_where": ratio("seconds", "f", "where"),
        "memory_vs_where": ratio("bytes", "f", "where"),
        "time_vs_relu": ratio("seconds", "f", "ReLU"),
        "moments": moments,
        "costs": costs,
    }
    return Findings(
        result,
        tables={
            "3.3_moments.txt": problem3.moments_table(result, SAMPLES),
            "3.3_cost.txt": problem3.cost_table(result, TIMED_IMAGES, REPEATS, device.type),
        },
        figures={"3.3_activation.png": partial(plotting.functions, x=x, curves=curves)},
    )


# --------------------------------------------------- 3.4 the networks, and what they start with
def compared_networks(setup: Setup) -> dict[str, NetworkSpec]:
    """The networks compared, by name: ResNet-34, ResNet-36 by the flags, and that with ReLU for f.

    With the seed all of them see the same images in the same order, augmented alike: that is all
    that order and augmentation depend on.
    """
    args, classes, end = setup.args, setup.classes, NAME_ENDS[setup.args.residual]
    gammas = {"zero_init_residual": args.zero_init_residual}
    ours = {"residual": args.residual, "width": args.width, **gammas}
    compared = {
        "resnet34": (partial(resnet34, num_classes=classes), "ReLU", gammas),
        f"resnet36{end}": (partial(ResNet36, classes, SquareLeaky), "SquareLeaky", ours),
        f"resnet36_relu{end}": (partial(ResNet36, classes, nn.ReLU), "ReLU", ours),
    }
    return {name: NetworkSpec(name, partial(new_network, *how)) for name, how in compared.items()}


def new_network(build: Callable, activation: str, how: dict, seed: int) -> tuple[nn.Module, dict]:
    """Build a network for images in [0, 1] as it starts from a seed, and tell its identity."""
    identity = {"init": "scratch", "activation": activation, **how}
    return seeded(partial(build, **how), seed), identity


def name_beside_report(name: str) -> str:
    """A network's name beside the report's: with --residual sum both are resnet36_sum."""
    return f"{name}_flags_recipe" if name == REPORT else name


def report_network(setup: Setup, **changes) -> Normalized:
    """The report's ResNet-36, f after the sum, or with `changes` of the constructor's arguments."""
    arguments = {"residual": "sum", "width": setup.args.width, **changes}
    return seeded(partial(ResNet36, setup.classes, **arguments), setup.args.seed)


def resnet34_f(setup: Setup) -> Normalized:
    """torchvision's ResNet-34 with f for each of its ReLUs: after every sum too."""
    network = seeded(partial(resnet34, num_classes=setup.classes), setup.args.seed)
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.ReLU):
            network.set_submodule(name, SquareLeaky())
    return network


def forecast_all(setup: Setup) -> dict[str, dict]:
    """Forecast all networks, as `doctor.summarise` does; warn of overflow in one to be trained."""
    args, train = setup.args, setup.packed["train"]
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(args.seed))
    packed, _ = train.batch(order[: args.batch_size], setup.device)
    images, forecasts = centre_square(packed, args.image_size), {}

    def forecast(network: nn.Module) -> dict:
        return doctor.summarise(doctor.forecast(network.to(setup.device), images), BLOCK)

    for spec in compared_networks(setup).values():
        name, (network, _) = name_beside_report(spec.name), spec.build(args.seed)
        values = forecast(network)
        forecasts[name] = values
        if values["beyond_fp16"]:
            job.say(problem3.overflow_warning(name, values, doctor.RANGES["fp16"]), file=sys.stderr)
    forecasts[REPORT] = forecast(report_network(setup))
    forecasts["resnet34_f"] = forecast(resnet34_f(setup))
    return forecasts


# ------------------------------------------------------- 3.4 the divergence, one change at a time
class ClampedSquareLeaky(nn.Module):
    """The activation f with an upper bound, `CLAMP`."""

    def forward(self, x: Tensor) -> Tensor:
        """min(f(x), CLAMP), the same shape and dtype as x."""
        return square_leaky(x).clamp(max=CLAMP)


BRANCH, TWO_CHANGES = "f inside the branch alone", "(f inside the branch, rate 0.01)"
RESNET34_F = "(ResNet-34 with f for its ReLUs)"


def single_changes(half_epochs: float) -> dict[str, tuple[dict, dict]]:
    """The single changes to the report's training, by name.

    Each is (arguments of `ResNet36`, fields of the recipe). Half of the steps that are followed
    take `half_epochs`.
    """
    return {
        "none": ({}, {}),
        BRANCH: ({"residual": "branch"}, {}),
        f"f clamped at {CLAMP}": ({"activation": ClampedSquareLeaky}, {}),
        "last BN's gamma starts at 0": ({"zero_init_residual": True}, {}),
        "gradients clipped to norm 1": ({}, {"clip_norm": 1.0}),
        "learning rate 10 times smaller": ({}, {"learning_rate": 0.01}),
        "warm-up over half of the steps": ({}, {"warmup_epochs": half_epochs}),
        "bf16 for fp32": ({}, {"precision": "bf16"}),
        "AdamW, 0.001, for SGD": ({}, {"optimizer": "adamw", "learning_rate": 1e-3}),
        "ReLU for f, the control": ({"activation": nn.ReLU}, {}),
    }


def try_changes(setup: Setup) -> dict[str, Followed]:
    """Follow the report's training, and with each single change; the first two are watched.

    All start from the same seed and see the same images.
    """
    steps_per_epoch = loop.steps_per_epoch(setup.packed["train"], setup.recipe)
    changes = single_changes(setup.args.steps / 2 / steps_per_epoch)
    return {
        name: follow_report(setup, name, report_network(setup, **arguments), in_recipe)
        for name, (arguments, in_recipe) in changes.items()
    }


def follow_report(setup: Setup, name: str, network: nn.Module, in_recipe: dict) -> Followed:
    """Follow a network by the report's recipe, or with changes in it."""
    recipe = replace(setup.recipe, **{**REPORT_RECIPE, **in_recipe})
    return follow(setup, name, network, recipe, watch=name in ("none", BRANCH))


def follow(setup: Setup, name: str, network: nn.Module, recipe: Recipe, watch: bool) -> Followed:
    """Train for --steps or until a value that counts is not finite, and say how it went."""
    network = with_fp32_convolutions(network, recipe.precision, setup.device)
    train, steps = setup.packed["train"], setup.args.steps
    followed = doctor.follow(network, train, recipe, setup.device, steps, watch)
    outcome = f"diverges in step {followed.last_step}" if followed.divergence else "finite"
    job.say(f"{name}: {outcome}, {followed.seconds:.0f} s")
    return followed


def part_3_4(prepared: Prepared) -> Findings:
    """Training beside ResNet-34, and why the report's network diverged."""
    setup, args = prepared.setup, prepared.setup.args
    forecasts, specs = forecast_all(setup), compared_networks(setup)
    job.say(", ".join([setup.tag, *problem3.remarks(args.residual, args.width)]))
    trained, recipe = {}, setup.recipe
    ours = specs[f"resnet36{NAME_ENDS[args.residual]}"]
    if not args.diagnose:
        trained = {name: runs.train_seeds(setup, spec) for name, spec in specs.items()}
        recipe = replace(recipe, precision=trained[ours.name][0]["precision"])
    changed = try_changes(setup)
    resnet36, (network, _) = name_beside_report(ours.name), ours.build(args.seed)
    watched = {
        REPORT: changed["none"],
        BRANCH_BY_REPORT: changed[BRANCH],
        resnet36: follow(setup, f"{resnet36}, as trained", network, recipe, watch=True),
    }
    in_branch = report_network(setup, residual="branch")
    others = {
        TWO_CHANGES: follow_report(setup, TWO_CHANGES, in_branch, {"learning_rate": 0.01}),
        RESNET34_F: follow_report(setup, RESNET34_F, resnet34_f(setup), {}),
    }
    result = {
        "networks": {
            name: {"epochs": network["runs"][0]["history"], **network}
            for name, network in runs.with_means(setup, trained).items()
        },
        "forecast": forecasts,
        "divergence": {"network": REPORT, **(watched[REPORT].divergence or NOT_FOUND)},
        "beyond_range": {name: followed.beyond for name, followed in watched.items()},
        "single_changes": change_rows(changed),
        "not_single_changes": change_rows(others),
        "steps": args.steps,
        "chance_loss": math.log(setup.classes),
        "residual": args.residual,
        "width": args.width,
        "init": "scratch" + (", last gammas at 0" if args.zero_init_residual else ""),
        "recipe": recipe.as_dict(),
    }
    return findings_3_4(setup, result, trained, watched)


def change_rows(trainings: dict[str, Followed]) -> list[dict]:
    """A row a training that was followed: its change, and the keys of `Followed.result`."""
    return [{"change": name, **followed.result(LAST_STEPS)} for name, followed in trainings.items()]


def findings_3_4(
    setup: Setup, result: dict, trained: dict[str, list[dict]], watched: dict[str, Followed]
) -> Findings:
    """Put together 3.4's findings: its result, the tables, the doctor's rows and the figures."""
    args, blocks = setup.args, [*result["forecast"][REPORT]["blocks"]]
    remarks = problem3.remarks(args.residual, args.width)
    as_trained = setup.tag_in(result["recipe"]["precision"])
    trained_tag = ", ".join([as_trained, *remarks, f"seed {args.seed}"])
    about = [f"{args.image_size} px", setup.device.type, *problem3.width_words(args.width)]
    tag = ", ".join([setup.data, *about])
    tables, figures, texts, curves = {}, {}, {}, {}
    if trained:
        caption = ", ".join([*remarks, f"init {result['init']}"])
        tables, figures = runs.training_report(setup, "3.4", trained, caption)
    doctors = (result, doctor.RANGES, LAST_STEPS, REPORT_RECIPE, trained_tag, tag)
    tables |= problem3.doctor_tables(*doctors)
    for name, followed in watched.items():
        rows, steps = followed.rows, (1, followed.last_step)
        texts[f"3.4_doctor_{name}.csv"] = doctor.csv_text(rows)
        curves[name] = {step: doctor.peaks(rows, step, blocks) for step in steps}
    figures["3.4_doctor.png"] = problem3.doctor_figure(curves, blocks, doctor.RANGES, tag)
    return Findings(result, tables, texts, figures)


# ------------------------------------------------------------------------------ command line
PARTS = {"3.1": part_3_1, "3.2": part_3_2, "3.3": part_3_3, "3.4": part_3_4}


def make_parser() -> cli.ProblemParser:
    """The command line of this problem."""
    parser = cli.ProblemParser(__doc__, PARTS)
    add = parser.add
    prototype.add_flags(parser)
    add("--cache", type=cli.path, default=Path("data/cache"), help="folder of the packed cache")
    add("--skip-bad", action="store_true", help="leave bad images out, listed (default: stop)")
    add("--image-size", type=cli.at_least(32, 2048), default=224, help="side of the input in px")
    add("--width", type=cli.up_to(8), default=1.0, help="of ResNet-36, in the report's widths")
    residual = "f in each branch alone, or after the sum too"
    add("--residual", choices=RESIDUALS, default="branch", help=residual)
    gammas = "of the networks trained: gamma of each block's last batch norm starts at 0"
    add("--zero-init-residual", action=argparse.BooleanOptionalAction, default=True, help=gammas)
    alone = "3.4: the doctor alone, into a folder of its own (default: no)"
    add("--diagnose", action="store_true", help=alone)
    add("--steps", type=cli.positive, default=200, help="3.4: steps of the doctor and each change")
    parallel.add_flag(parser)
    add_flags(parser, epochs=10, batch_size=64, learning_rate=1e-3, warmup_epochs=1, cutmix=0)
    return parser


def prepare(args: argparse.Namespace, folder: Path) -> Prepared:
    """Check the flags, draw the data set where a part needs it, and set up trainings.

    Raises:
        UserError: flags that can't be followed, or a data set that can't be drawn.
    """
    needing = [part for part in args.parts if part in ("3.1", "3.4")]
    prototype.check_flags(args, needing)
    parallel.start(parallel.pick_device(args.device, args.gpus))
    if args.diagnose and "3.4" not in args.parts:
        raise UserError("--diagnose is of part 3.4; name it too, or leave the parts out")
    start = time.perf_counter()
    drawn = prototype.draw(args) if needing else None
    sources = drawn.sets() if drawn else {}
    if sources:
        parallel.check_images(min(len(source.labels) for source in sources.values()))
    seconds = time.perf_counter() - start
    return Prepared(runs.set_up(args, prototype.name(args), sources, folder), drawn, seconds)


def main() -> None:
    """Run the parts that the command line asks for."""
    args = make_parser().parse_args()
    # Of its own, so that the networks trained before are kept.
    folder = args.out / ("problem3/diagnose" if args.diagnose else "problem3")
    prepared = prepare(args, results.open_folder(folder, args.parts))

    def publish(number: str, findings: Findings, seconds: float) -> None:
        if number == "3.1":
            seconds += prepared.draw_seconds
        about = prepared.setup.provenance()
        results.publish(folder, number, findings, results.provenance(args.seed, seconds, **about))

    cli.run_parts(PARTS, args.parts, prepared, publish)
    parallel.stop()


if __name__ == "__main__":
    sys.exit(guard(main))
