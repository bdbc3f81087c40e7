"""Why the report printed 6.4761 and then NaN: first passes and first steps, without any check.

What is measured is kept one by one, so that a study that was stopped goes on.
"""

import argparse
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from common import job
from common.data import streams
from common.data.augment import Draws, colour_jitter, random_resized_crop, to_float
from common.data.packed import Packed, pack
from common.errors import UserError
from common.networks.doctor import first_pass, peak_at_the_border, with_float64_batch_norms
from common.networks.normalized import Normalized
from common.networks.resnet36 import Activation, ResNet36, resnet34_with
from common.networks.square_leaky import ClampedSquareLeaky, SquareLeaky, WhereForm
from common.reporting import studies
from common.reporting.results import Findings
from common.studies import counting
from common.studies.divergence import unchecked_steps
from common.training.result_cache import ResultCache
from common.training.runs import Setup

SCALINGS = ("normalised", "0-1", "0-255")  # of the network's input
# How pictures are varied, as (least share of the area, jitter), or not: crops as Szegedy et al.
# 2015 take them, mirrored; jitter of brightness, contrast and saturation.
PICTURES = {"crops, jitter": (0.08, 0.4), "crops": (0.08, 0), "whole": None}
OUTPUTS = 650  # of the report's networks in training: its first loss is ln 650
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
STEP_IMAGES = {"resnet36": 64, "resnet34": 32}  # the report's batch of ResNet-34 is 32
FIRST_STEPS = 3
VARIED = {"width": (0.25, 0.5), "residual": ("branch",), "init": ("he",)}
VARIED["scaling"] = SCALINGS[1:]
# Whose peaks are told: the stem, the blocks, and what the first batch norms after a squared skip
# path take in.
TOLD = re.compile(r"maxpool|layer\d\.\d+|layer2\.0\.(conv1|shortcut\.0)|fc")
# Of a step in fp32 of the report's network and of ResNet-34, by image of 224 px; measured.
STEP_BYTES = 170e6


@dataclass(frozen=True)
class Case:
    """A first pass: the batch, the network's arguments, how its input is scaled, the seed."""

    images: int
    image_size_px: int = 224
    width: float = 1
    residual: str = "sum"
    init: str = "pytorch"
    scaling: str = "normalised"
    pictures: str = "crops, jitter"
    seed: int = 0


@dataclass(frozen=True)
class Steps:
    """A training without checks: a network, its form and optimiser in words, and how long.

    about: what else a result says of it, plain values. steps: at most. autopsy: whether the first
    batch norm is looked for that makes gradients NaN.
    """

    name: str
    build: Callable[[], nn.Module]
    images: int
    steps: int
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    about: Mapping = field(default_factory=dict)
    autopsy: bool = False


@dataclass(frozen=True)
class Source:
    """Batches of a packed split, its classes spread over the OUTPUTS; few images repeat."""

    split: Packed
    device: torch.device

    def batch(self, case: Case, step: int = 0) -> tuple[Tensor, Tensor]:
        """The images of a step, float (N, 3, S, S) as the network takes them, and their labels.

        Which ones, and how they are varied, is by the case's seed.
        """
        generator = streams.generator(case.seed, streams.ORDER, 0)
        order = torch.randperm(len(self.split), generator=generator)
        places = torch.arange(step * case.images, (step + 1) * case.images) % len(order)
        packed, labels = self.split.batch(order[places], self.device)
        size = {"size": case.image_size_px, "mode": "bilinear", "antialias": True}
        images = functional.interpolate(to_float(packed), **size)
        if varied := PICTURES[case.pictures]:
            area_min, jitter = varied
            draws = Draws(case.seed, streams.AUGMENT, 0, step, case.images, self.device)
            images = random_resized_crop(images, case.image_size_px, area_min, draws)
            images = colour_jitter(images, jitter, draws)
        if case.scaling == "normalised":
            images = Normalized(nn.Identity()).to(self.device)(images)
        elif case.scaling == "0-255":
            images = images * 255
        spread = OUTPUTS // len(self.split.class_names)
        return images.contiguous(memory_format=torch.channels_last), labels * spread


def first_losses(cases: Iterable[Case], source: Source, cache: ResultCache) -> list[dict]:
    """The first pass of every case: its fields, classes, and the keys of `first_pass`."""
    rows = []
    for case in cases:

        def measure(case: Case = case) -> dict:
            network = report_resnet36(case, SquareLeaky)
            network = network.to(source.device, memory_format=torch.channels_last)
            return first_pass(network, *source.batch(case), TOLD)

        about = {**asdict(case), "classes": OUTPUTS}
        found = cache.get("first_pass", {**about, "peaks_of": TOLD.pattern}, measure)
        words = ", ".join(f"{key} {value}" for key, value in about.items())
        job.say(
            f"{words}: first loss {found['first_loss']:.6g}, infinite from"
            f" {found['infinite_from']}, {found['dead_share']:.0%} of the channels dead"
        )
        rows.append({**about, **found})
    return rows


def first_steps(
    trainings: Iterable[Steps], source: Source, base: Case, cache: ResultCache
) -> list[dict]:
    """The first steps of every training: network, optimizer, images, and what it is about.

    Image size, width and seed are those of `base`. A batch is halved until a step fits into the
    memory that is free, and said to be smaller. Further keys are those of `unchecked_steps`.
    """
    rows = []
    for training in trainings:
        about = {"network": training.name, "optimizer": training.optimizer, **training.about}
        about |= {"learning_rate": training.learning_rate, "images": training.images}
        about |= {"image_size_px": base.image_size_px, "width": base.width, "seed": base.seed}
        asked = {"steps": training.steps, "autopsy": training.autopsy}
        if cache.find("steps", {**about, **asked}) is None:
            about["images"] = fitting_images(training, base, source.device)

        def measure(training: Steps = training, images: int = about["images"]) -> dict:
            network = training.build().to(source.device, memory_format=torch.channels_last)
            case = replace(base, images=images)
            batches = (source.batch(case, step) for step in range(training.steps))
            optimizer = make_optimizer(training, network)
            return unchecked_steps(network, batches, optimizer, training.autopsy)

        found = cache.get("steps", {**about, **asked}, measure)
        losses = ", ".join(f"{loss:.6g}" for loss in found["losses"][:3])
        bad = f"{len(found['non_finite_gradients'])} of {found['tensors']} gradients not finite"
        words = ", ".join(str(value) for value in about.values())
        job.say(f"{words}: losses {losses}; in step 1 {bad}; {found['seconds']:.1f} s a step")
        rows.append({**about, **found})
    return rows


def make_optimizer(training: Steps, network: nn.Module) -> torch.optim.Optimizer:
    """SGD as in He et al. 2016 (momentum 0.9, weight decay 1e-4), or Adam as PyTorch has it."""
    if training.optimizer == "sgd":
        options = {"momentum": 0.9, "weight_decay": 1e-4}
        return torch.optim.SGD(network.parameters(), lr=training.learning_rate, **options)
    return torch.optim.Adam(network.parameters(), lr=training.learning_rate)


def fitting_images(training: Steps, base: Case, device: torch.device) -> int:
    """The training's batch, halved until a step fits into the memory that is free."""
    image_bytes = STEP_BYTES * base.width * (base.image_size_px / 224) ** 2
    images = training.images
    while images > 2 and images * image_bytes > free_bytes(device):
        images //= 2
    if images < training.images:
        job.say(f"{training.name}: {images} images a step for {training.images}: memory is short")
    return images


def free_bytes(device: torch.device) -> float:
    """The memory that is free, where the system tells it; else without end."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what PyTorch holds without need
        return torch.cuda.mem_get_info(device)[0]
    information = Path("/proc/meminfo")  # of Linux
    if not information.exists():
        return math.inf
    return 1024 * int(re.search(r"MemAvailable: *(\d+) kB", information.read_text())[1])


def first_pass_cases(args: argparse.Namespace) -> list[Case]:
    """The first passes: the report's network by batch size, and with each one thing varied."""
    of_report = {"image_size_px": args.image_size, "width": args.width, "seed": args.seed}
    seeds = [args.seed + index for index in range(args.seeds)]
    varied = [{"seed": seed, "pictures": kind} for kind in PICTURES for seed in seeds]
    varied += [{"image_size_px": size} for size in (64, 128) if size < args.image_size]
    varied += [{name: value} for name, values in VARIED.items() for value in values]
    cases = [Case(images, **{**of_report, **more}) for more in varied for images in BATCHES]
    # The last map of an image of 40 px is 1x1: batch norm needs two of them.
    return [case for case in dict.fromkeys(cases) if case.images > 1 or case.image_size_px > 40]


def base_of_steps(args: argparse.Namespace, cases: Iterable[Mapping]) -> Case:
    """What the first steps start from: the first of the seeds whose network is dead, if one is."""
    base = Case(STEP_IMAGES["resnet36"], args.image_size, args.width, seed=args.seed)
    for seed in range(args.seed, args.seed + args.seeds):
        start = replace(base, seed=seed)
        if any(case["dead_from"] and asdict(start).items() <= case.items() for case in cases):
            return start
    return base


def report_resnet36(base: Case, activation: Activation, **changes) -> nn.Module:
    """The report's network as it starts by a case, or with changes of its arguments."""
    torch.manual_seed(base.seed)
    float64 = changes.pop("float64_batch_norms", False)
    of_case = {"residual": base.residual, "width": base.width, "init": base.init}
    network = ResNet36(OUTPUTS, activation, **{**of_case, **changes})
    return with_float64_batch_norms(network) if float64 else network


def first_trainings(base: Case) -> list[Steps]:
    """The first steps: f in both forms by both optimisers in both networks, and ReLU in one."""
    forms = {"where": WhereForm, "ours": SquareLeaky, "ReLU": nn.ReLU}
    rates = {"sgd": 0.1, "adam": 1e-3}
    builds = {"resnet36": partial(report_resnet36, base), "resnet34": partial(_resnet34, base)}
    trainings = []
    for name, form, optimizer in product(builds, forms, rates):
        if (form, optimizer) != ("ReLU", "adam"):
            build, steps = partial(builds[name], forms[form]), (STEP_IMAGES[name], FIRST_STEPS)
            autopsy, about = (form, optimizer) == ("where", "sgd"), {"form": form}
            how = (optimizer, rates[optimizer], about, autopsy)
            trainings.append(Steps(name, build, *steps, *how))
    return trainings


def _resnet34(base: Case, activation: Activation) -> nn.Module:
    return resnet34_with(activation, OUTPUTS, base.seed).network


def cures(base: Case, steps: int) -> list[Steps]:
    """The report's training changed in one thing at a time, at the report's size, f as `where`."""
    f = {"activation": WhereForm}
    changes = {  # arguments of the network, learning rate
        "none": (f, 0.1),
        "f off the sums": ({**f, "residual": "branch"}, 0.1),
        "batch norm in float64": ({**f, "float64_batch_norms": True}, 0.1),
        "f clamped at 6, another function": ({"activation": ClampedSquareLeaky}, 0.1),
        "gammas start at 0.1": ({**f, "gamma": 0.1}, 0.1),
        "last BN's gamma starts at 0": ({**f, "zero_init_residual": True}, 0.1),
        "learning rate 1,000 times smaller": (f, 1e-4),
        "ReLU for f, the control": ({"activation": nn.ReLU}, 0.1),
    }
    return [
        Steps(
            "resnet36",
            partial(report_resnet36, base, **change),
            STEP_IMAGES["resnet36"],
            steps,
            learning_rate=rate,
            about={"change": name},
        )
        for name, (change, rate) in changes.items()
    ]


def told(row: Mapping) -> dict:
    """A row with told_losses, and with what is not finite in the autopsy as words.

    results.json has null for it.
    """
    row = {**row, "told_losses": studies.losses_words(row["losses"])}
    if row.get("autopsy"):
        row["autopsy"] = {
            key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in row["autopsy"].items()
        }
    return row


def reproduce(setup: Setup) -> Findings:
    """Why the report printed 6.4761 and then NaN: first passes, first steps, what cures it."""
    args = setup.args
    if setup.classes > OUTPUTS:
        raise UserError(f"--reproduce has {OUTPUTS} outputs, as the report's; take fewer --classes")
    # About at the side that networks see: what is scaled up and down again has softer edges, and
    # these make the stem's peak.
    train = pack(setup.sources["train"], round(args.image_size * 7 / 8), args.cache, args.skip_bad)
    about = {"data": train.source.fingerprint(), "device": setup.device.type, "seed": args.seed}
    cache = ResultCache(setup.folder / f"kept/{train.images.shape[1]}px", about, args.fresh)
    source = Source(train, setup.device)
    cases = first_losses(first_pass_cases(args), source, cache)
    base = base_of_steps(args, cases)
    steps = first_steps(first_trainings(base), source, base, cache)
    cured = first_steps(cures(base, args.cure_steps), source, base, cache)
    border_peak = peak_at_the_border(3)
    passes = counting.with_forecast(cases, border_peak)
    of_report = counting.in_report_setting(passes, args.image_size, args.width)
    result = {
        "first_losses": passes,
        "border": counting.border_counts(passes, border_peak),
        "dead_by_pictures": counting.dead_by_pictures(of_report),
        "steps": [told(row) for row in steps],
        "cures": [told(row) for row in cured],
        "chance_loss": math.log(OUTPUTS),
        "border_peak": border_peak,
        "batches": counting.batch_arithmetic(),
    }
    tag = ", ".join([setup.data, "fp32", setup.device.type])
    tables = studies.reproduction_tables(result, args.image_size, args.width, tag)
    drawn = {"chance_loss": math.log(OUTPUTS), "size_px": args.image_size, "tag": tag}
    figure = partial(studies.draw_first_losses, cases=of_report, **drawn)
    return Findings({"reproduction": result}, tables, figures={"3.4_first_loss.png": figure})
