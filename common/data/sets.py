"""Labelled images by their splits: files on disk, drawn flowers, Oxford Flowers-102."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from urllib.error import URLError

import numpy as np
from PIL import Image
from torchvision.datasets import Flowers102
from torchvision.datasets.utils import check_integrity

from common.data import flowers
from common.data.images import load_image, one_line_errors
from common.errors import UserError

SPLITS = ("train", "val", "test")
FLOWERS_SIZES = {"train": 1020, "val": 1020, "test": 6149}
FLOWERS_LABELS = dict(Flowers102._file_dict[key] for key in ("label", "setid"))
FLOWERS_URL = Flowers102._download_url_prefix


class FileSet:
    """Labelled image files of one split.

    `labels` is int64 (n,), 0-based; `class_names[label]` names a label. `sha256` of the files,
    where they are known, tell two sets apart whose files have the same names and sizes.
    """

    def __init__(
        self,
        name: str,
        files: list[Path],
        labels: list[int],
        class_names: list[str],
        sha256: Sequence[str] = (),
    ):
        self.name, self.files, self.class_names = name, files, class_names
        self.sha256 = sha256
        self.labels = np.array(labels, dtype=np.int64)

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) in px, from the file's header alone.

        Raises:
            UserError: the file is missing or its header can't be read.
        """
        with one_line_errors(self.files[index]), Image.open(self.files[index]) as image:
            return image.size

    def picture(self, index: int, short_side_px: int | None = None) -> np.ndarray:
        """`load_image` of one file."""
        return load_image(self.files[index], short_side_px)

    def fingerprint(self) -> str:
        """Changes with the file list, and with any file's size, or its SHA-256 where known.

        Raises:
            UserError: a file is missing.
        """
        digest = hashlib.sha256()
        for path in self.files:
            with one_line_errors(path):
                about = path.stat()
            digest.update(f"{path.parent.name}/{path.name} {about.st_size}\n".encode())
        digest.update("".join(self.sha256).encode())
        return digest.hexdigest()


class DrawnSet:
    """One split of the embedded data set, drawn by `common.data.flowers`: class-balanced flowers."""

    def __init__(self, split: str, images: int, classes: int, seed: int):
        self.split, self.classes, self.seed = split, classes, seed
        self.name = f"synthetic {split}"
        self.class_names = flowers.class_names(classes)
        self.labels = np.arange(images) % classes

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) in px of a picture at full resolution."""
        return flowers.full_size(self.seed, self.split, index)

    def picture(self, index: int, short_side_px: int | None = None) -> np.ndarray:
        """One picture, uint8 (height, width, 3), at full resolution or with that short side."""
        return self.flower(index, short_side_px).image

    def flower(self, index: int, short_side_px: int | None = None) -> flowers.Flower:
        """One picture with its mask."""
        return flowers.draw_flower(self.seed, self.split, index, self.classes, short_side_px)

    def fingerprint(self) -> str:
        """Changes with what is drawn."""
        about = f"{self.seed} {self.split} {len(self.labels)} {self.classes}"
        code = Path(flowers.__file__).read_bytes()
        return hashlib.sha256(about.encode() + code).hexdigest()


def flowers102(root: Path) -> dict[str, FileSet]:
    """Oxford Flowers-102 (Nilsback & Zisserman 2008) by its official splits train, val and test.

    Used where it is on disk under `root`/flowers-102, else downloaded there by torchvision.

    Raises:
        UserError: not there and not to be downloaded, or a label file with another MD5.
    """
    folder = root / "flowers-102"
    for file in FLOWERS_LABELS:
        _check_md5(folder / file)
    missing = [
        path
        for path in (folder / "jpg", *map(folder.joinpath, FLOWERS_LABELS))
        if not path.exists()
    ]
    if missing:
        _download_flowers(root, missing[0])
    splits = {}
    for split, images in FLOWERS_SIZES.items():
        found = Flowers102(root, split)
        if len(found) != images:
            raise UserError(f"{folder}: {len(found)} {split} images, not {images}: delete it")
        # Private, but the alternatives decode every image or parse the label files once more.
        splits[split] = FileSet(
            f"flowers102 {split}", found._image_files, found._labels, Flowers102.classes
        )
    return splits


def _check_md5(path: Path) -> None:
    wanted = FLOWERS_LABELS[path.name]
    if path.exists() and not check_integrity(path, wanted):
        raise UserError(
            f"{path}: its MD5 is not {wanted}, so it is not Flowers-102's: refused; delete it and"
            " run again to download it"
        )


def _download_flowers(root: Path, missing: Path) -> None:
    try:
        Flowers102(root, download=True)
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"no Flowers-102: {missing} is missing and its download from {FLOWERS_URL} failed"
            f" ({error}); put 102flowers.tgz (extracted: jpg/), imagelabels.mat and setid.mat into"
            f" {missing.parent}, or choose --data-root DIR or --data synthetic"
        ) from None
