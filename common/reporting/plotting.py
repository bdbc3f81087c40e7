"""Figures, with units on the axes and the provenance in the title; see `canvas`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.reporting.canvas import lines_more, load_matplotlib, new_figure, one_line, wrapped

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


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


def image_grid(
    path: Path, title: str, headers: list[str], rows: dict[str, list[np.ndarray | HeatMap]]
) -> None:
    """A grid of images, `headers` above its columns and the keys of `rows` beside its rows.

    Cells are uint8 (height, width, 3) or heat maps; a column's heat maps share one scale.
    """
    ratios = [cells[0].shape[0] / cells[0].shape[1] for cells in rows.values()]
    heights = np.clip(ratios, 0.25, 4)  # a strip is drawn small in a place of its own
    scales = [_highest(cells) for cells in zip(*rows.values(), strict=True)]
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
                    scale = load_matplotlib().colors.PowerNorm(
                        0.5, 0, highest
                    )  # most differences are small
                    drawn = axis.imshow(cell.values, cmap="magma", norm=scale)
                    beside = axis.inset_axes((1.03, 0, 0.05, 1))
                    figure.colorbar(drawn, cax=beside, label=cell.label)
                else:
                    axis.imshow(cell)
        for axis, header in zip(axes[0], headers, strict=True):
            axis.set_title(header)


def _highest(cells: Sequence[np.ndarray | HeatMap]) -> float:
    """The largest value of a column's heat maps, above 0."""
    return max([1e-9, *(cell.values.max() for cell in cells if isinstance(cell, HeatMap))])


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
    with new_figure(path, title, (1, 1), (8, 4)) as (_, ((axis,),)):
        errors = [np.subtract(heights, lows), np.subtract(highs, heights)]
        drawn = axis.bar(list(map(one_line, names)), heights, 0.6, yerr=errors, capsize=3)
        axis.bar_label(drawn, [f"{height:.3f}" for height in heights], padding=2, fontsize=9)
        axis.set(ylabel=ylabel, axisbelow=True)
        axis.grid(visible=False, axis="x")


def dose_response(
    path: Path, title: str, ylabel: str, panels: list[Panel], ylim: tuple[float, float]
) -> None:
    """Log-log curves with their intervals as bands, the panels on one vertical scale."""
    ticker = load_matplotlib().ticker
    size = (5.2 * len(panels) + 0.8, 4.6)
    with new_figure(path, title, (1, len(panels)), size, sharey=True) as (figure, axes):
        for axis, panel in zip(axes[0], panels, strict=True):
            for name, (mean, low, high) in panel.curves.items():
                dashed = "--" if name in ("l1", "l2") else "-"
                (line,) = axis.plot(panel.doses, mean, dashed, marker="o", ms=3.5, label=name)
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


def resolutions(path: Path, title: str, sizes: Mapping[tuple[int, int], int]) -> None:
    """How many images have which (width, height) in px: a circle each, its area the number."""
    counts = np.array(list(sizes.values()))
    title = f"{title}: {counts.sum():,} images, {len(sizes)} resolutions"
    with new_figure(path, title, (1, 1), (7, 5)) as (_, ((axis,),)):
        areas = 8 + 600 * counts / counts.max()
        axis.scatter(*zip(*sizes, strict=True), s=areas, alpha=0.4, linewidth=0)
        for rank, size_px in enumerate(sorted(sizes, key=sizes.get, reverse=True)[:3]):
            label = "{}x{}: {:,}".format(*size_px, sizes[size_px])
            # To the left, and each higher than the one before: common sizes lie close together.
            place = {"xytext": (-6, 12 + 14 * rank), "textcoords": "offset points", "ha": "right"}
            axis.annotate(label, size_px, **place)
        axis.set(xlabel="width in px", ylabel="height in px")


def class_counts(path: Path, title: str, counts: dict[str, np.ndarray]) -> None:
    """Images per class in each split, the classes in the order of their labels."""
    size = (9, 1.9 * len(counts) + 0.6)
    with new_figure(path, title, (len(counts), 1), size, sharex=True) as (_, axes):
        for axis, (split, images) in zip(axes[:, 0], counts.items(), strict=True):
            axis.bar(np.arange(1, len(images) + 1), images, width=0.8)
            axis.set(title=f"{split}: {images.sum():,} images", ylabel="images")
        axes[-1, 0].set_xlabel("class")


def training_curves(path: Path, title: str, histories: dict[str, list[list[dict]]]) -> None:
    """Loss and top-1 over the epochs: train dashed (augmented images), val solid.

    `histories[name]` has one list of epochs a seed: the lines are their means, the bands span val's
    lowest to highest.
    """
    seeds = max(map(len, histories.values()))
    if seeds > 1:
        title += f"; mean and range of {seeds} seeds"
    labels = {"loss": "cross-entropy", "top1": "top-1 in %"}
    with new_figure(path, title, (1, 2), (11, 4.2)) as (_, axes):
        for axis, (key, label) in zip(axes[0], labels.items(), strict=True):
            highest_train = 0.0
            for name, runs in histories.items():
                epochs = [row["epoch"] for row in runs[0]]
                both = [[(row[f"train_{key}"], row[f"val_{key}"]) for row in run] for run in runs]
                train, val = np.moveaxis(np.array(both, float), 2, 0)  # None leaves a gap
                (line,) = axis.plot(epochs, val.mean(0), label=name)
                colour = line.get_color()
                if seeds > 1:
                    axis.fill_between(epochs, val.min(0), val.max(0), color=colour, alpha=0.15)
                axis.plot(epochs, train.mean(0), "--", color=colour, alpha=0.6, linewidth=1.2)
                highest_train = max(highest_train, train.max())
            axis.set(title=f"{label}: val solid, train dashed", xlabel="epoch", ylabel=label)
            if key == "loss" and axis.get_ylim()[1] > 3 * (top := 1.3 * highest_train):
                axis.set_ylim(0, top)  # one odd picture can have a val loss of any size
                axis.set_ylabel(f"{label}, cut off above {top:.1f}")
            axis.xaxis.set_major_locator(load_matplotlib().ticker.MaxNLocator(integer=True))
        axes[0, 1].legend(loc="best")


def overlays(path: Path, title: str, rows: list[list[Overlay]]) -> None:
    """A grid of images under maps, each in shares of its own largest value, on one colour scale."""
    shape = (len(rows), max(map(len, rows)))
    captions = [[_caption(cell) for cell in cells] for cells in rows]
    more = sum(map(lines_more, captions))
    size = (2.0 * shape[1] + 0.9, 2.45 * shape[0] + 0.6 + 0.12 * more)
    with new_figure(path, title, shape, size) as (figure, axes):
        for axis in axes.flat:
            axis.set_axis_off()
        for row, cells, texts in zip(axes, rows, captions, strict=True):
            for axis, cell, caption in zip(row, cells, texts, strict=False):
                axis.imshow(cell.image)
                if cell.map is not None:
                    highest = float(cell.map.max())
                    shares = cell.map / highest if highest > 0 else cell.map
                    axis.imshow(shares, cmap="inferno", vmin=0, vmax=1, alpha=0.55)
                axis.set_title(caption, fontsize=7)
        label = "share of the map's largest value"
        scale = load_matplotlib().cm.ScalarMappable(cmap="inferno")  # from 0 to 1
        figure.colorbar(scale, ax=axes, label=label, fraction=0.015, pad=0.01)


def _caption(cell: Overlay) -> str:
    # textwrap breaks at spaces alone: a number keeps its percent sign.
    caption = wrapped(cell.caption.replace(" %", "\u00a0%"), 26)
    blank = cell.map is not None and not cell.map.max() > 0
    return caption + "\n(all-zero map)" * blank


def functions(path: Path, x: np.ndarray, curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Functions and their derivatives over x; `curves[name]` is (values, slopes)."""
    with new_figure(path, "", (1, 2), (9, 4)) as (_, axes):
        for which, label in enumerate(("value", "derivative")):
            for name, pair in curves.items():
                axes[0, which].plot(x, pair[which], label=name)
            axes[0, which].set(title=label, xlabel="x", ylabel=label)
        axes[0, 0].legend(loc="upper left")


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
    top = 10 * max(limits.values())
    with new_figure(path, title, (1, 1), (9, 5)) as (figure, ((axis,),)):
        for number, (name, steps) in enumerate(curves.items()):
            for style, (step, values) in zip(("o-", "s--"), steps.items(), strict=False):
                how = {"color": f"C{number}", "ms": 4, "label": f"{name}, step {step}"}
                axis.plot(list(map(one_line, modules)), np.minimum(values, top), style, **how)
        for name, limit in limits.items():
            axis.axhline(limit, color="grey", linewidth=1, linestyle=":")
            axis.text(1.01, limit, name, transform=axis.get_yaxis_transform(), va="center")
        axis.set(ylabel="largest |output| (topmost: not finite)", yscale="log")
        axis.yaxis.set_major_formatter(_power_of_ten)
        axis.tick_params(axis="x", rotation=45)
        figure.legend(loc="outside lower center", ncols=3)


def _power_of_ten(value: float, _position: int) -> str:
    return "10" + str(round(np.log10(value))).translate(SUPERSCRIPTS)


def first_losses(
    path: Path,
    title: str,
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, bool]]]],
    levels: Mapping[str, float],
    border: Mapping[str, float],
) -> None:
    """First losses, log-log: `panels[x label][name]` has points (x, loss, dead), the dead filled.

    `levels` are drawn across, `border` down the last panel, each named in the legend.
    """
    ticker = load_matplotlib().ticker
    names = dict.fromkeys(name for lines in panels.values() for name in lines)
    colours = dict(zip(names, load_matplotlib().colormaps["tab20"].colors, strict=False))
    batches = {x for points in next(iter(panels.values())).values() for x, _, _ in points}
    with new_figure(path, title, (1, 2), (12.5, 5), sharey=True) as (figure, axes):
        for axis, (label, lines) in zip(axes[0], panels.items(), strict=True):
            for name, points in lines.items():
                x, losses, dead = zip(*points, strict=True)
                if axis is axes[0, 0]:  # batches are few: kinds stand side by side
                    x = [value * 1.12 ** (list(lines).index(name) - 1) for value in x]
                faces = [colours[name] if is_dead else "none" for is_dead in dead]
                edges = {"edgecolors": colours[name], "facecolors": faces, "zorder": 3}
                axis.scatter(x, losses, s=30, label=one_line(name), **edges)
            for name, level in levels.items():
                axis.axhline(level, color="black", linewidth=1, linestyle=":", label=name)
            axis.set(xlabel=label, xscale="log", yscale="log")
        for name, level in border.items():
            axes[0, 1].axvline(level, color="grey", linestyle="--", linewidth=1, label=name)
        for axis, ticks in zip(axes[0], (sorted(batches), [32, 64, 128, 256, 512]), strict=True):
            axis.xaxis.set(major_locator=ticker.FixedLocator(ticks), major_formatter="{x:g}")
            axis.xaxis.set_minor_locator(ticker.NullLocator())
        axes[0, 0].set(ylabel="first loss")
        axes[0, 0].yaxis.set(major_formatter=_power_of_ten, minor_locator=ticker.NullLocator())
        handles = axes[0, 1].get_legend_handles_labels()
        figure.legend(*handles, loc="outside right center", fontsize=8)


def tails(path: Path, title: str, rows: Sequence[Mapping]) -> None:
    """Test top-1 over p of f_p, and over the kurtosis of its output, a colour a gamma.

    `rows` have power, gamma, kurtosis, test_top1 and test_top1_std, as the study of exponents;
    that without a power is ReLU's, a level.
    """
    labels = {"power": "p of f_p", "kurtosis": "kurtosis of f_p of a normal input, closed form"}
    shown = [row for row in rows if row["test_top1"] is not None]
    powers = sorted((row for row in shown if row["power"]), key=lambda row: row["power"])
    levels = [row["test_top1"] for row in shown if not row["power"]]
    with new_figure(path, title, (1, 2), (10, 4.6), sharey=True) as (_, axes):
        for axis, (key, label) in zip(axes[0], labels.items(), strict=True):
            for level in levels:
                axis.axhline(level, color="grey", linestyle=":", label="ReLU throughout")
            for gamma in sorted({row["gamma"] for row in powers}, reverse=True):
                of_gamma = [row for row in powers if row["gamma"] == gamma]
                x, y = ([row[name] for row in of_gamma] for name in (key, "test_top1"))
                how = {"fmt": "o-" if key == "power" else "o", "capsize": 3, "ms": 4}
                errors = [row["test_top1_std"] or 0 for row in of_gamma]
                axis.errorbar(x, y, errors, label=f"gammas start at {gamma:g}", **how)
            axis.set(xlabel=label)
        for row in powers:
            place = {"xytext": (5, -3), "textcoords": "offset points", "fontsize": 7}
            axes[0, 1].annotate(f"{row['power']:g}", (row["kurtosis"], row["test_top1"]), **place)
        axes[0, 0].set(ylabel="test top-1 in %")
        axes[0, 0].legend(loc="lower left")
        axes[0, 1].set(title="numbers: p")
