"""What tables, figures and results say of trained networks: their runs, and means over seeds."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from common.reporting import plotting, tables
from common.reporting.statistics import wilson_interval

COLUMNS = {
    "network": "{network}",
    "seed": "{seed}",
    "best epoch": "{best_epoch}",
    "val top-1": "{val_top1:.2f}",
    "test top-1": "{test_top1:.2f}{spread}",
    "95 % interval": "{test_top1_low:.2f} - {test_top1_high:.2f}",
    "per class": "{test_per_class:.2f}",
    "images/s": "{images_per_second:.1f}",
    "seconds": "{training_seconds:.0f}",
}


def over_seeds(runs: list[dict], images: int) -> dict:
    """Means over the seeds, and the spread of test top-1; `images` is the number in test.

    The Wilson interval is of one test set: the same images again are no new evidence.

    Returns:
        val_top1, test_top1, test_per_class, test_top1_low, test_top1_high, test_top1_std (sample
        standard deviation, None of one run), all in per cent, and training_seconds of a run.
    """
    keys = ("val_top1", "test_top1", "test_per_class")
    mean = {key: float(np.mean([run[key] for run in runs])) for key in keys}
    low, high = wilson_interval(round(mean["test_top1"] * images / 100), images)
    spread = float(np.std([run["test_top1"] for run in runs], ddof=1)) if len(runs) > 1 else None
    return {
        **mean,
        "test_top1_low": 100 * low,
        "test_top1_high": 100 * high,
        "test_top1_std": spread,
        "training_seconds": float(np.mean([run["training_seconds"] for run in runs])),
    }


def with_means(networks: Mapping[str, list[dict]], images: int) -> dict[str, dict]:
    """Each network's `over_seeds`, and its runs under "runs"."""
    return {name: {**over_seeds(runs, images), "runs": runs} for name, runs in networks.items()}


def training_report(
    setup,
    part: str,
    networks: Mapping[str, list[dict]],
    caption: str = "",
    extra_rows: Iterable[Mapping] = (),
) -> tuple[dict[str, str], dict[str, Callable[[Path], None]]]:
    """A table of all runs and their curves, as `Findings` takes them: (tables, figures).

    A row a run, and one over the seeds of a network that has several. `setup` is the problem's
    `common.training.runs.Setup`, `networks` maps names to runs, `caption` is what else is said of
    the trainings, such as "init scratch"; `extra_rows` are records with keys of COLUMNS for methods
    without a training.
    """
    precisions = sorted({run["precision"] for runs in networks.values() for run in runs})
    tag = ", ".join(filter(None, [setup.tag_in(" and ".join(precisions)), caption]))
    text = (
        f"{tag}, {setup.recipe.epochs} epochs.\n"
        "Top-1 in per cent, of the epoch that was best on val; test looked at once"
        f"{', mirror images averaged' * setup.args.flip_test}; chance {100 / setup.classes:.2f}"
        " %.\nPer class: the mean over classes of test top-1 within the class."
    )
    records = [{**row, "spread": ""} for row in extra_rows]
    for name, runs in networks.items():
        records += [{**run, "network": name, "spread": ""} for run in runs]
        if len(runs) > 1:
            means = over_seeds(runs, len(setup.packed["test"]))
            shown = {key: means[key] for key in ("val_top1", "test_top1", "test_per_class")}
            spread = f" +- {means['test_top1_std']:.2f}"
            records.append({"network": name, "seed": "all", "spread": spread, **shown})
    smoothing = setup.recipe.label_smoothing
    title = f"{tag}; labels smoothed by {smoothing:g} in training alone" if smoothing else tag
    histories = {name: [run["history"] for run in runs] for name, runs in networks.items()}
    curves = partial(plotting.training_curves, title=title, histories=histories)
    table = tables.table(text, COLUMNS, records)
    return {f"{part}_training.txt": table}, {f"{part}_curves.png": curves}
