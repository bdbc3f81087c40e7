"""Labelled images by split: files on disk, drawn flowers, Oxford Flowers-102."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torchvision.datasets import Flowers102

from common import files
from common.data import flowers
from common.data.decoding import load_image, load_square, open_image
from common.data.images import fit_to, list_classes
from common.errors import UserError

SPLITS = flowers.SPLITS
SAMPLE_CLASSES, SAMPLE_SIZE_PX = 5, (300, 300)
TOP_RESOLUTIONS = 43  # as many as the report's Figure 11 lists


class FileSet:
    """The labelled image files of a split.

    `labels` is int64 (n,), 0-based; `class_names[label]` names a label. `sha256` holds the files'
    digests, if known; they distinguish sets whose files have the same names and sizes.
    """

    def __init__(
        self,
        name: str,
        files: list[Path],
        labels: list[int],
        class_names: list[str],
        sha256: Sequence[str] = (),
    ):
        self.name, self.files, self.class_names, self.sha256 = name, files, class_names, sha256
        self.labels = np.array(labels, dtype=np.int64)

    def only(self, rows: Sequence[int]) -> "FileSet":
        """The set of some of its images."""
        files = [self.files[row] for row in rows]
        return FileSet(self.name, files, self.labels[rows], self.class_names)

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) in px, from the file's header alone."""
        with open_image(self.files[index]) as image:
            return image.size

    def picture(self, index: int) -> np.ndarray:
        """The image of a file, as `load_image` gives it: uint8 (height, width, 3)."""
        return load_image(self.files[index])

    def square(self, index: int, side_px: int) -> np.ndarray:
        """The central square of an image, scaled: uint8 (side_px, side_px, 3)."""
        return load_square(self.files[index], side_px)

    def fingerprint(self) -> str:
        """A SHA-256 that changes with the file list, any file's size and any known SHA-256."""
        digest = hashlib.sha256()
        for path in self.files:
            about = f"{path.parent.name}/{path.name} {path.stat().st_size}\n"
            digest.update(os.fsencode(about))
        digest.update("".join(self.sha256).encode())
        return digest.hexdigest()


def class_folders(name: str, root: Path) -> FileSet:
    """The images of all class folders in `root`, with one label per folder, in sorted order."""
    classes, _ = list_classes(root)
    files = [root / class_id / image for class_id, images in classes.items() for image in images]
    labels = [label for label, images in enumerate(classes.values()) for _ in images]
    return FileSet(name, files, labels, list(classes))


class DrawnSet:
    """A split of the embedded data set: class-balanced flowers, drawn by `common.data.flowers`.

    It can be used like a `FileSet`; image `i` has label `i % classes`.
    """

    def __init__(self, split: str, images: int, classes: int, seed: int):
        self.split, self.classes, self.seed = split, classes, seed
        self.name = f"synthetic {split}"
        self.class_names = flowers.class_names(classes)
        self.labels = np.arange(images) % classes

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) in px of a picture at full resolution."""
        return flowers.full_size(self.seed, self.split, index)

    def picture(self, index: int, short_side_px: int | None = None) -> np.ndarray:
        """A picture, uint8 (height, width, 3), at full resolution or with that short side."""
        return self.flower(index, short_side_px).image

    def square(self, index: int, side_px: int) -> np.ndarray:
        """The central square of a picture drawn with that short side: uint8 (S, S, 3)."""
        image = self.picture(index, side_px)
        top, left = ((side - side_px) // 2 for side in image.shape[:2])
        return image[top : top + side_px, left : left + side_px].copy()

    def flower(self, index: int, short_side_px: int | None = None) -> flowers.Flower:
        """A picture with its mask, which shows where the flower is."""
        return flowers.draw_flower(self.seed, self.split, index, self.classes, short_side_px)

    def fingerprint(self) -> str:
        """A SHA-256 that changes with what is drawn, and with the code that draws it."""
        about = f"{self.seed} {self.split} {len(self.labels)} {self.classes}"
        code = Path(flowers.__file__).read_bytes()
        return hashlib.sha256(about.encode() + code).hexdigest()


def top_resolutions(sizes: Mapping[tuple[int, int], int]) -> list[list[int]]:
    """The most frequent [width, height, images] in px, larger ones first among equals."""
    ordered = sorted(sizes.items(), key=lambda item: (item[1], item[0]), reverse=True)
    return [[*size_px, count] for size_px, count in ordered[:TOP_RESOLUTIONS]]


def sample_pictures(
    sources: Mapping[str, FileSet | DrawnSet], seed: int
) -> tuple[list[str], dict[str, list[np.ndarray]]]:
    """The names of up to five random classes, and a random picture of each, by split.

    Pictures are uint8 (300, 300, 3), in the classes' order.
    """
    rng = np.random.default_rng(seed)
    names = sources["train"].class_names
    labels = sorted(rng.choice(len(names), min(SAMPLE_CLASSES, len(names)), replace=False))
    pictures = {}
    for split, source in sources.items():
        indexes = [int(rng.choice(np.flatnonzero(source.labels == label))) for label in labels]
        pictures[split] = [fit_to(source.picture(index), *SAMPLE_SIZE_PX) for index in indexes]
    return [names[label] for label in labels], pictures


def embedded_folders(cache: Path, classes: int, per_class: int, side_px: int, seed: int) -> Path:
    """Class folders of drawn flowers, `per_class` PNG files each, cached by the first use."""
    code = files.sha256_of(Path(flowers.__file__))[:16]
    name = f"flowers-{classes}x{per_class}-{side_px}px-seed{seed}-{code}"
    how = (classes, per_class, side_px, seed, ("train",))
    return files.cached_folder(cache, name, lambda to: flowers.write_folders(to, *how)) / "train"


def flowers102(root: Path) -> dict[str, FileSet]:
    """Oxford Flowers-102 (Nilsback & Zisserman 2008) by its official splits train, val and test.

    It lies in `root`/flowers-102, or in `root` itself if that is so named. What is missing is
    downloaded there by torchvision, which checks the MD5 of the label files.
    """
    if root.name == "flowers-102":
        root = root.parent
    folder, url = root / "flowers-102", Flowers102._download_url_prefix
    names = ("jpg", "imagelabels.mat", "setid.mat")
    missing = [name for name in names if not (folder / name).exists()]
    try:
        official = {split: Flowers102(root, split, download=bool(missing)) for split in SPLITS}
    except (OSError, RuntimeError) as error:
        reason = f"imagelabels.mat or setid.mat is unreadable or has another MD5 ({error})"
        if missing:
            reason = f"{missing[0]} is missing, and the download from {url} failed ({error})"
        raise UserError(
            f"no Flowers-102 in {folder}: {reason}; put 102flowers.tgz (extracted: jpg/),"
            " imagelabels.mat and setid.mat there, or choose --data-root DIR or --data synthetic"
        ) from None
    # Private names, but the alternatives decode every image or parse the label files once more.
    paths = {split: each._image_files for split, each in official.items()}
    there = set(os.listdir(folder / "jpg"))
    lacking = sorted({path.name for split in SPLITS for path in paths[split]} - there)
    if lacking:
        raise UserError(
            f"{folder / 'jpg'}: {len(lacking):,} images are missing, the first {lacking[0]}; unpack"
            f" {url}102flowers.tgz there again, or delete the folder and run again"
        )
    return {
        split: FileSet(f"flowers102 {split}", paths[split], each._labels, Flowers102.classes)
        for split, each in official.items()
    }
