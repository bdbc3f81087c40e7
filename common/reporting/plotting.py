"""Figures as PNG files at 200 dpi, with units on the axes and settings in small print below.

matplotlib is imported only when a figure is drawn: it takes a second, and `--help` need not wait.
Names may come from the user: they are drawn as they are, never read as mathematics.
"""

import contextlib
import itertools
import logging
import os
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from common.job import printable

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# Names that figures use in place of those in code and results.
NAMES = {
    "l1": "pixels",
    "l2": "pixels",
    "lpips": "LPIPS",
    "dssim": "1 - SSIM",
    "efficientnet_v2_s": "EfficientNetV2-S",
    "efficientnet_v2_s_continued": "EfficientNetV2-S, trained on",
    "noise_block": "with noise block",
    "resnet34": "ResNet-34",
    "resnet36": "ResNet-36 with f",
    "resnet36_relu_stem": "with f, ReLU in the stem",
    "resnet36_relu": "with ReLU",
    "resnet36_sum": "f after the sums",
    "resnet36_report_recipe": "f off the sums",
}
CURVES = {"loss": "cross-entropy", "top1": "top-1 in %"}  # of a training
FONT = "DejaVu Sans"  # matplotlib includes it
STYLE = {
    "font.family": FONT,
    "text.parse_math": False,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


@cache
def load_matplotlib():
    """Import matplotlib as if MPLBACKEND were not set: a notebook may name one we don't have.

    Its log messages below the level of errors, such as one on a missing cache folder, are hidden.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib.figure  # not pyplot, which would keep every figure in memory
        import matplotlib.style
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return matplotlib


@contextlib.contextmanager
def new_figure(
    path: Path,
    title: str,
    shape: tuple[int, int],
    size: tuple[float, float],
    settings: str = "",
    **options,
) -> Iterator[tuple]:
    """Yield a figure of `size` inches and its array of axes; save the figure when the block ends.

    `shape`: (rows, columns) of axes. `settings`, in small print below, names data and settings.
    """
    matplotlib = load_matplotlib()
    with matplotlib.style.context(STYLE, after_reset=True):  # ignore the user's matplotlibrc
        title = wrapped(title, characters=round(12 * size[0]))
        settings = wrapped(settings, characters=round(16 * size[0]))
        more = 0.18 * lines_more([title]) + 0.15 * len(settings.splitlines())
        figure = matplotlib.figure.Figure((size[0], size[1] + more), layout="constrained")
        if title:
            figure.suptitle(title, fontsize=11)
        figure.supxlabel(settings, fontsize=8, color="0.4")
        yield figure, figure.subplots(*shape, squeeze=False, **options)
        for text in figure.findobj(matplotlib.text.Text):
            text.set_text(drawable(text.get_text()))
        figure.savefig(path, dpi=200)


def drawable(text: str) -> str:
    """The text, where characters without a glyph in the font become <U+732B U+864E>."""
    runs = itertools.groupby(text, lambda char: char == "\n" or ord(char) in _glyphs())
    return "".join(
        "".join(run) if has_glyphs else f"<{' '.join(f'U+{ord(char):04X}' for char in run)}>"
        for has_glyphs, run in runs
    )


@cache
def _glyphs() -> frozenset[int]:
    """The code points that the font can draw."""
    fonts = load_matplotlib().font_manager
    return frozenset(fonts.get_font(fonts.findfont(FONT)).get_charmap())


def wrapped(text: str, characters: int) -> str:
    """A text that may hold the user's names, in drawable lines of at most `characters`."""
    return "\n".join(textwrap.wrap(drawable(printable(text)), characters))


def lines_more(texts: Iterable[str]) -> int:
    """How many lines the longest text has beyond the three that a figure has room for."""
    return max([0, *(text.count("\n") - 2 for text in texts)])


def shown_name(name: str) -> str:
    """The reader's name for a network or a loss; other names as they are, on one line."""
    if name.startswith("wide_"):
        width, _, narrow = name.removeprefix("wide_").partition("_")
        return f"{width} times as wide" + ", from the narrow one" * bool(narrow)
    return printable(NAMES.get(name, name))


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
    heights = np.clip(ratios, 0.25, 4)  # a strip is drawn small in its cell
    scales = [
        max([1e-9, *(cell.values.max() for cell in cells if isinstance(cell, HeatMap))])
        for cells in zip(*rows.values(), strict=True)
    ]
    shape = (len(rows), len(headers))
    fitting = np.maximum(10, 24 * heights).astype(int)  # characters that fit a row's height
    names = list(map(wrapped, rows, fitting))
    headers = [wrapped(text.replace("_", " "), 18) for text in headers]  # lines break at spaces
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
    """Draw one row per name: the (value, low, high) of each series as a dot and a line.

    The first series is filled; its values stand beside it with `digits` decimals. NaN is left out.
    """
    with new_figure(path, title, (1, 1), (8, 0.5 * len(names) + 1.3), settings) as (_, ((axis,),)):
        for number, (label, rows) in enumerate(series.items()):
            values, lows, highs = np.array(rows, float).T
            places = np.arange(len(names)) + 0.22 * number
            how = {"fmt": "o", "color": f"C{number}", "mfc": "white" if number else f"C{number}"}
            # Rounding can put the mean of equal values just outside of their interval.
            errors = np.maximum([values - lows, highs - values], 0)
            axis.errorbar(values, places, xerr=errors, capsize=3, ms=8, label=label, **how)
            for value, high, place in zip(values, highs, places, strict=True):
                if number == 0 and np.isfinite(value):
                    axis.annotate(f"{value:.{digits}f}", (np.fmax(value, high), place), (6, 0),
                        textcoords="offset points", va="center", fontsize=9)  # fmt: skip
        axis.set_yticks(np.arange(len(names)), [drawable(shown_name(name)) for name in names])
        axis.set(xlabel=xlabel, xlim=(0, None))
        axis.invert_yaxis()
        axis.grid(visible=False, axis="y")
        if len(series) > 1:
            axis.legend(loc="best")


def dose_response(
    path: Path, title: str, settings: str, ylabel: str, panels: list[Panel], ylim: Sequence[float]
) -> None:
    """Log-log curves with their intervals as bands, the panels on one vertical scale."""
    ticker = load_matplotlib().ticker
    size = (5.2 * len(panels) + 0.8, 4.6)
    with new_figure(path, title, (1, len(panels)), size, settings, sharey=True) as (figure, axes):
        for axis, panel in zip(axes[0], panels, strict=True):
            for name, (mean, low, high) in panel.curves.items():
                how = {"label": shown_name(name), "marker": "o", "ms": 3.5}
                how["linestyle"] = "--" if name in ("l1", "l2") else "-"
                (line,) = axis.plot(panel.doses, mean, **how)
                axis.fill_between(panel.doses, low, high, color=line.get_color(), alpha=0.12)
            axis.set(title=panel.title, xlabel=panel.xlabel, xscale="log", yscale="log")
            axis.xaxis.set(
                major_locator=ticker.FixedLocator(list(panel.doses)),
                minor_locator=ticker.NullLocator(),
                major_formatter="{x:g}",
            )
            # The default formatters would write mathematics.
            axis.yaxis.set(major_formatter="{x:g}", minor_formatter=ticker.LogFormatter())
            axis.axhline(1, color="grey", linewidth=1, linestyle=":")
        axes[0, 0].set(ylabel=ylabel, ylim=ylim)
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")


def training_curves(path: Path, title: str, histories: dict[str, list[list[dict]]]) -> None:
    """Loss and top-1 over the epochs: train dashed (augmented images), val solid.

    `title` names the trainings, in small print. `histories[name]` has one list of epochs per seed:
    lines are means over seeds, bands span val's lowest to highest value.
    """
    seeds = max(map(len, histories.values()))
    settings = f"{title}; mean and range of {seeds} seeds" if seeds > 1 else title
    settings += ". Train: means since the point before, of augmented images."
    about = ("Loss and accuracy over the epochs", (1, 2), (10, 4), settings)
    with new_figure(path, *about) as (figure, axes):
        for axis, (key, label) in zip(axes[0], CURVES.items(), strict=True):
            lines = {}
            for name, runs in histories.items():
                both = [[(row[f"train_{key}"], row[f"val_{key}"]) for row in run] for run in runs]
                lines[name] = np.moveaxis(np.array(both, float), 2, 0)  # None leaves a gap
            for name, (train, val) in lines.items():
                epochs = [row["epoch"] for row in histories[name][0]]
                how = {"marker": ".", "markersize": 4}  # a point beside gaps makes no line
                (line,) = axis.plot(epochs, val.mean(0), label=shown_name(name), **how)
                colour = line.get_color()
                if seeds > 1:
                    axis.fill_between(epochs, val.min(0), val.max(0), color=colour, alpha=0.15)
                axis.plot(epochs, train.mean(0), "--", color=colour, alpha=0.6, lw=1.2, **how)
            # One odd picture can make the val loss arbitrarily large: its line leaves the axes.
            top = 1.3 * max(np.nanmax(train) for train, _ in lines.values())
            if key == "loss" and any((val > top).any() for _, val in lines.values()):
                axis.set_ylim(0, top)
            axis.set(title=f"{label}: val solid, train dashed", xlabel="epoch", ylabel=label)
            axis.xaxis.set_major_locator(load_matplotlib().ticker.MaxNLocator(integer=True))
        figure.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside right center")


def power_of_ten(value: float, _position: int) -> str:
    """The tick label for a power of ten, such as 10³; matplotlib's own would be mathematics."""
    return "10" + str(round(np.log10(value))).translate(SUPERSCRIPTS)


def ratio_grid(
    path: Path,
    title: str,
    settings: str,
    rows: list[str],
    columns: list[str],
    panels: Mapping[str, np.ndarray],
) -> None:
    """Draw panels of ratios (rows, columns) as coloured cells; 1 is white, NaN is not drawn."""
    size = (1.1 + 0.75 * len(columns) * len(panels), 0.42 * len(rows) + 1.3)
    with new_figure(path, title, (1, len(panels)), size, settings, sharey=True) as (_, axes):
        for axis, (label, ratios) in zip(axes[0], panels.items(), strict=True):
            axis.imshow(np.log2(ratios), cmap="RdBu", vmin=-4, vmax=4, aspect="auto")
            for (row, column), ratio in np.ma.ndenumerate(np.ma.masked_invalid(ratios)):
                pale = abs(np.log2(ratio)) < 2.5
                how = {"ha": "center", "va": "center", "color": "black" if pale else "white"}
                axis.text(column, row, f"{ratio:.2g}", fontsize=9, **how)
            axis.set_xticks(np.arange(len(columns)), columns, fontsize=9)
            axis.set_yticks(np.arange(len(rows)), [drawable(shown_name(name)) for name in rows])
            axis.axvline(len(columns) - 1.5, color="black", linewidth=1)
            axis.set_title(label)
            axis.grid(visible=False)
            axis.spines[:].set_visible(False)
            axis.tick_params(length=0)
