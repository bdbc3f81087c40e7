"""Text tables of results, with a format string for each column, and the table of trainings."""

import math
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from tabulate import tabulate

from common.job import printable
from common.reporting import plotting
from common.reporting.statistics import over_seeds

FORMATTER = string.Formatter()
TRAINING = {
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


def table(caption: str, columns: Mapping[str, str], records: Iterable[Mapping]) -> str:
    """An aligned text table under its caption, one row per record.

    `columns` maps a header to a format string over the record's keys, such as
    "{test_top1_low:.2f} - {test_top1_high:.2f}"; see `cell`. A cell without a value is "-".
    """
    rows = [[cell(template, record) for template in columns.values()] for record in records]
    align = ["left"] + ["right"] * (len(columns) - 1)
    text = tabulate(rows, [*columns], missingval="-", disable_numparse=True, colalign=align)
    return f"{caption}\n{text}\n"


def cell(template: str, record: Mapping) -> str | None:
    """A format string filled from a record; None if a value that it names is missing.

    A value is missing if its key is missing, or if it is None or not finite (in results.json both
    are null). Characters that would control a terminal or break the line are escaped.
    """
    for _, field, _, _ in FORMATTER.parse(template):
        if field is None:  # text after the last value
            continue
        try:
            value, _ = FORMATTER.get_field(field, (), record)
        except (KeyError, IndexError, TypeError):  # TypeError: a key of None
            return None
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            return None
    return printable(template.format_map(record))


def training_report(
    setup,
    part: str,
    networks: Mapping[str, list[dict]],
    caption: str = "",
    extra_rows: Iterable[Mapping] = (),
    differences: Sequence[Mapping] = (),
) -> tuple[dict[str, str], dict[str, Callable[[Path], None]]]:
    """Tables of all runs and of their `differences`, if any, and the figure of their curves.

    Returns (tables, figures) for `Findings`. `setup`: a `common.training.runs.Setup`; `networks`:
    runs by name; `caption`: added to all captions; `extra_rows`: records of untrained methods.
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
    title = tag.replace("last layer solved", "last layer as trained")  # which the history is of
    title += f"; labels smoothed by {smoothing:g} in training alone" if smoothing else ""
    histories = {name: [run["history"] for run in runs] for name, runs in networks.items()}
    curves = partial(plotting.training_curves, title=title, histories=histories)
    tables = {f"{part}_training.txt": table(text, TRAINING, records)}
    if differences:
        tables[f"{part}_differences.txt"] = differences_table(differences, tag)
    return tables, {f"{part}_curves.png": curves}


def differences_table(differences: Sequence[Mapping], tag: str) -> str:
    """A table of differences in test top-1 between networks, paired by seed and image."""
    columns = {"network": "{a}", "less": "{b}", "points": "{mean:+.2f}"}
    columns["95 % interval"] = "{low:+.2f} - {high:+.2f}"
    caption = (
        "Difference of test top-1 in points, paired by seed and image; the interval resamples seeds"
        f"\nand images, so with one seed it covers images alone. {printable(tag)}."
    )
    return table(caption, columns, differences)
