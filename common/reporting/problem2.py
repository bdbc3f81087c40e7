"""How Problem 2 is told: its tables and figures, made of results and pictures.

Tables are made of what results.json holds, so that they can be made again without a training.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from common.job import printable
from common.reporting import plotting
from common.reporting.statistics import wilson_interval
from common.reporting.tables import table

CONTROLS = ("chance", "centre")  # of the pointing game: known, not sampled
Figures = dict[str, Callable[[Path], None]]


def init_words(init: str, zero_head: bool, zero_init_residual: bool) -> str:
    """The words for a training's first weights, from the flags of these names."""
    head = ["head at zero"] if zero_head else []
    return ", ".join([init, *head, *(["last gammas at zero"] if zero_init_residual else [])])


def split_tables(data: str, splits: Mapping[str, dict]) -> dict[str, str]:
    """2.1's tables by file name: its result's splits, and their most frequent resolutions."""
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
    """2.1's figures by file name: resolutions, images per class, and pictures of some classes.

    By split: `sizes`, how many images have which (width, height) in px, drawn where there are
    several; `class_counts`, the images of each class, int (classes,); `pictures` of the named
    classes, uint8 (H, W, 3).
    """
    figures = {}
    for split, counts in sizes.items():
        if len(counts) == 1:  # copies of one size
            continue
        draw = partial(plotting.resolutions, title=f"{data}: {split}", sizes=counts)
        figures[f"2.1_resolutions_{split}.png"] = draw
    figures["2.1_class_counts.png"] = partial(
        plotting.class_counts, title=data, counts=class_counts
    )
    title = f"{data}: {len(class_names)} random classes"
    figures["2.1_samples.png"] = partial(
        plotting.image_grid, title=title, headers=class_names, rows=pictures
    )
    return figures


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
    """2.4's table of its result's rows: ways to train on several devices, or why not."""
    talk = "gloo, on the cores of one CPU" if device == "cpu" else "nccl"
    caption = (
        f"{printable(tag)}, global batch {batch_size};\n{device}, where processes talk by {talk}."
    )
    columns = {key: f"{{{key}}}" for key in ("mode", "processes", "precision")}
    columns |= {"images/s": "{images_per_second:.1f}", "seconds": "{training_seconds:.1f}"}
    columns |= {"test top-1 %": "{test_top1:.1f}", "remark": "{not_run}"}
    return table(caption, columns, rows)


def pointing_table(result: Mapping, tag: str) -> str:
    """2.6's table of the pointing game: a row a network, with its 95 % interval, and controls."""
    rows, maps = [], result["maps"]
    for name, hits in result["pointing_game"].items():
        row = {"name": name, "hits": hits}
        if name not in CONTROLS:
            low, high = wilson_interval(round(hits * maps / 100), maps)
            row.update(low=100 * low, high=100 * high)
        rows.append(row)
    caption = (
        f"Pointing game: per cent of Grad-CAM maps ({result['layer']}) whose peak lies on the"
        f" flower,\n{maps} test images; {printable(tag)}.\n"
        "chance: a random pixel; centre: the middle."
    )
    columns = {"maps of": "{name}", "on the flower": "{hits:.1f}"}
    columns["95 % interval"] = "{low:.1f} - {high:.1f}"
    return table(caption, columns, rows)


def noise_figure(
    data: str, block: Mapping, class_names: list[str], pictures: Mapping[str, list[np.ndarray]]
) -> Callable[[Path], None]:
    """2.5's figure: pictures of the named classes, and the same covered by its noise block."""
    area = f"area {block['area_low']:g} to {block['area_high']:g}"
    title = f"Noise block ({block['kind']}), {area}: {data}"
    return partial(plotting.image_grid, title=title, headers=class_names, rows=pictures)


def map_figure(
    title: str,
    images: Mapping[int, np.ndarray],
    labels: Sequence[int],
    class_names: Sequence[str],
    seen: Mapping[str, Mapping],
    both: bool,
) -> Callable[[Path], None]:
    """2.6's figure: images, and every network's map of the class it predicts.

    With `both` the first network's map of the true class too. What follows a colon in the title
    are the settings.

    `images` are uint8 (H, W, 3) by their number in labels and in what each network has seen:
    probabilities (N, classes), predicted and true, which are maps (N, H, W).
    """
    rows, subject = [], title.partition(": ")
    for number, image in images.items():
        truth = int(labels[number])
        cells = [plotting.Overlay(image, None, f"true: {class_names[truth]}")]
        for place, (network, made) in enumerate(seen.items()):
            predicted = int(made["probabilities"][number].argmax())
            asked = {"predicted": predicted}
            if both and place == 0 and predicted != truth:
                asked["true"] = truth
            for kind, label in asked.items():
                confidence = 100 * made["probabilities"][number, label]
                about = f"{class_names[label]}, {confidence:.0f} %"
                caption = f"{plotting.shown_name(network)}, {kind}: {about}"
                cells.append(plotting.Overlay(image, made[kind][number].numpy(), caption))
        rows.append(cells)
    shown = " ".join(map(plotting.shown_name, subject[0].split(" ")))
    return partial(plotting.overlays, title=shown, settings=subject[2], rows=rows)
