"""Figures, with units on the axes and their settings below; see `canvas`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.reporting.canvas import lines_more, load_matplotlib, new_figure, one_line, wrapped

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# How figures call what code and results name otherwise.
NAMES = {
    "l1": "pixels",
    "l2": "pixels",
    "lpips": "LPIPS",
    "dssim": "1 - SSIM",
    "efficientnet_v2_s": "EfficientNetV2-S",
    "efficientnet_v2_s_continued": "the same, continued",
    "noise_block": "with noise block",
    "resnet34": "ResNet-34",
    "resnet36": "ResNet-36 with f",
    "resnet36_relu_stem": "with f, ReLU in the stem",
    "resnet36_relu": "with ReLU",
    "resnet36_sum": "f after the sums",
    "resnet36_report_recipe": "f off the sums",
}


def shown_name(name: str) -> str:
    """A network's or a loss's name as a reader knows it; others as they are."""
    if name.startswith("wide_"):
        width, _, narrow = name.removeprefix("wide_").partition("_")
        return f"{width} times as wide" + ", from the narrow one" * bool(narrow)
    return NAMES.get(name, name)


@dataclass(frozen=True)
class HeatMap:
    """A (height, width) map of values >= 0 that shares one colour scale with its column."""

    values: np.ndarray
    label: str


@dataclass(frozen=True)
class Panel:
    """One dose-response panel: `curves[name]` is (mean, low, high), each of len(doses) > 0."""

    title: str
    xlabel: str
    doses: Sequence[float]
    curves: dict[str, tuple[Sequence[float], Sequence[float], Sequence[float]]]


def image_grid(
    path: Path, title: str, headers: list[str], rows: dict[str, list[np.ndarray | HeatMap]]
) -> None:
    """A grid of images, `headers` above its columns and the keys of `rows` beside its rows.

    Cells are uint8 (height, width, 3) or heat maps; a column's heat maps share one scale.
    """
    ratios = [cells[0].shape[0] / cells[0].shape[1] for cells in rows.values()]
    heights = np.clip(ratios, 0.25, 4)  # a strip is drawn small in a place of its own
    scales = [
        max([1e-9, *(cell.values.max() for cell in cells if isinstance(cell, HeatMap))])
        for cells in zip(*rows.values(), strict=True)
    ]
    shape = (len(rows), len(headers))
    fitting = np.maximum(10, 24 * heights).astype(int)  # characters along a row
    names, headers = list(map(wrapped, rows, fitting)), [wrapped(text, 18) for text in headers]
    width, height = 2.1 * shape[1] + 0.9, 2.1 * sum(heights) + 0.1 * shape[0] + 0.7
    size = (width + 0.17 * lines_more(names), height + 0.17 * lines_more(headers))
    with new_figure(path, title, shape, size, height_ratios=heights) as (figure, axes):
        for row, name, cells in zip(axes, names, rows.values(), strict=True):
            row[0].set_ylabel(name)
            for axis, cell, highest in zip(row, cells, scales, strict=True):
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
                if isinstance(cell, HeatMap):
                    root = load_matplotlib().colors.PowerNorm(0.5, 0, highest)  # most are small
                    drawn = axis.imshow(cell.values, cmap="magma", norm=root)
                    beside = axis.inset_axes((1.03, 0, 0.05, 1))
                    figure.colorbar(drawn, cax=beside, label=f"{cell.label},\nroot scale")
                else:
                    axis.imshow(cell)
        for axis, header in zip(axes[0], headers, strict=True):
            axis.set_title(header)


def dots(
    path: Path,
    title: str,
    settings: str,
    xlabel: str,
    names: list[str],
    series: Mapping[str, Sequence[tuple[float, float, float]]],
    digits: int,
) -> None:
    """A row a name: each series' (value, low, high) as a dot and a line, the first series filled.

    The first series' values stand beside them in so many digits; NaN is left out.
    """
    with new_figure(path, title, (1, 1), (8, 0.5 * len(names) + 1.3), settings) as (_, ((axis,),)):
        for number, (label, rows) in enumerate(series.items()):
            values, lows, highs = np.array(rows, float).T
            places = np.arange(len(names)) + 0.22 * number
            how = {"fmt": "o", "color": f"C{number}", "mfc": "white" if number else f"C{number}"}
            # Of equal values the mean may be off in its last digit, outside of its own interval.
            errors = np.maximum([values - lows, highs - values], 0)
            axis.errorbar(values, places, xerr=errors, capsize=3, ms=8, label=label, **how)
            for value, high, place in zip(values, highs, places, strict=True):
                if number == 0 and np.isfinite(value):
                    axis.annotate(f"{value:.{digits}f}", (np.fmax(value, high), place), (6, 0),
                        textcoords="offset points", va="center", fontsize=9)  # fmt: skip
        axis.set_yticks(np.arange(len(names)), [one_line(shown_name(name)) for name in names])
        axis.set(xlabel=xlabel, xlim=(0, None))
        axis.invert_yaxis()
        axis.grid(visible=False, axis="y")
        if len(series) > 1:
            axis.legend(loc="best")


def dose_response(
    path: Path,
    title: str,
    settings: str,
    ylabel: str,
    panels: list[Panel],
    ylim: tuple[float, float],
) -> None:
    """Log-log curves with their intervals as bands, the panels on one vertical scale."""
    ticker = load_matplotlib().ticker
    size = (5.2 * len(panels) + 0.8, 4.6)
    with new_figure(path, title, (1, len(panels)), size, settings, sharey=True) as (figure, axes):
        for axis, panel in zip(axes[0], panels, strict=True):
            for name, (mean, low, high) in panel.curves.items():
                how = {"label": one_line(shown_name(name)), "marker": "o", "ms": 3.5}
                how["linestyle"] = "--" if name in ("l1", "l2") else "-"
                (line,) = axis.plot(panel.doses, mean, **how)
                axis.fill_between(panel.doses, low, high, color=line.get_color(), alpha=0.12)
            axis.set(title=panel.title, xlabel=panel.xlabel, xscale="log", yscale="log")
            axis.xaxis.set(
                major_locator=ticker.FixedLocator(list(panel.doses)),
                minor_locator=ticker.NullLocator(),
                major_formatter="{x:g}",
            )
            # Not the default ones, which write mathematics.
            axis.yaxis.set(major_formatter="{x:g}", minor_formatter=ticker.LogFormatter())
            axis.axhline(1, color="grey", linewidth=1, linestyle=":")
        axes[0, 0].set(ylabel=ylabel, ylim=ylim)
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")


def training_curves(path: Path, title: str, histories: dict[str, list[list[dict]]]) -> None:
    """Loss and top-1 over the epochs: train dashed (augmented images), val solid.

    `title` says of which trainings, small below. `histories[name]` has one list of epochs a seed:
    the lines are their means, the bands span val's lowest to highest.
    """
    seeds = max(map(len, histories.values()))
    settings = f"{title}; mean and range of {seeds} seeds" if seeds > 1 else title
    settings += ". Train is of augmented images and smoothed labels, which cost more than val's."
    about = ("Loss and accuracy over the epochs", (1, 2), (13, 4.2), settings)
    labels = {"loss": "cross-entropy", "top1": "top-1 in %"}
    with new_figure(path, *about) as (figure, axes):
        for axis, (key, label) in zip(axes[0], labels.items(), strict=True):
            lines = {}
            for name, runs in histories.items():
                both = [[(row[f"train_{key}"], row[f"val_{key}"]) for row in run] for run in runs]
                lines[name] = np.moveaxis(np.array(both, float), 2, 0)  # None leaves a gap
            for name, (train, val) in lines.items():
                epochs = [row["epoch"] for row in histories[name][0]]
                (line,) = axis.plot(epochs, val.mean(0), label=one_line(shown_name(name)))
                colour = line.get_color()
                if seeds > 1:
                    axis.fill_between(epochs, val.min(0), val.max(0), color=colour, alpha=0.15)
                axis.plot(epochs, train.mean(0), "--", color=colour, alpha=0.6, linewidth=1.2)
            # One odd picture can have a val loss of any size: such a line leaves the axes.
            top = 1.3 * max(np.nanmax(train) for train, _ in lines.values())
            if key == "loss" and any((val > top).any() for _, val in lines.values()):
                axis.set_ylim(0, top)
            axis.set(title=f"{label}: val solid, train dashed", xlabel="epoch", ylabel=label)
            axis.xaxis.set_major_locator(load_matplotlib().ticker.MaxNLocator(integer=True))
        figure.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside right center")


def power_of_ten(value: float, _position: int) -> str:
    """The text of a tick at a power of ten, such as 10³; matplotlib's own is mathematics."""
    return "10" + str(round(np.log10(value))).translate(SUPERSCRIPTS)
