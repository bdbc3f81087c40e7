"""Images from folders and packages, reports of what is left out, and conversions and crops."""

import os
import sys
from collections import UserDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from common.data.decoding import load_image
from common.errors import UserError
from common.job import printable, progress, say

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Real colour photographs that come in scikit-image's wheel. Left out: hubble_deep_field and
# retina (mostly black) and motorcycle_right (the left one's stereo twin is not "another picture").
EMBEDDED_PHOTOS = {
    "astronaut": "astronaut.png",
    "chelsea": "chelsea.png",
    "coffee": "coffee.png",
    "ihc": "ihc.png",
    "motorcycle": "motorcycle_left.png",
    "rocket": "rocket.jpg",
}

NAME_FILES = ("LOC_synset_mapping.txt", "words.txt")  # hold the names of classes
FOLDER = "a folder"  # the reason why a folder is left out
NAMED = 3  # so many of the files left out are named on stderr
# How far the mean colours (0 to 255) of 8 x 8 cells may differ if a picture is only saved again. No
# two of the 690 photos of two published folders are within 40.
SAME_WITHIN = 4


def images_in(folder: Path) -> tuple[list[str], dict[str, str]]:
    """The names of a folder's images, known by their endings, and why others are left out."""
    names, left_out, endings = [], {}, Image.registered_extensions()
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name, is_image = entry.name, os.path.splitext(entry.name)[1].lower() in endings
        if name.startswith("."):
            if is_image:  # a Mac writes ._a.jpg beside a.jpg
                left_out[name] = "hidden"
        elif entry.is_dir():
            left_out[name] = FOLDER
        elif is_image:
            names.append(name)
        else:
            left_out[name] = "no image by its ending; rename or convert it"
    return names, left_out


def say_left_out(reasons: Sequence[str], source: str) -> None:
    """Say on one line of stderr how many files or classes were left out, and the first of them."""
    if reasons:
        first, more = "; ".join(reasons[:NAMED]), len(reasons) - NAMED
        rest = f"; and {more:,} more, see results.json" if more > 0 else ""
        say(printable(f"left out {len(reasons):,} of {source}: {first}{rest}"), file=sys.stderr)


class Pictures(UserDict):
    """Images by name, uint8 (height, width, 3), from paths; each is read when it is asked for."""

    def __getitem__(self, name: str) -> np.ndarray:
        return load_image(self.data[name])


def open_folder(
    folder: Path, most: int | None = None, seed: int = 0
) -> tuple[Pictures, dict[str, tuple[int, int]], list[str]]:
    """Images of a folder in sorted order, or a seeded draw of `most`; sizes; what was left out.

    Images lie directly in the folder or, if none does, in its subfolders. Each is read once as a
    check. Sizes are (width, height) by name. Left out, as "NAME: why", are folders, files that are
    no image or a bad one, and copies of other pictures, as these are not "unrelated pictures".
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a single image with --image")
    candidates, left_out = _images_below(folder)
    if most is not None:
        order = np.random.default_rng(seed).permutation(len(candidates))
        candidates = [candidates[place] for place in order]
    sizes, seen = {}, {}
    for name in progress(candidates, desc="reading"):
        if len(sizes) == most:
            break
        try:
            image = load_image(folder / name)
        except UserError as error:
            left_out[name] = str(error).removeprefix(printable(f"{folder / name}: "))
            continue
        cells = Image.fromarray(image).resize((8, 8), Image.Resampling.BOX)
        colours = np.array(cells, dtype=int)
        for other, others in seen.items():
            same_size = sizes[other] == image.shape[1::-1]
            if same_size and np.abs(others - colours).max() <= SAME_WITHIN:
                left_out[name] = f"the same picture as {other}"
                break
        else:
            sizes[name], seen[name] = image.shape[1::-1], colours
    reasons = [f"{name}: {left_out[name]}" for name in sorted(left_out)]
    if not sizes:
        found = f"{len(reasons)} left out; first: {reasons[0]}" if reasons else "no images"
        raise UserError(f"{folder}: no readable image ({found}); give another folder of images")
    sizes = {name: sizes[name] for name in sorted(sizes)}
    return Pictures({name: folder / name for name in sizes}), sizes, reasons


def _images_below(folder: Path) -> tuple[list[str], dict[str, str]]:
    """`images_in` of a folder or, if it holds folders but no image, of its folders together."""
    names, left_out = images_in(folder)
    inner = [name for name, why in left_out.items() if why == FOLDER]
    if names or not inner:
        return names, left_out
    left_out = {}
    for folder_name in inner:
        found, others = images_in(folder / folder_name)
        names += (f"{folder_name}/{name}" for name in found)
        left_out |= {f"{folder_name}/{name}": why for name, why in others.items()}
    return names, left_out


def list_classes(
    root: Path, written: Sequence[Path] = ()
) -> tuple[dict[str, list[str]], list[str]]:
    """The image files of each class folder in `root`, and why others are left out, all sorted.

    A class id is the name of its folder. Images are known by their endings. Folders that hold one
    of `written`, this program's own, are skipped without a reason.
    """
    own, classes, left_out = [path.resolve() for path in written], {}, []
    for name in sorted(os.listdir(root)):
        folder = (root / name).resolve()
        if name.startswith(".") or name in NAME_FILES:
            continue
        if not folder.is_dir():
            left_out.append(f"{name}: a file among the class folders")
        elif not any(path.is_relative_to(folder) for path in own):
            classes[name], others = images_in(root / name)
            for other, why in others.items():
                if why == FOLDER:
                    raise UserError(
                        f"{root / name / other}: a folder inside a class folder; images must lie at"
                        f" {root}/CLASS/IMAGE: move them up, or give the folder of class folders"
                    )
                left_out.append(f"{name}/{other}: {why}")
    if len(classes) < 2:
        raise UserError(
            f"{root}: holds {len(classes)} class folder(s); give a folder that holds at least"
            " two, each with the images of one class"
        )
    return classes, left_out


def embedded_photos() -> dict[str, np.ndarray]:
    """scikit-image's colour photographs by name, uint8 (height, width, 3)."""
    import skimage.data  # slow to import, and only these photos need it

    folder = Path(skimage.data.data_dir)
    return {name: load_image(folder / file) for name, file in EMBEDDED_PHOTOS.items()}


def to_tensor(image: np.ndarray) -> Tensor:
    """An image of uint8 (height, width, 3) as float32 (3, height, width) in [0, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255


def to_uint8(image: Tensor) -> np.ndarray:
    """A float image (3, height, width) in [0, 1] as uint8 (height, width, 3), rounded."""
    return (image * 255).round().byte().permute(1, 2, 0).contiguous().numpy()


def fit_to(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """The centre of an image, scaled to cover `width` by `height` px; uint8 (height, width, 3)."""
    fitted = ImageOps.fit(Image.fromarray(image), (width, height), Image.Resampling.LANCZOS)
    return np.array(fitted)


def centre_crop(image: Tensor, width: int, height: int) -> Tensor:
    """The central (height, width) of an image (..., H, W); a shorter side is kept whole."""
    top, left = max(0, image.shape[-2] - height) // 2, max(0, image.shape[-1] - width) // 2
    return image[..., top : top + height, left : left + width]
