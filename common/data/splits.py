"""How the images of a class are shared among train, val and test."""

from common.data.sets import SPLITS
from common.errors import UserError


def check_split(split: tuple[float, float, float]) -> None:
    """Refuse fractions of train, val and test that are not all above 0 or do not sum to 1."""
    if not all(fraction > 0 for fraction in split) or not abs(sum(split) - 1) <= 1e-6:
        raise UserError(
            f"--split {' '.join(f'{fraction:g}' for fraction in split)}: shares of train, val and"
            f" test must be above 0 and sum to 1, not to {sum(split):g}; try --split 0.7 0.15 0.15"
        )


def split_sizes(images: int, split: tuple[float, float, float]) -> list[int]:
    """How many of `images` go to train, val and test: by largest remainder, each at least 1."""
    check_class_size(images)
    sizes = [1] * len(SPLITS)
    for _ in range(images - len(SPLITS)):
        # Rounded, so that equal fractions tie exactly, and the first of them gets the image.
        lack = [round(images * split[place] - size, 9) for place, size in enumerate(sizes)]
        sizes[lack.index(max(lack))] += 1
    return sizes


def check_class_size(images: int) -> None:
    """Refuse classes of fewer images than there are splits."""
    if images < len(SPLITS):
        raise UserError(
            f"{images} images a class: a class needs at least {len(SPLITS)}, one for each of"
            f" {', '.join(SPLITS)}"
        )
