"""Runs: each compared network is trained once per seed and tested once."""

import argparse
import contextlib
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from common import files, job
from common.data.packed import Packed, pack
from common.data.sets import DrawnSet, FileSet
from common.errors import UserError
from common.reporting.statistics import difference_of, wilson_interval
from common.training import loop, parallel
from common.training.convolutions import with_fast_convolutions
from common.training.evaluation import evaluate
from common.training.head import solve_head
from common.training.precision import (
    PRECISIONS,
    Example,
    Precision,
    choose_precision,
    make_deterministic,
)
from common.training.recipe import Recipe, recipe_of
from common.training.run import Run, Saver, load_stopped
from common.training.watch import NotFinite

EVALUATED = 0.35  # time to evaluate an image, as a share of the time to train on it
SECOND_THREAD = 0.4  # work of each further thread of a process, as a share of the first one's
step_seconds = cache(Example.seconds)  # for a precision that the user chose, so not yet timed


@dataclass(frozen=True, eq=False)
class Setup:
    """What the parts of a problem with trainings share.

    data: the data's name in tables and figures. sources: the splits train, val and test, not yet
    decoded. folder: the problem's results folder, where runs are kept. finished: this call's runs
    by folder, each its result or its NotFinite, and work beside them by name. step: an example of
    the trainings' steps, None without trainings. teach: returns the runs'
    `common.studies.teacher.Teacher` or None.
    """

    args: argparse.Namespace
    data: str
    sources: dict[str, FileSet | DrawnSet]
    device: torch.device
    precision: Precision
    recipe: Recipe
    folder: Path
    step: Example | None = None
    finished: dict[Path | str, dict | NotFinite] = field(default_factory=dict)
    teach: Callable[["Setup"], object] | None = None

    def __getstate__(self) -> dict:
        """The state sent to another process, which opens the packed cache itself."""
        return {key: value for key, value in vars(self).items() if key != "packed"}

    @cached_property
    def packed(self) -> dict[str, Packed]:
        """Every split from its packed cache; the first use decodes the images."""
        args = self.args
        return {
            split: pack(source, args.image_size, args.cache, args.skip_bad)
            for split, source in self.sources.items()
        }

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.sources["train"].class_names)

    def tag_in(self, precision: str) -> str:
        """The origin of results of trainings in a precision, as tables and figures print it."""
        solved = ", last layer solved" if self.recipe.solve_head else ""
        return (
            f"{self.data}, {self.recipe.image_size_px} px, {precision}, {self.device.type}{solved}"
        )

    def provenance(self) -> dict:
        """Data, device, precision and the images left out, for results.json."""
        chosen, why = self.precision.name, self.precision.why
        precision = {"asked": self.args.precision, "chosen": chosen, "why": why}
        values = {"data": self.data, "device": str(self.device), "precision": precision}
        if "packed" in vars(self):  # a part has asked for the images
            values["left_out"] = [bad for split in self.packed.values() for bad in split.left_out]
        return values


def set_up(
    args: argparse.Namespace,
    data: str,
    sources: dict[str, FileSet | DrawnSet],
    folder: Path,
    example: Callable[[], nn.Module] | None,
) -> Setup:
    """Choose the precision and load the server of --jobs; call `parallel.start` before.

    `example` makes a network like those to be trained, for timing a step; None without trainings.
    """
    device = parallel.pick_device(args.device, args.gpus)
    step = Example(example, args.batch_size, args.image_size, device) if example else None
    if args.deterministic and step:
        make_deterministic(step)
    precision = choose_precision(args.precision, step)
    recipe = recipe_of(args, precision.name)
    if step and _trains_side_by_side(args):
        parallel.load_server()  # it loads PyTorch meanwhile
    return Setup(args, job.printable(data), sources, device, precision, recipe, folder, step)


@dataclass(frozen=True)
class NetworkSpec:
    """One of the networks that are compared.

    build: maps a seed to the network, which takes images in [0, 1], and its identity: plain values
    of all flags and files that its initial weights depend on, under names that the recipe lacks.
    recipe_changes: its differences from the common recipe. after: the name of another network;
    `build` starts from that network's run with the same seed.
    """

    name: str
    build: Callable[[int], tuple[nn.Module, dict]]
    recipe_changes: dict = field(default_factory=dict)
    after: str = ""


# ------------------------------------------------------------------------------ trained and tested


def train_side_by_side(
    setup: Setup, specs: Iterable[NetworkSpec], beside: Mapping[str, Callable] | None = None
) -> None:
    """Train networks once per seed, --jobs at a time; `train_seeds` then finds their runs.

    `beside` has further work by name: picklable functions, listed last, whose results `finished`
    gets by that name. This does nothing if one network is left to train, with --jobs 1, with
    --gpus, or in a job of several processes.
    """
    args = setup.args
    if not _trains_side_by_side(args):
        return
    trainings, after, folders = {}, {}, {}
    for spec, seed in itertools.product(specs, range(args.seed, args.seed + args.seeds)):
        name = f"{spec.name}, seed {seed}"
        folders[name] = run_folder(setup, spec.name, seed, gpus=0)
        if is_waiting(setup, folders[name]):
            trainings[name] = partial(train_and_test, setup, spec, seed, 0)
            after[name] = f"{spec.after}, seed {seed}"
        elif folders[name] not in setup.finished:
            train_and_test(setup, spec, seed, 0)  # complete: read, since others may start from it
    if len(trainings) > 1:
        _ = setup.packed  # made once here, not in each process; so is the teacher
        if setup.teach:
            setup.teach(setup)
        for name, result in parallel.side_by_side(trainings | (beside or {}), after, args.jobs):
            setup.finished[folders.get(name, name)] = result


def _trains_side_by_side(args: argparse.Namespace) -> bool:
    return args.jobs > 1 and not args.gpus and job.size() == 1


def train_seeds(setup: Setup, spec: NetworkSpec, seeds: int | None = None) -> list[dict]:
    """Call `train_and_test` once per seed (default: --seeds); complete runs are only read."""
    args = setup.args
    numbers = range(args.seed, args.seed + (seeds or args.seeds))
    return [train_and_test(setup, spec, seed, args.gpus) for seed in numbers]


def train_and_test(setup: Setup, spec: NetworkSpec, seed: int, gpus: int) -> dict:
    """Train one run, choose its best epoch on val, and test that epoch's weights once.

    Returns:
        seed, weights (path of best.pt), precision, best_epoch, head (what `solve_head` returns, and
        trained_val_top1, before it; None without --solve-head), val_top1, test_top1, its 95 %
        interval test_top1_low and test_top1_high, test_top5, test_per_class (the mean over classes
        of the accuracy within the class; all in per cent), test_flip (mirror images averaged?),
        test_not_finite (images without finite logits), hits (on test, one character per image),
        training_seconds, images_per_second (median), peak_memory_mib, history (`fit`'s dicts).
    """
    folder = run_folder(setup, spec.name, seed, gpus)
    if folder not in setup.finished:
        _ = setup.packed  # before the lock, since packing waits for other processes
        with contextlib.ExitStack() as stack:
            # The first process holds the lock for its job. A job does not wait for the lock,
            # since its other processes would time out.
            lock = files.locked(files.make_folder(folder), "trains", wait=job.size() == 1)
            parallel.broadcast(lambda: stack.enter_context(lock))
            setup.finished[folder] = _train_and_test(setup, spec, seed, gpus, folder)
    return finished_run(setup, folder)


def finished_run(setup: Setup, folder: Path) -> dict:
    """A run that this call has made; raises the NotFinite that ended it."""
    run = setup.finished[folder]
    if isinstance(run, NotFinite):
        raise run
    return run


def _train_and_test(setup: Setup, spec: NetworkSpec, seed: int, gpus: int, folder: Path) -> dict:
    args, packed = setup.args, setup.packed
    # With --jobs this is another process than the one that `set_up` made deterministic.
    torch.use_deterministic_algorithms(args.deterministic, warn_only=True)
    stopped = None if args.fresh else load_stopped(folder)
    precision = stopped["about"].get("precision") if stopped else None
    if args.precision != "auto" or precision not in PRECISIONS:  # else a resumed run keeps its own
        precision = setup.recipe.precision
    recipe = replace(setup.recipe, seed=seed, **{"precision": precision, **spec.recipe_changes})
    job.say(f"{folder.name}: {setup.tag_in(recipe.precision)}")
    network, identity = spec.build(seed)
    network = with_fast_convolutions(network, setup.device)
    teacher = setup.teach(setup) if setup.teach else None
    described = {"data": {split: part.source.fingerprint() for split, part in packed.items()}}
    described |= {**identity, **({"teacher": teacher.about} if teacher else {})}
    run = Run(network, recipe, setup.device, gpus, teacher)
    save = Saver(run, folder, described, args.checkpoint_seconds)
    history = loop.fit(save, packed["train"], packed["val"], stopped)
    head = solve_head(save, packed["train"], packed["val"]) if recipe.solve_head else None
    tested = _test_once(setup, network, packed["test"], recipe, folder)
    return _summary(recipe, folder, history, tested, head)


def run_folder(setup: Setup, name: str, seed: int, gpus: int) -> Path:
    """The folder of a run, named after its network, processes or GPUs, epochs and seed."""
    mode = ""
    if gpus > 1:
        mode = f"-gpus{gpus}"
    elif job.size() > 1:
        mode = f"-ddp{job.size()}"
    return setup.folder / "runs" / f"{name}{mode}-{setup.args.epochs}epochs-seed{seed}"


def is_waiting(setup: Setup, folder: Path) -> bool:
    """Whether a run is still to be trained, judged by which files its folder has."""
    complete = (folder / "best.pt").exists() and not (folder / "last.pt").exists()
    return folder not in setup.finished and (setup.args.fresh or not complete)


def _test_once(
    setup: Setup, network: nn.Module, test: Packed, recipe: Recipe, folder: Path
) -> dict:
    """Evaluate best.pt on test; test.json keeps the result, and later calls read it there."""
    path, flip = folder / "test.json", setup.args.flip_test
    tested_as = {"weights_sha256": files.check(folder / "best.pt"), "flip": flip}
    with contextlib.suppress(FileNotFoundError, UserError):  # a damaged one is made again
        kept = files.load_json(path)
        if tested_as.items() <= kept.items():
            return kept
    tested = evaluate(network, test, recipe, setup.device, flip=flip) | tested_as
    if job.is_first():
        files.save_json(path, tested)
    parallel.wait()
    return tested


def _summary(
    recipe: Recipe, folder: Path, history: list[dict], tested: dict, head: dict | None
) -> dict:
    best = max(history, key=lambda row: row["val_top1"])
    low, high = wilson_interval(tested["correct"], tested["images"])
    return {
        "seed": recipe.seed,
        "weights": str(folder / "best.pt"),
        "precision": recipe.precision,
        "best_epoch": best["epoch"],
        "val_top1": (head or best)["val_top1"],
        "head": head and {**head, "trained_val_top1": best["val_top1"]},
        "test_top1": tested["top1"],
        "test_top1_low": 100 * low,
        "test_top1_high": 100 * high,
        "test_top5": tested["top5"],
        "test_per_class": tested["per_class"],
        "test_not_finite": tested["not_finite"],
        "test_flip": tested["flip"],
        "hits": tested["hits"],
        "training_seconds": sum(row["seconds"] for row in history),
        "images_per_second": float(np.median([row["images_per_second"] for row in history])),
        "peak_memory_mib": max(row["peak_memory_mib"] for row in history),
        "history": history,
    }


def differences(trained: Mapping[str, list[dict]], pairs: Iterable[tuple[str, str]]) -> list[dict]:
    """Paired differences of test top-1 in points, a - b: {"a", "b", "mean", "low", "high"} each."""
    return [{"a": a, "b": b, **difference_of(trained[a], trained[b])} for a, b in pairs]


def training_seconds(setup: Setup, specs: Iterable[NetworkSpec], seeds: int) -> float:
    """Estimated seconds to train and test the networks, by their sizes of images in each epoch."""
    args = setup.args
    counts = {split: len(data.labels) for split, data in setup.sources.items()}
    averaged = min(counts["train"], loop.STATISTICS_IMAGES) if args.ema else 0
    evaluations = sum(map(setup.recipe.evaluates_after, range(args.epochs)))
    evaluated = evaluations * (counts["val"] + averaged) + counts["test"]
    images, waiting = 0, 0
    for spec in specs:
        folders = [run_folder(setup, spec.name, args.seed + k, args.gpus) for k in range(seeds)]
        left = sum(is_waiting(setup, folder) for folder in folders)
        recipe = replace(setup.recipe, **spec.recipe_changes)
        sizes = np.array([recipe.at(epoch).image_size_px for epoch in range(args.epochs)])
        trained = counts["train"] * ((sizes / args.image_size) ** 2).sum()
        images += left * (trained + EVALUATED * evaluated)
        waiting += left
    return images / images_per_second(setup, waiting) if waiting else 0


def images_per_second(setup: Setup, trainings: int = 1) -> float:
    """Images per second that `trainings` side by side process together, by the timed step."""
    name = setup.precision.name
    measured = setup.precision.images_per_second or 1 / step_seconds(setup.step, name)[name]
    if setup.device.type != "cpu":
        return measured
    jobs = max(1, min(setup.args.jobs, trainings))
    threads = max(1, torch.get_num_threads() // jobs)
    return measured * jobs * (1 + SECOND_THREAD * (threads - 1))
