"""Why the report printed 6.4761 and then NaN: first passes and first steps, without any check.

Each measurement is kept by itself, so that a stopped study can be resumed.
"""

import argparse
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from common import job
from common.data import streams
from common.data.augment import Draws, colour_jitter, cut_out, random_crops, to_float
from common.data.packed import Packed, pack
from common.errors import UserError
from common.networks.activations import ClampedSquareLeaky, SquareLeaky, WhereForm
from common.networks.doctor import BORDER_PEAK, first_pass, with_float64_batch_norms
from common.networks.normalized import Normalized
from common.networks.resnet36 import Activation, ResNet36, resnet34_with
from common.reporting import problem3
from common.reporting.results import Findings
from common.studies.divergence import ResultCache, unchecked_steps
from common.training.runs import Setup

# How pictures are augmented, as (least share of the area, jitter), or None: random crops as in
# Szegedy et al. 2015, half of them mirrored; jitter of brightness, contrast and saturation.
PICTURES = {"crops, jitter": (0.08, 0.4), "crops": (0.08, 0), "whole": None}
OUTPUTS = 650  # of the report's networks in training: its first loss is ln 650
# The report prints 5,204 training batches of 128 and 18,213 of 32, the last of each perhaps not
# full. They are 80 and 70 % of its images, whose number therefore lies in this range.
REPORT_BATCHES = {"images_least": 832_550, "images_most": 832_595, "classes": OUTPUTS,
                  "images_per_class": 832_595 / OUTPUTS}  # fmt: skip
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
STEP_IMAGES = {"resnet36": 64, "resnet34": 32}  # the report's batch of ResNet-34 is 32
FIRST_STEPS = 3
OPTIMIZERS = {  # SGD as in He et al. 2016, Adam with PyTorch's defaults
    "sgd": partial(torch.optim.SGD, momentum=0.9, weight_decay=1e-4),
    "adam": torch.optim.Adam,
}
VARIED = {  # one at a time; `scaling` is of the network's input
    "width": (0.25, 0.5),
    "residual": ("branch",),
    "init": ("he",),
    "scaling": ("0-1", "0-255"),
}
# The modules whose peaks are reported: the stem, the blocks, the last layer, and the inputs of the
# first batch norms after a squared skip path.
TOLD = re.compile(r"maxpool|layer\d\.\d+|layer2\.0\.(conv1|shortcut\.0)|fc")
# Memory per image of 224 px of a step in fp32; measured on the report's network and ResNet-34.
STEP_BYTES = 170e6


@dataclass(frozen=True)
class Case:
    """The settings of a first pass: batch, network's arguments, scaling, pictures and seed."""

    images: int
    image_size_px: int = 224
    width: float = 1
    residual: str = "sum"
    init: str = "pytorch"
    scaling: str = "normalised"
    pictures: str = "crops, jitter"
    seed: int = 0


@dataclass(frozen=True)
class Study:
    """A packed split, with its classes spread over the OUTPUTS, and its kept measurements."""

    split: Packed
    device: torch.device
    kept: ResultCache

    def batch(self, case: Case, step: int = 0) -> tuple[Tensor, Tensor]:
        """The images of a step, float (N, 3, S, S) as the network takes them, and their labels.

        The case's seed draws and augments them; they repeat if the split has too few.
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
            crops = random_crops(area_min, draws)
            images = cut_out(images, crops, case.image_size_px)
            images = colour_jitter(images, jitter, draws)
        if case.scaling == "normalised":
            images = Normalized(nn.Identity()).to(self.device)(images)
        elif case.scaling == "0-255":
            images = images * 255
        spread = OUTPUTS // len(self.split.class_names)
        return images.contiguous(memory_format=torch.channels_last), labels * spread


def report_resnet36(base: Case, activation: Activation, **changes) -> nn.Module:
    """The report's network with the initial weights of a case, and changes of its arguments."""
    torch.manual_seed(base.seed)
    float64 = changes.pop("float64_batch_norms", False)
    of_case = {"residual": base.residual, "width": base.width, "init": base.init}
    network = ResNet36(OUTPUTS, activation, **{**of_case, **changes})
    return with_float64_batch_norms(network) if float64 else network


# -------------------------------------------------------------------------------- first passes


def first_pass_cases(args: argparse.Namespace) -> list[Case]:
    """The first passes: the report's network at each batch size, with one change at a time."""
    of_report = {"image_size_px": args.image_size, "width": args.width, "seed": args.seed}
    seeds = [args.seed + index for index in range(args.seeds)]
    varied = [{"seed": seed, "pictures": kind} for kind in PICTURES for seed in seeds]
    varied += [{"image_size_px": size} for size in (64, 128) if size < args.image_size]
    varied += [{name: value} for name, values in VARIED.items() for value in values]
    cases = [Case(images, **{**of_report, **more}) for more in varied for images in BATCHES]
    # The last map of an image of 40 px is 1x1, so batch norm needs two images.
    return [case for case in dict.fromkeys(cases) if case.images > 1 or case.image_size_px > 40]


def measured_pass(study: Study, case: Case) -> dict:
    """Measure a case: its fields, classes, and the keys of `first_pass` and `forecast_of`."""

    def measure() -> dict:
        network = report_resnet36(case, SquareLeaky)
        network = network.to(study.device, memory_format=torch.channels_last)
        return first_pass(network, *study.batch(case), TOLD)

    about = {**asdict(case), "classes": OUTPUTS}
    found = study.kept.get("first_pass", {**about, "peaks_of": TOLD.pattern}, measure)
    words = ", ".join(f"{key} {value}" for key, value in about.items())
    job.say(
        f"{words}: first loss {found['first_loss']:.6g}, first infinite variance in"
        f" {found['infinite_from']}, {found['dead_share']:.0%} of the channels dead"
    )
    return {**about, **found, **forecast_of(found["peaks"], case.residual)}


def forecast_of(peaks: Mapping, residual: str) -> dict:
    """Forecast a first pass in closed form, from the peaks of its modules.

    Keys: stem_peak; stage_peak, of the first stage; shortcut_peak, of the 1x1 convolution in the
    next shortcut, before its batch norm; closed_form_peak, stem_peak to the power of 8 if f squares
    each of three sums, else None; forecast_dead, whether stem_peak then reaches the border.
    """
    squared, stem = residual == "sum", peaks["maxpool"]
    return {
        "stem_peak": stem,
        "stage_peak": peaks["layer1.2"],
        "shortcut_peak": peaks["layer2.0.shortcut.0"],
        "closed_form_peak": stem**8 if squared and stem < 1e38 else None,
        "forecast_dead": squared and stem >= BORDER_PEAK,
    }


def border_counts(cases: Iterable[Mapping]) -> dict:
    """Count the first passes of networks with f after the sum below and above the border.

    Keys: peak, of the border; below and above, each {"passes", "infinite" (with an infinite
    variance), "dead"}; lowest_dead_loss and highest_dead_loss, None without a dead network.
    """
    squared = [case for case in cases if case["residual"] == "sum"]
    losses = [case["first_loss"] for case in squared if case["dead_from"]]

    def count(passes: list[Mapping]) -> dict:
        infinite = sum(case["infinite_from"] is not None for case in passes)
        dead = sum(case["dead_from"] is not None for case in passes)
        return {"passes": len(passes), "infinite": infinite, "dead": dead}

    return {
        "peak": BORDER_PEAK,
        "below": count([case for case in squared if case["stem_peak"] < BORDER_PEAK]),
        "above": count([case for case in squared if case["stem_peak"] >= BORDER_PEAK]),
        "lowest_dead_loss": min(losses, default=None),
        "highest_dead_loss": max(losses, default=None),
    }


def in_report_setting(cases: Iterable[Mapping], size_px: int, width: float) -> list[Mapping]:
    """The first passes in the report's setting, with any pictures and seeds."""
    report = {"image_size_px": size_px, "width": width, "residual": "sum", "init": "pytorch"}
    report["scaling"] = "normalised"
    return [case for case in cases if report.items() <= case.items()]


def dead_by_pictures(cases: Iterable[Mapping]) -> dict[str, dict]:
    """Count the dead networks: {pictures: {images: {"networks", "dead"}}}."""
    counts = {}
    for case in cases:
        of_pictures = counts.setdefault(case["pictures"], {})
        row = of_pictures.setdefault(str(case["images"]), {"networks": 0, "dead": 0})
        row["networks"] += 1
        row["dead"] += case["dead_from"] is not None
    return counts


# --------------------------------------------------------------------------------- first steps


def base_of_steps(args: argparse.Namespace, cases: Iterable[Mapping]) -> Case:
    """The case of the first steps, with the first seed whose network is dead, if there is one."""
    base = Case(STEP_IMAGES["resnet36"], args.image_size, args.width, seed=args.seed)
    for seed in range(args.seed, args.seed + args.seeds):
        start = replace(base, seed=seed)
        if any(case["dead_from"] and asdict(start).items() <= case.items() for case in cases):
            return start
    return base


def take_steps(
    study: Study, base: Case, about: Mapping, build: Callable, steps: int, autopsy: bool = False
) -> dict:
    """Train `build()` unchecked for at most `steps`, with the image size, width and seed of `base`.

    `about` describes the training: network, optimizer, learning_rate and more. If memory is short,
    the batch is halved until a step fits, and a line says so. `autopsy` looks for the first batch
    norm that makes gradients NaN.

    Returns:
        `about`, images, image_size_px, width, seed, the keys of `unchecked_steps`, and told_losses,
        the losses in words.
    """
    base = replace(base, images=STEP_IMAGES[about["network"]])
    of_base = {key: getattr(base, key) for key in ("images", "image_size_px", "width", "seed")}
    about = {**about, **of_base}

    def measure() -> dict:
        case = replace(base, images=fitting_images(base, study.device))
        network = build().to(study.device, memory_format=torch.channels_last)
        batches = (study.batch(case, step) for step in range(steps))
        optimizer = OPTIMIZERS[about["optimizer"]](network.parameters(), lr=about["learning_rate"])
        return {"images": case.images, **unchecked_steps(network, batches, optimizer, autopsy)}

    asked = {"steps": steps, "autopsy": autopsy}
    row = about | study.kept.get("steps", {**about, **asked}, measure)
    losses = ", ".join(f"{loss:.6g}" for loss in row["losses"][:3])
    bad = f"{len(row['non_finite_gradients'])} of {row['tensors']} gradients not finite"
    words = ", ".join(str(row[key]) for key in about)
    job.say(f"{words}: losses {losses}; in step 1 {bad}; {row['seconds']:.1f} s per step")
    row["told_losses"] = problem3.losses_words(row["losses"])
    if row.get("autopsy"):
        row["autopsy"] = {  # infinities and NaN would be null in results.json
            key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in row["autopsy"].items()
        }
    return row


def fitting_images(case: Case, device: torch.device) -> int:
    """The batch size of a case, halved until a step fits into the free memory."""
    image_bytes = STEP_BYTES * case.width * (case.image_size_px / 224) ** 2
    images = case.images
    while images > 2 and images * image_bytes > free_bytes(device):
        images //= 2
    if images < case.images:
        job.say(f"memory is short: {images} images per step instead of {case.images}")
    return images


def free_bytes(device: torch.device) -> float:
    """The free memory in bytes; infinite if the system does not report it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # release what PyTorch holds without need
        return torch.cuda.mem_get_info(device)[0]
    information = Path("/proc/meminfo")  # of Linux
    if not information.exists():
        return math.inf
    return 1024 * int(re.search(r"MemAvailable: *(\d+) kB", information.read_text())[1])


# ------------------------------------------------------------------------------------ the study


def first_steps(study: Study, base: Case) -> list[dict]:
    """The first steps of both networks: both forms of f by both optimisers, and ReLU by SGD."""
    forms = {"where": WhereForm, "ours": SquareLeaky, "ReLU": nn.ReLU}
    rates = {"sgd": 0.1, "adam": 1e-3}
    builds = {
        "resnet36": partial(report_resnet36, base),
        "resnet34": lambda activation: resnet34_with(activation, OUTPUTS, base.seed).network,
    }
    rows = []
    for name, form, (optimizer, rate) in product(builds, forms, rates.items()):
        if (form, optimizer) != ("ReLU", "adam"):
            build = partial(builds[name], forms[form])
            about = {"network": name, "optimizer": optimizer, "form": form, "learning_rate": rate}
            autopsy = (form, optimizer) == ("where", "sgd")
            rows.append(take_steps(study, base, about, build, FIRST_STEPS, autopsy))
    return rows


def cured_steps(study: Study, base: Case, steps: int) -> list[dict]:
    """The report's training with one change at a time, at its size, with f as `WhereForm`."""
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
    rows = []
    for name, (change, rate) in changes.items():
        about = {"network": "resnet36", "optimizer": "sgd", "change": name, "learning_rate": rate}
        build = partial(report_resnet36, base, **change)
        rows.append(take_steps(study, base, about, build, steps))
    return rows


def reproduce(setup: Setup) -> Findings:
    """Why the report printed 6.4761 and then NaN: first passes, first steps, and cures."""
    args = setup.args
    if setup.classes > OUTPUTS:
        raise UserError(f"--reproduce has {OUTPUTS} outputs; give at most that many --classes")
    # Packed at about the side that networks see: scaling up and down again would soften edges, and
    # these make the stem's peak.
    train = pack(setup.sources["train"], round(args.image_size * 7 / 8), args.cache, args.skip_bad)
    about = {"data": train.source.fingerprint(), "device": setup.device.type, "seed": args.seed}
    kept = ResultCache(setup.folder / f"kept/{train.images.shape[1]}px", about, args.fresh)
    study = Study(train, setup.device, kept)
    passes = [measured_pass(study, case) for case in first_pass_cases(args)]
    of_report = in_report_setting(passes, args.image_size, args.width)
    base = base_of_steps(args, passes)
    result = {
        "first_losses": passes,
        "border": border_counts(passes),
        "dead_by_pictures": dead_by_pictures(of_report),
        "steps": first_steps(study, base),
        "cures": cured_steps(study, base, args.cure_steps),
        "chance_loss": math.log(OUTPUTS),
        "border_peak": BORDER_PEAK,
        "batches": REPORT_BATCHES,
    }
    tag = ", ".join([setup.data, "fp32", setup.device.type])
    tables = problem3.reproduction_tables(result, args.image_size, args.width, tag)
    drawn = {"chance_loss": math.log(OUTPUTS), "size_px": args.image_size, "tag": tag}
    figure = partial(problem3.draw_first_losses, cases=of_report, **drawn)
    return Findings({"reproduction": result}, tables, figures={"3.4_first_loss.png": figure})
