"""Pictures of Problem 1 alone: ratios as coloured cells, and a picture under all doses."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from common.reporting.canvas import new_figure, one_line
from common.reporting.plotting import shown_name

STRIP_PX = 176


def is_absolute(loss: str) -> bool:
    """Whether a loss averages absolute differences, by its name; others are squares."""
    return loss == "l1" or loss.startswith("mae_")


def squared(losses: Mapping[str, Mapping]) -> dict[str, Mapping]:
    """The losses that are squared differences, which can be compared with each other alone."""
    return {loss: row for loss, row in losses.items() if not is_absolute(loss)}


def distortions_figure(result: Mapping, settings: str) -> partial:
    """1.3's squared losses by distortion, with ImageNet's and with random weights."""
    trained = squared(result["distortions"]["weights"])
    panels = {"trained weights": trained}
    if random := result["distortions"].get("random_weights"):
        panels["random weights"] = {loss: random[loss] for loss in trained}
    names = list(next(iter(trained.values()))["ratios"])
    return partial(
        ratio_grid,
        title="Which loss forgives one pixel of shift and still sees other changes?",
        settings="A distortion's loss over that of the shift, both of the same pixel l2; blue: seen"
        f" more than the shift. Squared differences. {settings}",
        rows=list(trained),
        columns=[*names, "mean"],
        panels={
            label: np.array(
                [[*(row["ratios"][name]["mean"] for name in names), row["mean"]] for row in
                 losses.values()]
            )
            for label, losses in panels.items()
        },
    )  # fmt: skip


def ratio_grid(
    path: Path,
    title: str,
    settings: str,
    rows: list[str],
    columns: list[str],
    panels: Mapping[str, np.ndarray],
) -> None:
    """Ratios (rows, columns) as coloured cells with their numbers, a panel each; 1 is white."""
    size = (1.1 + 0.75 * len(columns) * len(panels), 0.42 * len(rows) + 1.3)
    about = (path, title, (1, len(panels)), size, settings)
    with new_figure(*about, sharey=True) as (_, axes):
        for axis, (label, ratios) in zip(axes[0], panels.items(), strict=True):
            axis.imshow(np.log2(ratios), cmap="RdBu", vmin=-4, vmax=4, aspect="auto")
            for (row, column), ratio in np.ndenumerate(ratios):
                pale = abs(np.log2(ratio)) < 2.5
                how = {"ha": "center", "va": "center", "color": "black" if pale else "white"}
                axis.text(column, row, f"{ratio:.2g}", fontsize=9, **how)
            axis.set_xticks(np.arange(len(columns)), columns, fontsize=9)
            axis.set_yticks(np.arange(len(rows)), [one_line(shown_name(name)) for name in rows])
            axis.axvline(len(columns) - 1.5, color="black", linewidth=1)
            axis.set_title(label)
            axis.grid(visible=False)
            axis.spines[:].set_visible(False)
            axis.tick_params(length=0)


def dose_strip(path: Path, pictures: Sequence[np.ndarray]) -> None:
    """The centres of pictures, uint8 (height, width, 3), side by side, as the page shows doses."""
    from PIL import Image

    row = []
    for picture in pictures:
        top, left = (max(0, side - STRIP_PX) // 2 for side in picture.shape[:2])
        row.append(picture[top : top + STRIP_PX, left : left + STRIP_PX])
    Image.fromarray(np.concatenate(row, axis=1)).save(path, "JPEG", quality=88)
