"""The tables of Problem 2, made from the values in results.json, and its figures."""

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from common.job import printable
from common.reporting import plotting
from common.reporting.plotting import lines_more, load_matplotlib, new_figure, wrapped
from common.reporting.statistics import wilson_interval
from common.reporting.tables import table

CONTROLS = ("chance", "centre")  # of the pointing game; computed, not sampled
MAP_NAMES = {"grad_cam": "Grad-CAM", "random": "random map", "centred": "centred map"}
Figures = dict[str, Callable[[Path], None]]


def init_words(args: Namespace) -> str:
    """Words for a training's initial weights and its teacher, from its flags."""
    scratch = args.init == "scratch"
    words = {
        "head at zero" if scratch else "new heads at zero": args.zero_head,
        "last gammas at zero": args.zero_init_residual and scratch,
        "taught by VGG-16": args.teacher,
    }
    return ", ".join([args.init, *(word for word, holds in words.items() if holds)])


def split_tables(data: str, splits: Mapping[str, dict]) -> dict[str, str]:
    """2.1's tables by file name: the splits, and their most frequent resolutions."""
    columns = {"split": "{split}", "images": "{images:,}", "classes": "{classes}"}
    columns |= {"resolutions": "{resolutions}"}
    columns["images per class"] = "{images_per_class[0]} - {images_per_class[1]}"
    rows = [{"split": split, **counts} for split, counts in splits.items()]
    longest = max(len(counts["top_resolutions"]) for counts in splits.values())
    ranks = [{"rank": k + 1} for k in range(longest)]
    for split, counts in splits.items():
        for row, (width, height, images) in zip(ranks, counts["top_resolutions"], strict=False):
            row.update({split: f"({width}, {height})", f"{split} images": images})
    rank_columns = {key: f"{{{key}}}" for key in ranks[0]}
    caption = f"{printable(data)}: the most frequent resolutions, (width, height) in px."
    return {
        "2.1_splits.txt": table(printable(data), columns, rows),
        "2.1_resolutions.txt": table(caption, rank_columns, ranks),
    }


def data_figures(
    data: str,
    sizes: Mapping[str, Mapping[tuple[int, int], int]],
    class_counts: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    pictures: Mapping[str, list[np.ndarray]],
) -> Figures:
    """2.1's figures by file name; `sizes`, `class_counts` and `pictures` are given by split.

    `sizes`: the number of images of each (width, height) in px, drawn if there are several sizes.
    `class_counts`: int (classes,). `pictures`: one of each named class, uint8 (H, W, 3).
    """
    figures = {
        f"2.1_resolutions_{split}.png": partial(
            draw_resolutions, title=f"{data}: {split}", sizes=counts
        )
        for split, counts in sizes.items()
        if len(counts) > 1
    }
    figures["2.1_class_counts.png"] = partial(draw_class_counts, title=data, counts=class_counts)
    title = f"{data}: {len(class_names)} random classes"
    samples = partial(plotting.image_grid, title=title, headers=class_names, rows=pictures)
    return {**figures, "2.1_samples.png": samples}


def draw_resolutions(path: Path, title: str, sizes: Mapping[tuple[int, int], int]) -> None:
    """Draw one circle per (width, height) in px; its area grows with the number of images."""
    counts = np.array(list(sizes.values()))
    title = f"{title}: {counts.sum():,} images, {len(sizes)} resolutions"
    common = sorted(sizes, key=sizes.get, reverse=True)[:3]
    most = ", ".join(f"{w}x{h} ({sizes[w, h]:,})" for w, h in common)
    with new_figure(path, title, (1, 1), (7, 5)) as (_, ((axis,),)):
        areas = 8 + 600 * counts / counts.max()
        axis.scatter(*zip(*sizes, strict=True), s=areas, alpha=0.4, linewidth=0)
        axis.set(xlabel="width in px", ylabel="height in px")
        axis.set_title(f"most often: {most}", fontsize=9)


def draw_class_counts(path: Path, title: str, counts: dict[str, np.ndarray]) -> None:
    """Images per class in each split, the classes in the order of their labels."""
    size = (9, 1.9 * len(counts) + 0.6)
    with new_figure(path, title, (len(counts), 1), size, sharex=True) as (_, axes):
        for axis, (split, images) in zip(axes[:, 0], counts.items(), strict=True):
            axis.bar(np.arange(1, len(images) + 1), images, width=0.8)
            axis.set(title=f"{split}: {images.sum():,} images", ylabel="images")
        axes[-1, 0].set_xlabel("class")


def stages_table(result: Mapping, classes: int, image_size_px: int) -> str:
    """2.3's table: channels, parameters and multiply-adds of each stage, and their sums."""
    columns = {"stage": "{name}", "channels": "{narrow}", "wide": "{wide}", "ratio": "{ratio:.3f}"}
    columns |= {"parameters": "{parameters_narrow:,}", "parameters, wide": "{parameters_wide:,}"}
    columns |= {"MACs": "{macs_narrow:,}", "MACs, wide": "{macs_wide:,}"}
    rows = [{**row, "ratio": row["wide"] / row["narrow"]} for row in result["stages"]]
    summed = ("parameters_narrow", "parameters_wide", "macs_narrow", "macs_wide")
    total = {"name": "total", **{key: sum(row[key] for row in rows) for key in summed}}
    caption = (
        f"EfficientNetV2-S widened {result['width']:g} times, {classes} classes;\nMACs: multiply-"
        f"adds for one image of {image_size_px}x{image_size_px} px."
    )
    return table(caption, columns, [*rows, total])


def modes_table(tag: str, batch_size: int, device: str, rows: list[dict]) -> str:
    """2.4's table: one row per way to train on several devices, or why it was not run."""
    talk = "gloo, on the cores of one CPU" if device == "cpu" else "nccl"
    caption = (
        f"{printable(tag)}, global batch {batch_size};\n{device}, where processes talk by {talk}."
    )
    columns = {key: f"{{{key}}}" for key in ("mode", "processes", "threads", "precision", "seeds")}
    columns |= {"images/s": "{images_per_second:.1f}", "seconds": "{training_seconds:.1f}"}
    columns |= {"test top-1 %": "{test_top1:.1f}", "+-": "{test_top1_std:.1f}"}
    columns["remark"] = "{not_run}"
    return table(caption, columns, rows)


def pointing_table(result: Mapping, tag: str) -> str:
    """2.6's table of the pointing game, for all images and for those whose flower is off-centre."""
    columns, rows = {"maps of": "{name}"}, []
    for head, key in (("on the flower", "all"), ("off-centre", "aside")):
        columns[head] = f"{{{key}[hits]:.1f}}"
        columns[f"{head}, 95 %"] = f"{{{key}[low]:.1f}} - {{{key}[high]:.1f}}"
    maps = {"all": result["maps"], "aside": result["maps_off_centre"]}
    for name, hits in result["pointing_game"].items():
        row = {"all": {"hits": hits}, "aside": {"hits": result["pointing_game_off_centre"][name]}}
        for key, cell in row.items() if name not in CONTROLS else ():
            if maps[key]:
                low, high = wilson_interval(round(cell["hits"] * maps[key] / 100), maps[key])
                cell |= {"low": 100 * low, "high": 100 * high}
        rows.append({"name": name, **row})
    caption = (
        f"Pointing game: per cent of Grad-CAM maps ({result['layer']}) whose peak lies on the"
        f" flower,\n{maps['all']} test images, {maps['aside']} of them off-centre: the middle is"
        f" not on the flower.\n{printable(tag)}.\nchance: a random pixel; centre: the middle."
    )
    return table(caption, columns, rows)


def faithfulness_table(result: Mapping, tag: str) -> str:
    """2.6's table of areas under the deletion and insertion curves, and of their differences."""
    deletion, insertion = result["deletion"], result["insertion"]
    rows = [
        {"name": shown, "deletion": deletion[name], "insertion": insertion[name]}
        for name, shown in MAP_NAMES.items()
    ]
    for a, b in zip(deletion["differences"], insertion["differences"], strict=True):
        name = f"{MAP_NAMES[a['a']]} less {MAP_NAMES[a['b']]}"
        rows.append({"name": name, "deletion": a, "insertion": b})
    columns = {"pixels by": "{name}"}
    for kind in ("deletion", "insertion"):
        columns[kind] = f"{{{kind}[mean]:.3f}}"
        columns[f"{kind}, 95 %"] = f"{{{kind}[low]:.3f}} - {{{kind}[high]:.3f}}"
    caption = (
        "Area under the predicted class's probability while pixels are deleted (lower is better) or"
        f"\ninserted (higher is better), the map's highest first; {result['curve_images']} test"
        f" images.\n{printable(tag)}."
    )
    return table(caption, columns, rows)


def draw_faithfulness(path: Path, result: Mapping, tag: str) -> None:
    """2.6's figure of deletion and insertion curves over the share of pixels, one panel each."""
    title = "The predicted class's probability while pixels go or come"
    settings = f"{tag}; mean of {result['curve_images']} test images"
    with new_figure(path, title, (1, 2), (8, 3.4), settings, sharey=True) as (_, axes):
        for axis, kind in zip(axes[0], ("deletion", "insertion"), strict=True):
            for style, (name, label) in zip(("o-", "s--", "^:"), MAP_NAMES.items(), strict=True):
                curve = result[kind][name]["curve"]
                axis.plot(np.linspace(0, 100, len(curve)), curve, style, ms=4, label=label)
            axis.set(title=kind, xlabel=f"{kind} of pixels in %")
        axes[0, 0].set(ylabel="probability", ylim=(0, None))
        axes[0, 0].legend()


@dataclass(frozen=True)
class Overlay:
    """An image, uint8 (H, W, 3), the (H, W) map >= 0 over it, or None, and a caption."""

    image: np.ndarray
    map: np.ndarray | None
    caption: str


def map_rows(
    images: Sequence[np.ndarray],
    labels: Sequence[int],
    class_names: Sequence[str],
    seen: Mapping[str, tuple[np.ndarray, np.ndarray]],
    maps_of_truth: np.ndarray,
) -> list[list[Overlay]]:
    """One row per image: the image, then each network's map of its predicted class, with captions.

    `images`: uint8 (H, W, 3). `seen[network]`: probabilities (N, classes) and maps (N, H, W).
    `maps_of_truth`: the first network's maps of the true classes, shown where it is wrong.
    """
    rows = []
    for number, (image, truth) in enumerate(zip(images, labels, strict=True)):
        cells = [Overlay(image, None, f"true: {class_names[truth]}")]
        for network, (probabilities, maps) in seen.items():
            name, confidence = plotting.shown_name(network), 100 * probabilities[number]
            predicted = int(confidence.argmax())
            caption = f"{name}, predicted: {class_names[predicted]}, {confidence[predicted]:.0f} %"
            if predicted != truth:
                caption += f" (true:\u00a0{confidence[truth]:.0f} %)"
            cells.append(Overlay(image, maps[number], caption))
            if predicted != truth and len(cells) == 2:  # the first network
                about = f"{name}, map of the true class"
                cells.append(Overlay(image, maps_of_truth[number], about))
        rows.append(cells)
    return rows


def map_figures(kind: str, title: str, settings: str, rows: list[list[Overlay]]) -> Figures:
    """2.6's figures of predictions of a kind, "right" or "wrong": one of all, and one of each.

    The report page shows those of single predictions, so that its filter can hide some of them.
    """
    draw = partial(draw_overlays, title=title, settings=settings)
    alone = {f"2.6_{kind}_{n}.png": partial(draw, rows=[row]) for n, row in enumerate(rows, 1)}
    return {f"2.6_{kind}.png": partial(draw, rows=rows), **alone}


def draw_overlays(path: Path, title: str, settings: str, rows: list[list[Overlay]]) -> None:
    """Draw a grid of images, grey under their maps; each map is divided by its largest value.

    Colours fade as the share falls, and contours mark the quarters: the picture stays visible, and
    no petal is mistaken for a map.
    """
    shape = (len(rows), max(map(len, rows)))
    captions = [[_caption(cell) for cell in cells] for cells in rows]
    more = sum(map(lines_more, captions))
    size = (2.0 * shape[1] + 0.9, 2.45 * shape[0] + 0.6 + 0.14 * more)
    with new_figure(path, title, shape, size, settings) as (figure, axes):
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[], frame_on=False)
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
        for axis in axes.flat:
            axis.set_anchor("S")  # leave the free space to the captions


def _caption(cell: Overlay) -> str:
    # A no-break space keeps a number and its percent sign on one line.
    caption = wrapped(cell.caption.replace(" %", "\u00a0%"), 22)
    blank = cell.map is not None and not cell.map.max() > 0
    return caption + "\n(all-zero map)" * blank
