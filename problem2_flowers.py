"""Problem 2: what does EfficientNetV2-S learn from the 1,020 images of Oxford Flowers-102?

Method: the official splits are decoded once into a packed cache; the network is trained from
scratch (or from ImageNet weights) with whole-batch augmentation; the epoch is chosen on val, and
test is looked at once, with that epoch's weights.

    python problem2_flowers.py                                    all parts, Flowers-102
    python problem2_flowers.py 2.2 --data synthetic --epochs 10   one part, embedded data
    python problem2_flowers.py --gpus 2                           DataParallel
    torchrun --nproc-per-node 2 problem2_flowers.py 2.3           DistributedDataParallel

Hardware: any CPU or GPU. Minutes and findings: README, outputs/published/problem2.
"""

import argparse
import io
import math
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import EfficientNet, EfficientNet_V2_S_Weights, efficientnet_v2_s
from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig, _efficientnet_conf
from torchvision.ops import SqueezeExcitation

from common import cli, data, parallel, plotting, summary
from common.augment import Draws, Normalized, centre_square
from common.cli import UserError
from common.data import DrawnSet, FileSet, Packed
from common.experiment import (
    TrainingExperiment,
    count_parameters,
    over_seeds,
    show_runs,
    train_runs,
)
from common.recipe import add_flags
from common.statistics import wilson_interval
from common.weights import published_file, read_state_dict

SPLITS = ("train", "val", "test")
IMAGE_SIZE_MIN_PX = 32  # the network halves its input five times
SAMPLE_CLASSES = 5
NARROW = "efficientnet_v2_s"
TOP_RESOLUTIONS = 43  # as many as the report's Figure 11 lists


class Experiment(TrainingExperiment):
    """Flowers, real or drawn, and what the parts share."""

    def __init__(self, args: argparse.Namespace):
        super().__init__(args)
        self.init = args.init + (", head at zero" if args.zero_head else "")
        self.sources = read_sources(args)
        sizes = ", ".join(f"{len(one.labels):,} {split}" for split, one in self.sources.items())
        print(f"{self.data}: {sizes} images")
        check_flags(args, min(len(one.labels) for one in self.sources.values()))
        if args.from_narrow and "2.3" in args.parts:
            load_narrow(self, args.from_narrow)
        if "2.6" in args.parts:
            find_layer(efficientnet_like(self), args.layer)
        parallel.start(self.device)

    @property
    def data(self) -> str:
        """What tables and figures say of the data."""
        if self.args.data == "synthetic":
            return f"EMBEDDED DRAWN FLOWERS, {self.args.classes} classes"
        return "Oxford Flowers-102"

    @property
    def noise_block(self) -> "NoiseBlock":
        """The block of the flags."""
        args = self.args
        return NoiseBlock(args.noise_prob, *args.noise_area, args.noise)


def read_sources(args: argparse.Namespace) -> dict[str, FileSet | DrawnSet]:
    """Train, val and test of --data, not yet decoded."""
    if args.data == "flowers102":
        return data.flowers102(args.data_root)
    if not 2 <= args.classes <= data.synthetic.NUM_CLASSES:
        raise UserError(
            f"--classes {args.classes}: the embedded data set has 2 to"
            f" {data.synthetic.NUM_CLASSES} classes"
        )
    train = args.images_per_class * args.classes
    images = {"train": train, "val": max(args.classes, train // 2), "test": train}
    return {split: DrawnSet(split, n, args.classes, args.seed) for split, n in images.items()}


# ------------------------------------------------------------------------------------ 2.1 summary


def part_2_1(experiment: Experiment, folder: Path) -> dict:
    """The data set: splits, resolutions, classes."""
    found, counts = {}, {}
    for split, source in experiment.sources.items():
        sizes = Counter(source.size(index) for index in range(len(source.labels)))
        counts[split] = np.bincount(source.labels, minlength=experiment.classes)
        found[split] = {
            "images": len(source.labels),
            "classes": int((counts[split] > 0).sum()),
            "resolutions": len(sizes),
            "top_resolutions": top_resolutions(sizes),
            "images_per_class": [int(counts[split].min()), int(counts[split].max())],
        }
        plotting.resolutions(
            folder / f"2.1_resolutions_{split}.png", f"{experiment.data}: {split}", sizes
        )
    _show_splits(folder, experiment, found)
    _show_resolutions(folder, experiment, found)
    plotting.class_counts(folder / "2.1_class_counts.png", experiment.data, counts)
    found_classes = _show_samples(folder, experiment)
    return {"splits": found, "sample_classes": found_classes}


def top_resolutions(sizes: Counter) -> list[list[int]]:
    """The most frequent [width, height, images], larger ones first among equals."""
    ordered = sorted(sizes.items(), key=lambda item: (-item[1], *(-side for side in item[0])))
    return [[width, height, count] for (width, height), count in ordered[:TOP_RESOLUTIONS]]


def _show_splits(folder: Path, experiment: Experiment, found: dict) -> None:
    rows = [
        [
            split,
            f"{one['images']:,}",
            str(one["classes"]),
            str(one["resolutions"]),
            " - ".join(map(str, one["images_per_class"])),
        ]
        for split, one in found.items()
    ]
    headers = ["split", "images", "classes", "resolutions", "images per class"]
    cli.show_table(folder / "2.1_splits.txt", experiment.data, headers, rows)


def _show_resolutions(folder: Path, experiment: Experiment, found: dict) -> None:
    columns = {split: one["top_resolutions"] for split, one in found.items()}
    rows = []
    for rank in range(max(map(len, columns.values()))):
        row = [str(rank + 1)]
        for top in columns.values():
            row += (
                [f"({top[rank][0]}, {top[rank][1]})", str(top[rank][2])]
                if rank < len(top)
                else [
                    None,
                    None,
                ]
            )
        rows.append(row)
    headers = ["rank", *(name for split in columns for name in (split, "images"))]
    caption = f"{experiment.data}: the most frequent resolutions, (width, height) in px."
    cli.show_table(folder / "2.1_resolutions.txt", caption, headers, rows)


def _show_samples(folder: Path, experiment: Experiment) -> list[str]:
    """A grid of random classes, one image of each split; returns the classes' names."""
    rng = np.random.default_rng(experiment.args.seed)
    names = experiment.sources["train"].class_names
    chosen = sorted(rng.choice(len(names), min(SAMPLE_CLASSES, len(names)), replace=False))
    rows = {}
    for split, source in experiment.sources.items():
        of_class = [np.flatnonzero(source.labels == label) for label in chosen]
        pictures = [source.picture(int(rng.choice(rows))) for rows in of_class]
        rows[split] = [data.fit_to(picture, 300, 300) for picture in pictures]
    headers = ["\n".join(textwrap.wrap(names[label], 18)) for label in chosen]
    title = f"{experiment.data}: {len(chosen)} random classes"
    plotting.image_grid(folder / "2.1_samples.png", title, headers, rows)
    return [names[label] for label in chosen]


# -------------------------------------------------------------------------------------- 2.2 train


def make_network(classes: int, init: str, seed: int, head_at_zero: bool = False) -> nn.Module:
    """torchvision's EfficientNetV2-S (Tan & Le 2021) for images in [0, 1].

    `init` is "scratch" (torchvision's initialisation, seeded), "imagenet" (its IMAGENET1K_V1
    weights) or the path of a state dict; of the last two the head is left out where its number of
    classes differs. `head_at_zero` is said of a new head.

    Raises:
        UserError: the weights can't be had, or are another network's.
    """
    torch.manual_seed(seed)
    network = efficientnet_v2_s(num_classes=classes)
    left_out = list(network.state_dict())
    if init != "scratch":
        published = EfficientNet_V2_S_Weights.IMAGENET1K_V1.url
        path = published_file(published) if init == "imagenet" else Path(init)
        left_out = load_backbone(network, read_state_dict(path), path)
        loaded = len(network.state_dict()) - len(left_out)
        print(f"{path}: {loaded} tensors loaded; new: {', '.join(left_out) or 'none'}")
    if head_at_zero and "classifier.1.weight" in left_out:
        zero_head(network)
    return Normalized(network)


def zero_head(network: EfficientNet) -> None:
    """Let training start from equal logits, as big_vision's `head_zeroinit` does.

    torchvision draws the head's weights from +-1 / sqrt(classes), whatever its 1,280 inputs: with
    few classes the first loss is far above that of equal logits, and epochs go to undoing it.
    """
    nn.init.zeros_(network.classifier[1].weight)


def load_backbone(network: nn.Module, state: dict[str, Tensor], path: Path) -> list[str]:
    """Load a state dict; of another number of classes all but the head. Returns what was left out.

    Raises:
        UserError: it is not one of this network.
    """
    state = {name.removeprefix("network."): tensor for name, tensor in state.items()}
    wanted = network.state_dict()
    head = [name for name in wanted if name.startswith("classifier.")]
    for name, tensor in wanted.items():
        if name not in state or (name not in head and state[name].shape != tensor.shape):
            raise UserError(
                f"{path}: not EfficientNetV2-S: {name} of shape {tuple(tensor.shape)} is missing"
            )
    left_out = [name for name in head if state[name].shape != wanted[name].shape]
    network.load_state_dict(
        {name: one for name, one in state.items() if name not in left_out}, strict=False
    )
    return left_out


def narrow_builder(experiment: Experiment) -> Callable[[int], nn.Module]:
    """torchvision's network as the flags start it, by its seed."""
    args = experiment.args
    return partial(make_network, experiment.classes, args.init, head_at_zero=args.zero_head)


def train_narrow(experiment: Experiment, folder: Path, **changes) -> list[dict]:
    """The runs of torchvision's network as it is."""
    build = narrow_builder(experiment)
    return train_runs(experiment, NARROW, build, folder, **changes)


def _show_summary(path: Path, bare: nn.Module, image_size_px: int) -> None:
    """torchsummary's table into a file, and its last 7 lines on stdout."""
    table = summary.summary_table(bare, (3, image_size_px, image_size_px))
    with cli.atomic(path) as temporary:
        temporary.write_text(table)
    print("Last 7 lines of torchsummary:", *table.rstrip().splitlines()[-7:], sep="\n")


def part_2_2(experiment: Experiment, folder: Path) -> dict:
    """EfficientNetV2-S, trained."""
    args, classes = experiment.args, experiment.classes
    bare = summary.without_weights(partial(efficientnet_v2_s, num_classes=classes))
    runs = train_narrow(experiment, folder)
    _show_summary(folder / "2.2_summary.txt", bare, args.image_size)
    show_runs(folder, experiment, "2.2", {NARROW: runs})
    return {
        "parameters": count_parameters(bare),
        "epochs": args.epochs,
        "init": experiment.init,
        "recipe": experiment.recipe.as_dict(),
        **over_seeds(runs, len(experiment.packed["test"])),
        "chance": 100 / classes,
        "runs": runs,
    }


# -------------------------------------------------------------------------------------- 2.3 widen










def make_wide(
    classes: int, width: float, divisor: int, seed: int, head_at_zero: bool = False
) -> nn.Module:
    """EfficientNetV2-S with every stage, the stem and the head `width` times as wide.

    For images in [0, 1]; initialised as the narrow one, seeded.
    """
    torch.manual_seed(seed)
    network = wide_efficientnet(classes, width, divisor)
    if head_at_zero:
        zero_head(network)
    return Normalized(network)




















def load_narrow(experiment: Experiment, path: Path) -> nn.Module:
    """The narrow network of `--from-narrow`, for images in [0, 1].

    Raises:
        UserError: no such file, or not EfficientNetV2-S with this number of classes.
    """
    network = efficientnet_v2_s(num_classes=experiment.classes)
    left_out = load_backbone(network, read_state_dict(path), path)
    if left_out:
        raise UserError(f"--from-narrow {path}: it has another number of classes than the data")
    return Normalized(network)


def make_wide_from_narrow(experiment: Experiment, path: Path, seed: int) -> nn.Module:
    """The wide network that starts as the function of a narrow one, its symmetry broken."""
    args = experiment.args
    wide = make_wide(experiment.classes, args.width, args.width_divisor, seed)
    widen_from(load_narrow(experiment, path).network, wide.network, seed)
    break_symmetry(wide, args.symmetry_noise, seed)
    return wide


def train_wide(experiment: Experiment, folder: Path, **changes) -> list[dict]:
    """The runs of the wide network from scratch."""
    args = experiment.args
    build = partial(
        make_wide,
        experiment.classes,
        args.width,
        args.width_divisor,
        head_at_zero=args.zero_head,
    )
    return train_runs(experiment, wide_name(args), build, folder, **changes)


def wide_name(args: argparse.Namespace) -> str:
    """Name of the wide network in tables and folders."""
    divisor = f"-div{args.width_divisor}" if args.width_divisor > 1 else ""
    return f"wide_{args.width:g}{divisor}"


def part_2_3(experiment: Experiment, folder: Path) -> dict:
    """EfficientNetV2-S, truly widened."""
    args, classes = experiment.args, experiment.classes
    narrow = summary.without_weights(partial(efficientnet_v2_s, num_classes=classes))
    wide = summary.without_weights(
        partial(wide_efficientnet, classes, args.width, args.width_divisor)
    )
    stages = stage_rows(narrow, wide, args.image_size)
    _show_stages(folder, experiment, stages)
    narrow_runs = train_narrow(experiment, folder)
    runs = {NARROW: narrow_runs, wide_name(args): train_wide(experiment, folder)}
    checkpoints = {run["seed"]: args.from_narrow or Path(run["weights"]) for run in narrow_runs}
    difference = check_function_kept(experiment, checkpoints[args.seed])
    runs[f"{wide_name(args)}_from_narrow"] = train_runs(
        experiment,
        f"{wide_name(args)}_from_narrow",
        lambda seed: make_wide_from_narrow(experiment, checkpoints[seed], seed),
        folder,
    )
    _show_summary(folder / "2.3_summary.txt", wide, args.image_size)
    show_runs(folder, experiment, "2.3", runs)
    images = len(experiment.packed["test"])
    return {
        "parameters": count_parameters(wide),
        "parameters_narrow": count_parameters(narrow),
        "width": args.width,
        "width_divisor": args.width_divisor,
        "stages": stages,
        "max_logit_difference": difference,
        "symmetry_noise": args.symmetry_noise,
        "runs": {name: {**over_seeds(of, images), "runs": of} for name, of in runs.items()},
    }


def check_function_kept(experiment: Experiment, path: Path) -> float:
    """Largest difference of logits, narrow against widened before its symmetry is broken.

    On noise and on val images.
    """
    args, size = experiment.args, experiment.args.image_size
    narrow = load_narrow(experiment, path)
    wide = make_wide(experiment.classes, args.width, args.width_divisor, args.seed)
    widen_from(narrow.network, wide.network, args.seed)
    val = experiment.packed["val"]
    images, _ = val.batch(torch.arange(min(8, len(val))), torch.device("cpu"))
    noise = torch.rand(8, 3, size, size, generator=torch.Generator().manual_seed(args.seed))
    inputs = torch.cat([centre_square(images, size), noise])
    difference = max_logit_difference(narrow, wide, inputs)
    print(f"widened from {path}: logits differ by at most {difference:.2g} from the narrow one's")
    return difference


def stage_rows(narrow: EfficientNet, wide: EfficientNet, image_size_px: int) -> list[dict]:
    """Channels, parameters and MACs (multiply-adds, one image) of each stage, narrow and wide."""
    names = ["stem", *(f"stage {k}" for k in range(1, len(narrow.features) - 1)), "head conv"]
    macs = [count_macs(network, image_size_px) for network in (narrow, wide)]
    rows = []
    for k, name in enumerate(names):
        channels = [_out_channels(network.features[k]) for network in (narrow, wide)]
        parameters = [count_parameters(network.features[k]) for network in (narrow, wide)]
        macs_of_stage = [of[f"features.{k}"] for of in macs]
        rows.append(_stage_row(name, channels, parameters, macs_of_stage))
    head = [count_parameters(network.classifier) for network in (narrow, wide)]
    outputs = [network.classifier[1].out_features for network in (narrow, wide)]
    rows.append(_stage_row("classifier", outputs, head, [of["classifier"] for of in macs]))
    return rows


def _stage_row(name: str, channels: list, parameters: list, macs: list) -> dict:
    row = {"name": name, "narrow": channels[0], "wide": channels[1]}
    row |= {"parameters_narrow": parameters[0], "parameters_wide": parameters[1]}
    return row | {"macs_narrow": macs[0], "macs_wide": macs[1]}


def _out_channels(stage: nn.Module) -> int:
    """Output channels as the weights have them, whatever attributes say."""
    return [one for one in stage.modules() if isinstance(one, nn.Conv2d)][-1].weight.shape[0]


def count_macs(network: EfficientNet, image_size_px: int) -> dict[str, int]:
    """Multiply-adds of convolutions and matrix products for one image, by top-level stage."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, 3, image_size_px, image_size_px))
    root = type(network).__name__
    stages = [f"features.{k}" for k in range(len(network.features))] + ["classifier"]
    counts = counter.get_flop_counts()
    return {name: sum(counts[f"{root}.{name}"].values()) // 2 for name in stages}


def _show_stages(folder: Path, experiment: Experiment, stages: list[dict]) -> None:
    rows = []
    totals = {key: sum(stage[key] for stage in stages) for key in stages[0] if "_" in key}
    for stage in [*stages, {"name": "total", "narrow": 0, "wide": 0, **totals}]:
        channels = [str(stage["narrow"]), str(stage["wide"])]
        ratio = stage["wide"] / stage["narrow"] if stage["narrow"] else None
        row = [stage["name"], *(channels if ratio else [None, None])]
        row.append(f"{ratio:.3f}" if ratio else None)
        row += [f"{stage[f'parameters_{kind}']:,}" for kind in ("narrow", "wide")]
        row += [f"{stage[f'macs_{kind}'] / 1e6:,.1f}" for kind in ("narrow", "wide")]
        rows.append(row)
    headers = ["stage", "channels", "wide", "ratio", "parameters", "wide", "M MACs", "wide"]
    args = experiment.args
    caption = (
        f"EfficientNetV2-S widened {args.width:g} times (divisor {args.width_divisor}),"
        f" {experiment.classes} classes;\nmillions of multiply-adds for one image of"
        f" {args.image_size}x{args.image_size} px."
    )
    cli.show_table(folder / "2.3_stages.txt", caption, headers, rows)


# ----------------------------------------------------------------------------------- 2.4 two GPUs


def part_2_4(experiment: Experiment, folder: Path) -> dict:
    """One process, DataParallel and DistributedDataParallel on the wide network."""
    gpus, under_torchrun = torch.cuda.device_count(), parallel.size() > 1
    many = max(2, experiment.args.gpus)
    no_gpu = "not run: no second GPU"
    elsewhere = "not run: this is a job of torchrun"
    rows = []
    if under_torchrun:
        rows += [_not_run("1 process", elsewhere), _not_run("DataParallel", elsewhere)]
        run = train_wide(experiment, folder)[0]
        rows.append(_mode_row("DistributedDataParallel", parallel.size(), run))
    else:
        rows.append(_mode_row("1 process", 1, train_wide(experiment, folder, gpus=0)[0]))
        if gpus >= many:
            run = train_wide(experiment, folder, gpus=many)[0]
            rows.append(_mode_row("DataParallel", 1, run))
        else:
            rows.append(_not_run("DataParallel", no_gpu))
        if gpus >= many or experiment.device.type == "cpu":
            rows.append(_mode_row("DistributedDataParallel", many, launch_ddp(experiment, many)))
        else:
            rows.append(_not_run("DistributedDataParallel", no_gpu))
    _show_modes(folder, experiment, rows)
    return {"runs": rows}


def launch_ddp(experiment: Experiment, processes: int) -> dict:
    """The wide network's first run again, by so many processes of this machine.

    Raises:
        UserError: a process failed.
    """
    args = argparse.Namespace(**vars(experiment.args))
    args.gpus, args.seeds = 0, 1
    args.device = experiment.device.type
    threads = max(1, torch.get_num_threads() // processes)
    try:
        return parallel.launch(processes, ddp_run, args, threads)[0]
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise UserError(
            f"process {rank} of {processes} failed with exit code {failure.exitcode}; its message"
            " is above"
        ) from None


def ddp_run(args: argparse.Namespace, threads: int) -> dict:
    """What each process of `launch_ddp` does."""
    if cli.rank() > 0:
        sys.stdout = io.StringIO()
    torch.set_num_threads(threads)
    experiment = Experiment(args)
    run = train_wide(experiment, args.out / "problem2")[0]
    parallel.stop()
    return run


def _mode_row(mode: str, processes: int, run: dict) -> dict:
    keys = ("images_per_second", "seconds", "val_top1", "test_top1")
    return {"mode": mode, "processes": processes, **{key: run[key] for key in keys}}


def _not_run(mode: str, why: str) -> dict:
    return {"mode": mode, "not_run": why}


def _show_modes(folder: Path, experiment: Experiment, rows: list[dict]) -> None:
    shown = []
    for row in rows:
        if "not_run" in row:
            shown.append([row["mode"], None, None, None, None, row["not_run"]])
        else:
            numbers = [f"{row[key]:.1f}" for key in ("images_per_second", "seconds", "test_top1")]
            backend = "" if row["processes"] == 1 else "nccl"
            if backend and experiment.device.type == "cpu":
                backend = "gloo, on one CPU"
            shown.append([row["mode"], str(row["processes"]), *numbers, backend])
    headers = ["mode", "processes", "images/s", "seconds", "test top-1 %", "remark"]
    caption = (
        f"{wide_name(experiment.args)}, {experiment.tag()}, {experiment.args.epochs} epochs,"
        f" global batch {experiment.args.batch_size}."
    )
    cli.show_table(folder / "2.4_parallel.txt", caption, headers, shown)


# --------------------------------------------------------------------------------- 2.5 noise block


@dataclass(frozen=True)
class NoiseBlock:
    """Covers a random rectangle of some images with noise, on their device.

    Each image has its own rectangle with probability `prob`: its share of the area is uniform in
    [area_low, area_high], its aspect ratio log-uniform in [1/2, 2] where both sides fit, its place
    uniform. `kind`: "uniform" in [0, 1), or "gaussian", mean 1/2, deviation 1/4, clipped.
    """

    prob: float
    area_low: float
    area_high: float
    kind: str = "uniform"

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """A copy of float images (N, 3, H, W) in [0, 1], some of them covered."""
        height, width = images.shape[2:]
        area = draws.uniform(self.area_low, self.area_high)
        root_ratio = torch.exp(draws.uniform(-0.5, 0.5) * math.log(2))
        tall = (area.sqrt() * root_ratio).clamp(min=area, max=torch.ones_like(area))
        wide = area / tall
        covered = draws.uniform(0, 1) < self.prob
        rows = _span(tall, draws.uniform(0, 1), height)
        columns = _span(wide, draws.uniform(0, 1), width)
        inside = rows[:, :, None] & columns[:, None, :] & covered[:, None, None]
        return torch.where(inside[:, None], self.noise(images, draws), images)

    def noise(self, images: Tensor, draws: Draws) -> Tensor:
        """Noise like the images, from a generator on their device."""
        generator = torch.Generator(images.device).manual_seed(draws.generator.initial_seed())
        noise = torch.empty_like(images)
        if self.kind == "uniform":
            return noise.uniform_(generator=generator)
        return noise.normal_(0.5, 0.25, generator=generator).clamp_(0, 1)


def _span(length: Tensor, place: Tensor, size_px: int) -> Tensor:
    """Bool (N, size_px): a span of `length` (share of the side) at `place` of where it fits."""
    length_px = (length * size_px).round().clamp(min=1)
    start_px = ((size_px - length_px + 1) * place).floor()
    pixels = torch.arange(size_px, device=length.device)[None]
    return (pixels >= start_px[:, None]) & (pixels < (start_px + length_px)[:, None])


def train_with_block(experiment: Experiment, folder: Path) -> list[dict]:
    """The narrow network's runs with the noise block, all else equal."""
    block = experiment.noise_block
    augmentation = replace(experiment.recipe.augmentation, block=block)
    build = narrow_builder(experiment)
    return train_runs(experiment, "noise_block", build, folder, augmentation=augmentation)


def part_2_5(experiment: Experiment, folder: Path) -> dict:
    """The noise block, with and without."""
    args, images = experiment.args, len(experiment.packed["test"])
    _show_block(folder, experiment)
    without, with_block = train_narrow(experiment, folder), train_with_block(experiment, folder)
    show_runs(folder, experiment, "2.5", {"without": without, "noise block": with_block})
    seconds = block_seconds(experiment)
    step_seconds = args.batch_size / with_block[0]["images_per_second"]
    share = seconds / step_seconds
    print(f"the noise block takes {1000 * seconds:.2f} ms of a {1000 * step_seconds:.0f} ms step")
    return {
        "noise_block": asdict(experiment.noise_block),
        "without": {**over_seeds(without, images), "runs": without},
        "with": {**over_seeds(with_block, images), "runs": with_block},
        "paired_difference": [
            a["test_top1"] - b["test_top1"] for a, b in zip(with_block, without, strict=True)
        ],
        "block_seconds": seconds,
        "step_cost_share": share,
    }


def block_seconds(experiment: Experiment, repeats: int = 30) -> float:
    """Median seconds that the block takes for one batch, after a warm-up."""
    size, device = experiment.args.batch_size, experiment.device
    shape = (size, 3, experiment.args.image_size, experiment.args.image_size)
    images = torch.rand(shape, device=device).contiguous(memory_format=torch.channels_last)
    seconds = []
    for repeat in range(repeats + 3):
        start = time.perf_counter()
        experiment.noise_block(images, Draws((0, repeat), size, slice(None), device))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[3:]))


def _show_block(folder: Path, experiment: Experiment) -> None:
    size, cpu = experiment.args.image_size, torch.device("cpu")
    images, _ = experiment.packed["train"].batch(torch.arange(5), cpu)
    plain = centre_square(images, size)
    always = replace(experiment.noise_block, prob=1.0)
    covered = always(plain, Draws((experiment.args.seed,), 5, slice(None), cpu))
    rows = {
        name: [data.to_uint8(image) for image in batch]
        for name, batch in (("original", plain), ("covered", covered))
    }
    labels = experiment.packed["train"].labels[:5]
    names = experiment.packed["train"].class_names
    headers = ["\n".join(textwrap.wrap(names[label], 18)) for label in labels]
    title = f"Noise block ({always.kind}), area {always.area_low:g} to {always.area_high:g}"
    path = folder / "2.5_noise_block.png"
    plotting.image_grid(path, f"{title}: {experiment.data}", headers, rows)


# ------------------------------------------------------------------------------------ 2.6 Grad-CAM










@dataclass(frozen=True)
class Seen:
    """What a network makes of some images: probabilities (N, classes) and maps (N, H, W)."""

    probabilities: Tensor
    predicted_maps: Tensor
    true_maps: Tensor


def look(network: Normalized, layer: str, images: Tensor, labels: Tensor) -> Seen:
    """Predictions and Grad-CAM maps, on the CPU, for the predicted and for the true class."""
    network = network.eval()
    module = find_layer(network.network, layer)
    parts = []
    for batch, of_batch in zip(images.split(32), labels.split(32), strict=True):
        with torch.inference_mode():
            logits = network(batch)
        maps = [grad_cam(network, module, batch, which) for which in (logits.argmax(1), of_batch)]
        parts.append((logits.softmax(1), *maps))
    return Seen(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))


def trained_networks(experiment: Experiment, folder: Path) -> dict[str, nn.Module]:
    """Plain, wide and noise-block network with the best weights of their first runs."""
    args, classes = experiment.args, experiment.classes
    wide = partial(make_wide, classes, args.width, args.width_divisor)
    narrow = partial(make_network, classes, "scratch")
    networks = {}
    for name, build, runs in (
        ("plain", narrow, train_narrow(experiment, folder)),
        ("wide", wide, train_wide(experiment, folder)),
        ("noise block", narrow, train_with_block(experiment, folder)),
    ):
        networks[name] = build(args.seed)
        networks[name].load_state_dict(read_state_dict(Path(runs[0]["weights"])))
    return {name: network.to(experiment.device) for name, network in networks.items()}


def part_2_6(experiment: Experiment, folder: Path) -> dict:
    """Grad-CAM of the plain, wide and noise-block networks."""
    args, test = experiment.args, experiment.packed["test"]
    networks = trained_networks(experiment, folder)
    rng = np.random.default_rng(args.seed)
    rows = torch.from_numpy(rng.permutation(len(test))[: args.pointing_images])
    packed, labels = test.batch(rows, experiment.device)
    images = centre_square(packed, args.image_size)
    seen = {name: look(one, args.layer, images, labels) for name, one in networks.items()}
    labels = labels.cpu()
    right = seen["plain"].probabilities.argmax(1) == labels
    shown = {}
    for name, which in (("right", right), ("wrong", ~right)):
        chosen = which.nonzero().flatten()[: args.images].tolist()
        shown[name] = [int(test.rows[rows[i]]) for i in chosen]
        _show_overlays(folder, experiment, name, chosen, images.cpu(), labels, seen)
    game = None
    if isinstance(test.source, DrawnSet):
        game = play_pointing_game(experiment, folder, rows, images, labels, seen)
    return {
        "layer": args.layer,
        "pointing_game": game,
        "images": shown,
        "all_zero_maps": {
            name: int((one.predicted_maps.amax((1, 2)) == 0).sum()) for name, one in seen.items()
        },
        "maps": len(rows),
    }


def efficientnet_like(experiment: Experiment) -> nn.Module:
    """A network of the right shape without weights, to check a layer's name before any training."""
    return summary.without_weights(partial(efficientnet_v2_s, num_classes=experiment.classes))


def play_pointing_game(
    experiment: Experiment,
    folder: Path,
    rows: Tensor,
    images: Tensor,
    labels: Tensor,
    seen: dict[str, Seen],
) -> dict:
    """The pointing game on the flowers' masks, with its controls.

    Random weights are the sanity check (Adebayo et al. 2018): maps that show the flower without
    training say nothing of what was learnt. "centre" is the share of images whose middle is flower.
    """
    args, test = experiment.args, experiment.packed["test"]
    masks = torch.stack([flower_mask(test, int(row), args.image_size) for row in rows])
    # With torchvision's head: from one of zeros no gradient comes back.
    random = make_network(experiment.classes, "scratch", args.seed).to(experiment.device)
    untrained = look(random, args.layer, images, labels.to(experiment.device))
    middle = args.image_size // 2
    game = {
        "model": pointing_game(seen["plain"].predicted_maps, masks),
        "wide": pointing_game(seen["wide"].predicted_maps, masks),
        "noise_block": pointing_game(seen["noise block"].predicted_maps, masks),
        "random_weights": pointing_game(untrained.predicted_maps, masks),
        "chance": 100 * masks.float().mean().item(),
        "centre": 100 * masks[:, middle, middle].float().mean().item(),
    }
    table = []
    for name, value in game.items():
        low, high = wilson_interval(round(value * len(rows) / 100), len(rows))
        interval = None if name in ("chance", "centre") else f"{100 * low:.1f} - {100 * high:.1f}"
        table.append([name.replace("_", " "), f"{value:.1f}", interval])
    caption = (
        f"Pointing game: per cent of Grad-CAM maps ({args.layer}) whose peak lies on the flower,\n"
        f"{len(rows)} test images; {experiment.tag()}.\nchance: a random pixel; centre: the middle."
    )
    headers = ["maps of", "on the flower", "95 % interval"]
    cli.show_table(folder / "2.6_pointing_game.txt", caption, headers, table)
    return game


def flower_mask(test: Packed, row: int, size_px: int) -> Tensor:
    """Bool (size_px, size_px): the drawn flower in the square that the network sees."""
    side_px = test.images.shape[1]
    mask = torch.from_numpy(test.source.flower(int(test.rows[row]), side_px).mask.copy())
    return data.centre_crop(data.centre_crop(mask[None], side_px, side_px), size_px, size_px)[0]


def _show_overlays(
    folder: Path,
    experiment: Experiment,
    name: str,
    chosen: list[int],
    images: Tensor,
    labels: Tensor,
    seen: dict[str, Seen],
) -> None:
    """Images and, beside each, every network's maps: of the predicted and of the true class."""
    names = experiment.packed["test"].class_names
    rows = []
    for i in chosen:
        cells = [plotting.Overlay(data.to_uint8(images[i]), None, f"true: {names[labels[i]]}")]
        for network, of in seen.items():
            predicted, truth = int(of.probabilities[i].argmax()), int(labels[i])
            asked = {predicted: of.predicted_maps[i], truth: of.true_maps[i]}
            for which in (predicted, truth) if name == "wrong" else (predicted,):
                kind = "predicted" if which == predicted else "true"
                text = (
                    f"{network}, {kind}: {names[which]}, {100 * of.probabilities[i, which]:.0f} %"
                )
                cells.append(plotting.Overlay(cells[0].image, asked[which].numpy(), text))
        rows.append(cells)
    if not rows:
        print(f"no test image that the plain network gets {name}")
        return
    title = f"Grad-CAM at {experiment.args.layer}, {name} predictions of the plain network"
    path = folder / f"2.6_{name}.png"
    plotting.overlays(path, f"{title}: {experiment.tag()}", rows)


PARTS = {
    "2.1": part_2_1,
    "2.2": part_2_2,
    "2.3": part_2_3,
    "2.4": part_2_4,
    "2.5": part_2_5,
    "2.6": part_2_6,
}


def check_flags(args: argparse.Namespace, images: int) -> None:
    """Refuse before any work what would fail in the middle of it.

    Raises:
        UserError: see the messages.
    """
    if args.image_size < IMAGE_SIZE_MIN_PX:
        raise UserError(
            f"--image-size {args.image_size}: EfficientNetV2-S needs {IMAGE_SIZE_MIN_PX} px or more"
        )
    if args.width <= 1:
        raise UserError(f"--width {args.width:g}: a wider network has more than 1")
    low, high = args.noise_area
    if not 0 < low <= high < 1:
        raise UserError(f"--noise-area {low:g} {high:g}: give two shares, 0 < low <= high < 1")
    parallel.check_images(min(images, args.batch_size))


def make_parser() -> cli.ProblemParser:
    """The command line of this problem."""
    parser = cli.ProblemParser(__doc__, PARTS)
    add = parser.add
    add(
        "--data",
        choices=("flowers102", "synthetic"),
        default="flowers102",
        help="synthetic: the embedded drawn flowers",
    )
    add(
        "--data-root",
        type=Path,
        default=Path("data"),
        help="folder that holds flowers-102, or gets it by download",
    )
    add("--classes", type=cli.positive, default=10, help="classes of the embedded data")
    add(
        "--images-per-class",
        type=cli.positive,
        default=100,
        help="training images of each embedded class (test as many, val half)",
    )
    add("--cache", type=Path, default=Path("data/cache"), help="folder of the packed cache")
    add("--skip-bad", action="store_true", help="leave bad images out, listed (default: stop)")
    add("--image-size", type=cli.positive, default=224, help="side of the network's input in px")
    add("--init", default="scratch", help="scratch, imagenet or a file of weights")
    add(
        "--zero-head",
        action="store_true",
        help="a new head starts at zero (default: torchvision's)",
    )
    parallel.add_flag(parser)
    add("--width", type=cli.non_negative, default=1.1, help="of the wide network, in narrow ones")
    add("--width-divisor", type=cli.positive, default=1, help="channels rounded up to multiples")
    add("--from-narrow", type=Path, metavar="FILE", help="narrow network to widen (default: 2.2's)")
    add(
        "--symmetry-noise",
        type=cli.share,
        default=0.01,
        help="share by which copied weights are varied, so that they do not stay copies",
    )
    add("--noise-prob", type=cli.share, default=0.5, help="share of images that a block covers")
    add(
        "--noise-area",
        type=cli.share,
        nargs=2,
        metavar=("LOW", "HIGH"),
        default=(0.05, 0.3),
        help="its share of the image",
    )
    add(
        "--noise", choices=("uniform", "gaussian"), default="uniform", help="what it is filled with"
    )
    add("--layer", default="features.6", help="feature layer for Grad-CAM, by its name")
    add("--images", type=cli.positive, default=6, help="right and wrong test images in its figures")
    add("--pointing-images", type=cli.positive, default=300, help="test images it is measured on")
    add_flags(parser, epochs=60, batch_size=32, learning_rate=1.5e-3)
    return parser


def main() -> None:
    args = make_parser().parse_args()
    cli.run_parts(PARTS, args, "problem2", Experiment)
    parallel.stop()


if __name__ == "__main__":
    sys.exit(cli.guard(main))
