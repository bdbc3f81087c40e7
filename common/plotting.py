"""Figures: PNG at 200 dpi, with units on the axes and the provenance in the title."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from common.cli import atomic

STYLE = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


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


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG at 200 dpi in one step, and close it."""
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=200)
    plt.close(figure)


def image_grid(
    path: Path, title: str, headers: list[str], rows: dict[str, list[np.ndarray | HeatMap]]
) -> None:
    """A grid of images, `headers` above its columns and the keys of `rows` beside its rows.

    Cells are uint8 (height, width, 3) or heat maps; a column's heat maps share one scale.
    """
    with plt.rc_context(STYLE | {"axes.grid": False}):
        heights = [cells[0].shape[0] / cells[0].shape[1] for cells in rows.values()]
        figure, axes = plt.subplots(
            len(rows),
            len(headers),
            figsize=(2.1 * len(headers) + 0.9, 2.1 * sum(heights) + 0.1 * len(rows) + 0.7),
            height_ratios=heights,
            squeeze=False,
            layout="constrained",
        )
        figure.suptitle(title, fontsize=11)
        scales = _column_scales(rows)
        for row, (name, cells) in zip(axes, rows.items(), strict=True):
            row[0].set_ylabel(name)
            for column, (axis, cell) in enumerate(zip(row, cells, strict=True)):
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
                if isinstance(cell, HeatMap):
                    scale = PowerNorm(0.5, 0, scales[column])  # most differences are small
                    drawn = axis.imshow(cell.values, cmap="magma", norm=scale)
                    beside = axis.inset_axes((1.03, 0, 0.05, 1))
                    figure.colorbar(drawn, cax=beside, label=cell.label)
                else:
                    axis.imshow(cell)
        for axis, header in zip(axes[0], headers, strict=True):
            axis.set_title(header)
        save(figure, path)


def _column_scales(rows: dict[str, list]) -> dict[int, float]:
    scales: dict[int, float] = {}
    for cells in rows.values():
        for column, cell in enumerate(cells):
            if isinstance(cell, HeatMap):
                scales[column] = max(scales.get(column, 1e-9), float(cell.values.max()))
    return scales


def bars(
    path: Path,
    title: str,
    ylabel: str,
    names: list[str],
    heights: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
) -> None:
    """Bars, their intervals (`lows` to `highs`, NaN where there is none) and heights as text."""
    with plt.rc_context(STYLE | {"axes.grid.axis": "y"}):
        figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
        errors = [np.subtract(heights, lows), np.subtract(highs, heights)]
        drawn = axis.bar(names, heights, 0.6, yerr=errors, capsize=3)
        axis.bar_label(drawn, [f"{height:.3f}" for height in heights], padding=2, fontsize=9)
        axis.set(title=title, ylabel=ylabel)
        axis.set_axisbelow(True)
        save(figure, path)


def dose_response(path: Path, title: str, ylabel: str, panels: list[Panel]) -> None:
    """Log-log curves with their intervals as bands, the panels on one vertical scale."""
    with plt.rc_context(STYLE):
        size = (5.2 * len(panels) + 0.8, 4.6)
        figure, axes = plt.subplots(
            1, len(panels), figsize=size, sharey=True, squeeze=False, layout="constrained"
        )
        figure.suptitle(title, fontsize=11)
        for axis, panel in zip(axes[0], panels, strict=True):
            for name, (mean, low, high) in panel.curves.items():
                dashed = "--" if name in ("l1", "l2") else "-"
                (line,) = axis.plot(panel.doses, mean, dashed, marker="o", ms=3.5, label=name)
                axis.fill_between(panel.doses, low, high, color=line.get_color(), alpha=0.12)
            axis.set(title=panel.title, xlabel=panel.xlabel, xscale="log", yscale="log")
            axis.xaxis.set(
                major_locator=FixedLocator(list(panel.doses)),
                minor_locator=NullLocator(),
                major_formatter=FuncFormatter(lambda dose, _: f"{dose:g}"),
            )
            axis.yaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{loss:g}"))
            axis.axhline(1, color="grey", linewidth=1, linestyle=":")
        axes[0, 0].set(ylabel=ylabel, ylim=(5e-4, None))
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
        save(figure, path)
