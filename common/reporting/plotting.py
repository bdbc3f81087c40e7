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


def resolutions(path: Path, title: str, sizes: Mapping[tuple[int, int], int]) -> None:
    """How many images have which (width, height) in px: a circle each, its area the number."""
    counts = np.array(list(sizes.values()))
    title = f"{title}: {counts.sum():,} images, {len(sizes)} resolutions"
    common = sorted(sizes, key=sizes.get, reverse=True)[:3]
    ranks = [f"{n}: {w}x{h}, {sizes[w, h]:,}" for n, (w, h) in enumerate(common, 1)]
    with new_figure(path, title, (1, 1), (7, 5)) as (_, ((axis,),)):
        areas = 8 + 600 * counts / counts.max()
        axis.scatter(*zip(*sizes, strict=True), s=areas, alpha=0.4, linewidth=0)
        for rank, size_px in enumerate(common, 1):
            axis.annotate(str(rank), size_px, ha="center", va="center", fontsize=8)
        axis.set(xlabel="width in px", ylabel="height in px")
        axis.set_title("; ".join(ranks), fontsize=9)


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
            # One odd picture can have a val loss of any size: beyond the top a triangle stands.
            top = 1.3 * max(np.nanmax(train) for train, _ in lines.values())
            top, about = top if key == "loss" else np.inf, f"{label}: val solid, train dashed"
            for name, (train, val) in lines.items():
                epochs = np.array([row["epoch"] for row in histories[name][0]])
                beyond = ~(val <= top).all(0)
                val = np.where(beyond, np.nan, val)
                (line,) = axis.plot(epochs, val.mean(0), label=one_line(shown_name(name)))
                colour = line.get_color()
                if seeds > 1:
                    axis.fill_between(epochs, val.min(0), val.max(0), color=colour, alpha=0.15)
                axis.plot(epochs, train.mean(0), "--", color=colour, alpha=0.6, linewidth=1.2)
                if beyond.any():
                    tops = np.full(beyond.sum(), top)
                    axis.plot(epochs[beyond], tops, "^", color=colour, clip_on=False)
                    axis.set_ylim(0, top)
                    about = f"{label}: val solid, train dashed; triangles: val beyond the top"
            axis.set(title=about, xlabel="epoch", ylabel=label)
            axis.xaxis.set_major_locator(load_matplotlib().ticker.MaxNLocator(integer=True))
        figure.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside right center")


def overlays(path: Path, title: str, settings: str, rows: list[list[Overlay]]) -> None:
    """A grid of images, grey under maps in shares of their own largest value, on one scale.

    Colours fade with the share and contours stand at quarters, so that the picture stays to be seen
    and no petal is taken for a map.
    """
    shape = (len(rows), max(map(len, rows)))
    captions = [[_caption(cell) for cell in cells] for cells in rows]
    more = sum(map(lines_more, captions))
    size = (2.0 * shape[1] + 0.9, 2.45 * shape[0] + 0.6 + 0.14 * more)
    with new_figure(path, title, shape, size, settings) as (figure, axes):
        for axis in axes.flat:
            axis.set_axis_off()
        for row, cells, texts in zip(axes, rows, captions, strict=True):
            for axis, cell, caption in zip(row, cells, texts, strict=False):
                if cell.map is None:
                    axis.imshow(cell.image)
                else:
                    axis.imshow(cell.image.mean(2), cmap="gray", vmin=0, vmax=255)
                    shares = cell.map / (cell.map.max() or 1)
                    colours = {"cmap": "viridis", "vmin": 0, "vmax": 1}
                    axis.imshow(shares, alpha=0.6 * shares, **colours)
                    if levels := [q for q in (0.25, 0.5, 0.75) if shares.min() < q < shares.max()]:
                        axis.contour(shares, levels=levels, linewidths=1.2, **colours)
                axis.set_title(caption, fontsize=9)
        label = "share of the map's largest value"
        scale = load_matplotlib().cm.ScalarMappable(cmap="viridis")  # from 0 to 1
        figure.colorbar(scale, ax=axes, label=label, fraction=0.015, pad=0.01)


def _caption(cell: Overlay) -> str:
    # textwrap breaks at spaces alone: a number keeps its percent sign.
    caption = wrapped(cell.caption.replace(" %", "\u00a0%"), 22)
    blank = cell.map is not None and not cell.map.max() > 0
    return caption + "\n(all-zero map)" * blank


def pixel_curves(
    path: Path, title: str, settings: str, curves: Mapping[str, Mapping[str, Sequence[float]]]
) -> None:
    """A panel a kind, such as deletion: `curves[kind][name]` over the share of pixels, 0 to 1."""
    with new_figure(path, title, (1, len(curves)), (8, 3.4), settings, sharey=True) as (_, axes):
        for axis, (kind, lines) in zip(axes[0], curves.items(), strict=True):
            for style, (name, line) in zip(("o-", "s--", "^:"), lines.items(), strict=False):
                axis.plot(np.linspace(0, 100, len(line)), line, style, ms=4, label=name)
            axis.set(title=kind, xlabel="pixels in %")
        axes[0, 0].set(ylabel="probability", ylim=(0, None))
        axes[0, 0].legend()


def functions(path: Path, x: np.ndarray, curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Functions and their derivatives over x; `curves[name]` is (values, slopes).

    The derivative at 0 is marked, since it may jump there.
    """
    x = np.asarray(x)
    with new_figure(path, "", (1, 2), (9, 4)) as (_, axes):
        for number, (name, (values, slopes)) in enumerate(curves.items()):
            colour, slopes = f"C{number}", np.asarray(slopes)
            axes[0, 0].plot(x, values, color=colour, label=name)
            for side in (x < 0, x > 0):
                axes[0, 1].plot(x[side], slopes[side], color=colour)
            for slope in slopes[x == 0]:
                axes[0, 1].plot(0, slope, "o", color=colour)
                place = {"xytext": (-8, 40 + 16 * number), "textcoords": "offset points"}
                text = f"{name}: {slope + 0.0:g} at 0"
                axes[0, 1].annotate(text, (0, slope), **place, color=colour, ha="right")
        for axis, label in zip(axes[0], ("value", "derivative"), strict=True):
            axis.set(title=label, xlabel="x", ylabel=label)
        axes[0, 0].legend(loc="upper left")


def peaks(
    path: Path,
    title: str,
    settings: str,
    modules: list[str],
    curves: dict[str, dict[int, list[float]]],
    limits: dict[str, float],
) -> None:
    """Largest magnitudes by depth, log scale: `curves[name][step]`, the first step solid.

    What is not finite lies at the top. `limits` are drawn as lines, named at the right.
    """
    top = 10 * max(limits.values())
    with new_figure(path, title, (1, 1), (9, 5), settings) as (_, ((axis,),)):
        for number, (name, steps) in enumerate(curves.items()):
            for style, (step, values) in zip(("o-", "s--"), steps.items(), strict=False):
                how = {"color": f"C{number}", "ms": 4, "label": f"{shown_name(name)}, step {step}"}
                axis.plot(list(map(one_line, modules)), np.minimum(values, top), style, **how)
        for name, limit in limits.items():
            axis.axhline(limit, color="grey", linewidth=1, linestyle=":")
            axis.text(1.01, limit, name, transform=axis.get_yaxis_transform(), va="center")
        axis.set(ylabel="largest |output| (topmost: not finite)", yscale="log")
        axis.yaxis.set_major_formatter(_power_of_ten)
        axis.tick_params(axis="x", rotation=45)
        axis.legend(loc="upper right", bbox_to_anchor=(1, 0.9))


def _power_of_ten(value: float, _position: int) -> str:
    return "10" + str(round(np.log10(value))).translate(SUPERSCRIPTS)


def first_losses(
    path: Path,
    title: str,
    settings: str,
    kinds: Mapping[str, Sequence[tuple[int, float, bool]]],
    level: tuple[str, float],
) -> None:
    """First losses by batch size, log-log: `kinds[name]` has points (images, loss, dead).

    The dead are filled. `level` is a line across with its name.
    """
    ticker = load_matplotlib().ticker
    batches = sorted({images for points in kinds.values() for images, _, _ in points})
    with new_figure(path, title, (1, 1), (9, 5), settings) as (_, ((axis,),)):
        for number, (name, points) in enumerate(kinds.items()):
            images, losses, dead = map(np.array, zip(*points, strict=True))
            beside = images * 1.16 ** (number - (len(kinds) - 1) / 2)  # kinds stand side by side
            how = {"s": 38, "marker": "os^D"[number % 4], "edgecolors": f"C{number}", "zorder": 3}
            for of_dead, face in ((False, "none"), (True, f"C{number}")):
                shown = dead == of_dead
                label = None if of_dead else one_line(name)
                axis.scatter(beside[shown], losses[shown], facecolors=face, label=label, **how)
        axis.axhline(level[1], color="black", linewidth=1, linestyle=":")
        place = {"textcoords": "offset points", "fontsize": 9}
        axis.annotate(level[0], (batches[0] * 0.8, level[1]), (0, 6), **place)
        axis.set(xlabel="pictures in the batch", ylabel="first loss", xscale="log", yscale="log")
        axis.xaxis.set(major_locator=ticker.FixedLocator(batches), major_formatter="{x:g}")
        axis.xaxis.set_minor_locator(ticker.NullLocator())
        axis.yaxis.set(major_formatter=_power_of_ten, minor_locator=ticker.NullLocator())
        axis.legend(loc="upper left")


def tails(path: Path, title: str, settings: str, rows: Sequence[Mapping]) -> None:
    """Test top-1 over p of f_p, and over the kurtosis of its output, a colour a gamma.

    `rows` have power, gamma, kurtosis, test_top1 and test_top1_std, as the study of exponents;
    that without a power is ReLU's, a level.
    """
    labels = {"power": "exponent p", "kurtosis": "kurtosis of f_p of a normal input, closed form"}
    shown = [row for row in rows if row["test_top1"] is not None]
    powers = sorted((row for row in shown if row["power"]), key=lambda row: row["power"])
    levels = [row["test_top1"] for row in shown if not row["power"]]
    gammas = sorted({row["gamma"] for row in powers}, reverse=True)
    with new_figure(path, title, (1, 2), (10, 4.6), settings, sharey=True) as (_, axes):
        for axis, (key, label) in zip(axes[0], labels.items(), strict=True):
            for level in levels:
                axis.axhline(level, color="grey", linestyle=":", label="ReLU throughout")
            for number, gamma in enumerate(gammas):
                of_gamma = [row for row in powers if row["gamma"] == gamma]
                aside = 0.015 * (number - 1) if key == "power" else 0
                x = [row[key] + aside for row in of_gamma]
                y = [row["test_top1"] for row in of_gamma]
                errors = [row["test_top1_std"] or 0 for row in of_gamma]
                how = {"fmt": "o-", "capsize": 3, "ms": 4, "linewidth": 1.2}
                axis.errorbar(x, y, errors, label=f"gammas start at {gamma:g}", **how)
            axis.set(xlabel=label)
        for row in powers:
            if row["power"] >= 1.75:  # below, points lie too close for their labels
                place = {"xytext": (6, -3), "textcoords": "offset points", "fontsize": 8}
                where = (row["kurtosis"], row["test_top1"])
                axes[0, 1].annotate(f"p = {row['power']:g}", where, **place)
        axes[0, 0].set(ylabel="test top-1 in %")
        axes[0, 0].legend(loc="lower left")
