"""Photos for benchmarks: parts of scikit-image's, in memory or as JPEG files in class folders."""

from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from common.data.images import embedded_photos
from common.data.sets import FileSet

JPEG_QUALITY = 90
ORIGINAL = (667, 500)  # width and height in px, Flowers-102's most frequent


def parts(count: int, width: int, height: int) -> list[np.ndarray]:
    """Random parts of the photos, scaled, no two alike: uint8 (height, width, 3)."""
    rng, photos = np.random.default_rng(0), list(embedded_photos().values())
    return [_part(rng, photos[index % len(photos)], width, height) for index in range(count)]


def _part(rng: np.random.Generator, photo: np.ndarray, width: int, height: int) -> np.ndarray:
    scale = rng.uniform(0.6, 1) * min(photo.shape[1] / width, photo.shape[0] / height)
    size = (scale * width, scale * height)
    left, top = rng.uniform(0, photo.shape[1] - size[0]), rng.uniform(0, photo.shape[0] - size[1])
    box = (left, top, left + size[0], top + size[1])
    return np.array(Image.fromarray(photo).resize((width, height), Image.Resampling.BILINEAR, box))


def write_folders(root: Path, classes: int, per_class: int, width: int, height: int) -> FileSet:
    """Write JPEG files into class folders, as n00000000/n00000000_0.JPEG; returns their set."""
    rng, photos, paths = np.random.default_rng(0), list(embedded_photos().values()), []
    for label in tqdm(range(classes), desc="writing photos", disable=None):
        folder = root / f"n{label:08d}"
        folder.mkdir(parents=True)
        for number in range(per_class):
            paths.append(folder / f"{folder.name}_{number}.JPEG")
            photo = photos[len(paths) % len(photos)]
            part = Image.fromarray(_part(rng, photo, width, height))
            part.save(paths[-1], quality=JPEG_QUALITY)
    labels = [index // per_class for index in range(len(paths))]
    return FileSet("photos", paths, labels, [f"class {label}" for label in range(classes)])
