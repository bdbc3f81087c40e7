"""What problems that train share: their data and device, and runs, each trained and tested once."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import nn

from common import cli, data, parallel, plotting, training
from common.data import DrawnSet, FileSet, Packed
from common.recipe import Recipe, recipe_of
from common.statistics import wilson_interval


class TrainingExperiment:
    """What the parts of a problem share: the data, the device, and the runs trained so far.

    A problem's own sets `sources`, its splits train, val and test, and names its `data`.
    """

    data: str
    sources: dict[str, FileSet | DrawnSet]
    init = "scratch"

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.device = parallel.pick_device(args.device, args.gpus)
        self.recipe = recipe_of(args, self.device)
        self.trained: set[Path] = set()  # with --fresh a run is trained anew once, not by each part

    @cached_property
    def packed(self) -> dict[str, Packed]:
        """Every split from its packed cache."""
        args = self.args
        return {
            split: data.pack(source, args.image_size, args.cache, args.skip_bad)
            for split, source in self.sources.items()
        }

    @property
    def classes(self) -> int:
        return len(self.sources["train"].class_names)

    def tag(self) -> str:
        """What every table and figure of a training says of its origin."""
        recipe = self.recipe
        return f"{self.data}, {recipe.image_size_px} px, {recipe.precision}, {self.device.type}"

    def provenance(self) -> dict:
        """Data and device, for results.json."""
        return {"data": self.data, "device": str(self.device)}


def train_runs(
    experiment: TrainingExperiment,
    name: str,
    build: Callable[[int], nn.Module],
    folder: Path,
    gpus: int | None = None,
    **changes,
) -> list[dict]:
    """Train `build(seed)` once a seed, and test each with the weights that were best on val.

    A run that another part has trained is not trained again. `changes` are of the recipe.
    """
    args, runs = experiment.args, []
    gpus = args.gpus if gpus is None else gpus
    mode = f"-gpus{gpus}" if gpus > 1 else f"-ddp{parallel.size()}" if parallel.size() > 1 else ""
    for seed in range(args.seed, args.seed + args.seeds):
        print(f"{name}{mode}, seed {seed}: {experiment.tag()}")
        recipe = replace(experiment.recipe, seed=seed, **changes)
        run_folder = folder / "runs" / f"{name}{mode}-{args.epochs}epochs-seed{seed}"
        runs.append(train_and_test(experiment, build(seed), recipe, run_folder, gpus))
    return runs


def train_and_test(
    experiment: TrainingExperiment, network: nn.Module, recipe: Recipe, folder: Path, gpus: int
) -> dict:
    """One run: its best epoch on val, test accuracy in per cent with a 95 % interval, history."""
    packed, args, device = experiment.packed, experiment.args, experiment.device
    about = {
        "data": {split: one.source.fingerprint() for split, one in packed.items()},
        "init": experiment.init,
        "parameters": count_parameters(network),
    }
    history = training.fit(
        network,
        packed["train"],
        packed["val"],
        recipe,
        folder,
        device,
        about,
        fresh=args.fresh and folder not in experiment.trained,
        checkpoint_seconds=args.checkpoint_seconds,
        gpus=gpus,
    )
    experiment.trained.add(folder)
    best = max(history, key=lambda row: row["val_top1"])
    tested = training.evaluate(network, packed["test"], recipe, device)
    low, high = wilson_interval(tested["correct"], tested["images"])
    return {
        "seed": recipe.seed,
        "weights": str(folder / "best.pt"),
        "best_epoch": best["epoch"],
        "val_top1": best["val_top1"],
        "test_top1": tested["top1"],
        "test_top1_low": 100 * low,
        "test_top1_high": 100 * high,
        "test_top5": tested["top5"],
        "seconds": sum(row["seconds"] for row in history),
        "images_per_second": float(np.median([row["images_per_second"] for row in history])),
        "peak_memory_mib": max(row["peak_memory_mib"] for row in history),
        "history": history,
    }


def over_seeds(runs: list[dict], images: int) -> dict:
    """Means over the seeds, and the spread of test top-1 (sample standard deviation).

    The Wilson interval is of one test set: the same images again are no new evidence.
    """
    mean = {key: float(np.mean([run[key] for run in runs])) for key in ("val_top1", "test_top1")}
    low, high = wilson_interval(round(mean["test_top1"] * images / 100), images)
    spread = float(np.std([run["test_top1"] for run in runs], ddof=1)) if len(runs) > 1 else None
    return {
        **mean,
        "test_top1_low": 100 * low,
        "test_top1_high": 100 * high,
        "test_top1_std": spread,
        "seconds": float(np.mean([run["seconds"] for run in runs])),
    }


def count_parameters(network: nn.Module) -> int:
    """Trainable scalars."""
    return sum(one.numel() for one in network.parameters() if one.requires_grad)


def show_runs(folder: Path, experiment: TrainingExperiment, part: str, networks: dict) -> None:
    """A row a run, and the curves of all."""
    rows = []
    for name, runs in networks.items():
        for run in runs:
            interval = f"{run['test_top1_low']:.2f} - {run['test_top1_high']:.2f}"
            accuracies = [f"{run[key]:.2f}" for key in ("val_top1", "test_top1")]
            rows.append([name, str(run["seed"]), str(run["best_epoch"]), *accuracies, interval])
            rows[-1] += [f"{run['images_per_second']:.1f}", f"{run['seconds']:.0f}"]
        spread = over_seeds(runs, len(experiment.packed["test"]))
        if spread["test_top1_std"] is not None:
            shown = f"{spread['test_top1']:.2f} +- {spread['test_top1_std']:.2f}"
            rows.append([name, "all", None, f"{spread['val_top1']:.2f}", shown, None, None, None])
    headers = ["network", "seed", "best epoch", "val top-1", "test top-1", "95 % interval"]
    headers += ["images/s", "seconds"]
    caption = (
        f"{experiment.tag()}, {experiment.args.epochs} epochs, init {experiment.init}.\n"
        "Top-1 in per cent, of the epoch that was best on val; test looked at once; chance"
        f" {100 / experiment.classes:.2f} %."
    )
    cli.show_table(folder / f"{part}_training.txt", caption, headers, rows)
    curves = {name: [run["history"] for run in runs] for name, runs in networks.items()}
    title, smoothing = experiment.tag(), experiment.recipe.label_smoothing
    if smoothing:
        title += f"; labels smoothed by {smoothing:g} in training alone"
    plotting.training_curves(folder / f"{part}_curves.png", title, curves)
