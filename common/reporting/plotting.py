"""Figures: PNG at 200 dpi, with units on the axes and the provenance in the title."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from common.files import atomic

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
class Overlay:
    """An image, uint8 (H, W, 3), under a (H, W) map >= 0, or without one, and a caption."""

    image: np.ndarray
    map: np.ndarray | None
    caption: str


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


def _suptitle(figure: Figure, title: str, characters: int) -> None:
    """A title over all axes, broken into lines of so many characters."""
    figure.suptitle("\n".join(textwrap.wrap(title, characters)), fontsize=11)


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


def dose_response(
    path: Path, title: str, ylabel: str, panels: list[Panel], ylim: tuple[float, float]
) -> None:
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
        axes[0, 0].set(ylabel=ylabel, ylim=ylim)
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
        save(figure, path)


def resolutions(path: Path, title: str, sizes: Mapping[tuple[int, int], int]) -> None:
    """How many images have which (width, height) in px: a circle each, its area the number."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7, 5), layout="constrained")
        widths, heights = zip(*sizes, strict=True)
        counts = np.array(list(sizes.values()))
        axis.scatter(widths, heights, s=8 + 600 * counts / counts.max(), alpha=0.4, linewidth=0)
        for width, height in sorted(sizes, key=sizes.get, reverse=True)[:3]:
            label = f"{width}x{height}: {sizes[width, height]:,}"
            axis.annotate(label, (width, height), xytext=(6, 10), textcoords="offset points")
        title = f"{title}: {counts.sum():,} images, {len(sizes)} resolutions"
        axis.set(title=title, xlabel="width in px", ylabel="height in px")
        save(figure, path)


def class_counts(path: Path, title: str, counts: dict[str, np.ndarray]) -> None:
    """Images per class in each split, the classes in the order of their labels."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(counts), 1, figsize=(9, 1.9 * len(counts) + 0.6), sharex=True, layout="constrained"
        )
        figure.suptitle(title, fontsize=11)
        for axis, (split, of_class) in zip(axes, counts.items(), strict=True):
            axis.bar(np.arange(1, len(of_class) + 1), of_class, width=0.8)
            axis.set(title=f"{split}: {of_class.sum():,} images", ylabel="images")
        axes[-1].set_xlabel("class")
        save(figure, path)


def training_curves(path: Path, title: str, histories: dict[str, list[list[dict]]]) -> None:
    """Loss and top-1 over the epochs: train dashed (augmented images), val solid.

    `histories[name]` has one list of epochs a seed: the lines are their means, the bands span val's
    lowest to highest.
    """
    seeds = max(map(len, histories.values()))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
        over = f"; mean and range of {seeds} seeds" if seeds > 1 else ""
        _suptitle(figure, title + over, 110)
        labels = {"loss": "cross-entropy", "top1": "top-1 in %"}
        for axis, (key, label) in zip(axes, labels.items(), strict=True):
            for name, runs in histories.items():
                epochs = [row["epoch"] for row in runs[0]]
                train, val = (
                    np.array([[row[f"{split}_{key}"] for row in history] for history in runs])
                    for split in ("train", "val")
                )
                (line,) = axis.plot(epochs, val.mean(0), label=name)
                colour = line.get_color()
                if seeds > 1:
                    axis.fill_between(epochs, val.min(0), val.max(0), color=colour, alpha=0.15)
                axis.plot(epochs, train.mean(0), "--", color=colour, alpha=0.6, linewidth=1.2)
            axis.set(title=f"{label}: val solid, train dashed", xlabel="epoch", ylabel=label)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[1].legend(loc="upper left")
        save(figure, path)


def overlays(path: Path, title: str, rows: list[list[Overlay]]) -> None:
    """A grid of images under maps, each in shares of its own largest value, on one colour scale."""
    columns = max(map(len, rows))
    with plt.rc_context(STYLE | {"axes.grid": False}):
        size = (2.0 * columns + 0.9, 2.45 * len(rows) + 0.6)
        figure, axes = plt.subplots(
            len(rows), columns, figsize=size, squeeze=False, layout="constrained"
        )
        _suptitle(figure, title, round(12 * size[0]))
        for axis in axes.flat:
            axis.set_axis_off()
        for row, cells in zip(axes, rows, strict=True):
            for axis, cell in zip(row, cells, strict=False):
                axis.imshow(cell.image)
                # textwrap breaks at spaces alone: a number keeps its percent sign.
                caption = "\n".join(textwrap.wrap(cell.caption.replace(" %", "\u00a0%"), 26))
                if cell.map is not None:
                    highest = float(cell.map.max())
                    caption += "" if highest > 0 else "\n(all-zero map)"
                    shares = cell.map / highest if highest > 0 else cell.map
                    axis.imshow(shares, cmap="inferno", vmin=0, vmax=1, alpha=0.55)
                axis.set_title(caption, fontsize=7)
        scale = ScalarMappable(Normalize(0, 1), "inferno")
        label = "share of the map's largest value"
        figure.colorbar(scale, ax=axes, label=label, fraction=0.015, pad=0.01)
        save(figure, path)


def functions(path: Path, x: np.ndarray, curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Functions and their derivatives over x; `curves[name]` is (values, slopes)."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
        for axis, which, label in zip(axes, (0, 1), ("value", "derivative"), strict=True):
            for name, pair in curves.items():
                axis.plot(x, pair[which], label=name)
            axis.set(title=label, xlabel="x", ylabel=label)
        axes[0].legend(loc="upper left")
        save(figure, path)


def peaks(
    path: Path,
    title: str,
    modules: list[str],
    curves: dict[str, dict[int, list[float]]],
    limits: dict[str, float],
) -> None:
    """Largest magnitudes by depth, log scale: `curves[name][step]`, the first step solid.

    What is not finite lies at the top. `limits` are drawn as lines, named at the right.
    """
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(9, 5), layout="constrained")
        for number, (name, of_steps) in enumerate(curves.items()):
            for style, (step, values) in zip(("o-", "s--"), of_steps.items(), strict=False):
                shown = np.minimum(values, 10 * max(limits.values()))
                label = f"{name}, step {step}"
                axis.plot(modules, shown, style, color=f"C{number}", ms=4, label=label)
        for name, limit in limits.items():
            axis.axhline(limit, color="grey", linewidth=1, linestyle=":")
            axis.text(1.01, limit, name, transform=axis.get_yaxis_transform(), va="center")
        axis.set(ylabel="largest |output| (topmost: not finite)", yscale="log")
        _suptitle(figure, title, 80)
        axis.tick_params(axis="x", rotation=45)
        figure.legend(loc="outside lower center", ncols=3)
        save(figure, path)
