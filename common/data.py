"""Images from files, folders and packages; labelled splits and their packed cache."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import numpy as np
import skimage.data
import torch
from filelock import FileLock
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.datasets import Flowers102
from torchvision.datasets.utils import check_integrity

from common import synthetic
from common.cli import DISK_FULL, UserError, make_folder, progress

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

FLOWERS_SIZES = {"train": 1020, "val": 1020, "test": 6149}
FLOWERS_LABELS = dict(Flowers102._file_dict[key] for key in ("label", "setid"))
FLOWERS_URL = Flowers102._download_url_prefix


def load_image(path: Path, short_side_px: int | None = None) -> np.ndarray:
    """An image file as RGB, uint8 of shape (height, width, 3), scaled where a short side is given.

    EXIF orientation is applied; grey, palette and CMYK become RGB; alpha is laid over white;
    16-bit grey is scaled to 8 bits. Of an animation the first frame is taken.

    Raises:
        UserError: missing, not an image, truncated, or too large to be opened safely.
    """
    with _one_line_errors(path), Image.open(path) as image:
        if short_side_px is None:
            return np.array(_to_rgb(ImageOps.exif_transpose(image)))
        image.draft(None, (short_side_px, short_side_px))  # a JPEG is decoded at 1/2, 1/4 or 1/8
        return np.array(_scale(_to_rgb(ImageOps.exif_transpose(image)), short_side_px))


def _scale(image: Image.Image, short_side_px: int) -> Image.Image:
    size = tuple(short_side_px * side // min(image.size) for side in image.size)
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3)


@contextlib.contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """What Pillow and the system say of a file, as a UserError that names it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder, not an image") from None
    except PermissionError:
        raise UserError(f"{path}: cannot be read; see to its permissions") from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: not an image that Pillow can read") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UserError(
            f"{path}: more than {Image.MAX_IMAGE_PIXELS:,} pixels, refused as a decompression bomb;"
            " scale it down first"
        ) from None
    except (OSError, SyntaxError, ValueError, MemoryError) as error:  # Pillow's, for damaged files
        raise UserError(f"{path}: damaged image ({error})") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode}: its range is unknown, save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def load_folder(folder: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """All images directly in a folder, by file name in sorted order, and what was left out.

    Files are taken by the endings that Pillow knows; a bad one is left out with its reason.

    Raises:
        UserError: no such folder, or no image in it that can be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    endings = Image.registered_extensions()
    images, bad = {}, []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in endings and path.is_file():
            try:
                images[path.name] = load_image(path)
            except UserError as error:
                bad.append(str(error))
    if not images:
        reason = (
            f"none of its {len(bad)} images can be read; first: {bad[0]}" if bad else "no images"
        )
        raise UserError(f"{folder}: {reason}")
    return images, bad


def embedded_photos() -> dict[str, np.ndarray]:
    """scikit-image's colour photographs by name, each uint8 (height, width, 3)."""
    folder = Path(skimage.data.data_dir)
    return {name: load_image(folder / file) for name, file in EMBEDDED_PHOTOS.items()}


def to_tensor(image: np.ndarray) -> Tensor:
    """uint8 (height, width, 3) as float32 (3, height, width) in [0, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255


def to_uint8(image: Tensor) -> np.ndarray:
    """float (3, height, width) in [0, 1] as uint8 (height, width, 3), rounded to nearest."""
    return (image * 255).round().byte().permute(1, 2, 0).contiguous().numpy()


def fit_to(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Scale to cover (width, height), keeping the aspect ratio, and cut out the centre."""
    fitted = ImageOps.fit(Image.fromarray(image), (width, height), Image.Resampling.LANCZOS)
    return np.array(fitted)


def centre_crop(image: Tensor, width: int, height: int) -> Tensor:
    """The central (height, width) of an image of shape (..., H, W), or all there is of it."""
    top, left = max(0, image.shape[-2] - height) // 2, max(0, image.shape[-1] - width) // 2
    return image[..., top : top + height, left : left + width]


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
        with _one_line_errors(self.files[index]), Image.open(self.files[index]) as image:
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
            with _one_line_errors(path):
                about = path.stat()
            digest.update(f"{path.parent.name}/{path.name} {about.st_size}\n".encode())
        digest.update("".join(self.sha256).encode())
        return digest.hexdigest()


class DrawnSet:
    """One split of the embedded data set, drawn by `common.synthetic`: class-balanced flowers."""

    def __init__(self, split: str, images: int, classes: int, seed: int):
        self.split, self.classes, self.seed = split, classes, seed
        self.name = f"synthetic {split}"
        self.class_names = synthetic.class_names(classes)
        self.labels = np.arange(images) % classes

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) in px of a picture at full resolution."""
        return synthetic.full_size(self.seed, self.split, index)

    def picture(self, index: int, short_side_px: int | None = None) -> np.ndarray:
        """One picture, uint8 (height, width, 3), at full resolution or with that short side."""
        return self.flower(index, short_side_px).image

    def flower(self, index: int, short_side_px: int | None = None) -> synthetic.Flower:
        """One picture with its mask."""
        return synthetic.draw_flower(self.seed, self.split, index, self.classes, short_side_px)

    def fingerprint(self) -> str:
        """Changes with what is drawn."""
        about = f"{self.seed} {self.split} {len(self.labels)} {self.classes}"
        code = Path(synthetic.__file__).read_bytes()
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


@dataclass(frozen=True)
class Packed:
    """A split, decoded once: square uint8 images in a memory-mapped array.

    `images` is uint8 (n, S, S, 3), `labels` int64 (n,). `source` holds the originals, and
    `rows[i]` is the index there of packed image i (some are missing with --skip-bad).
    """

    images: np.ndarray
    labels: Tensor
    rows: np.ndarray
    source: "FileSet | DrawnSet"

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def class_names(self) -> list[str]:
        """Names by label."""
        return self.source.class_names

    def batch(self, indexes: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images, uint8 (N, 3, S, S), channels_last, and labels, int64 (N,), on `device`."""
        images = torch.from_numpy(self.images[indexes.numpy()]).permute(0, 3, 1, 2)
        if device.type == "cuda":
            images = images.pin_memory()
        return (
            images.to(device, non_blocking=True),
            self.labels[indexes].to(device, non_blocking=True),
        )


def pack(source: FileSet | DrawnSet, image_size_px: int, cache: Path, skip_bad: bool) -> Packed:
    """A split from its packed cache, which the first use makes with all cores.

    The short side is scaled to 8/7 of the image size and the central square cut out. The cache is
    a folder that appears in one step, so one that a killed run left unfinished is never opened.

    Raises:
        UserError: a bad image (without `skip_bad`), a full disk, or a damaged cache.
    """
    side_px = round(image_size_px * 8 / 7)
    folder = cache / f"{source.name.replace(' ', '-')}-{side_px}px-{source.fingerprint()[:16]}"
    make_folder(cache, flag="--cache")
    with FileLock(cache / ".lock"):  # of several processes one decodes, the others wait
        if not folder.exists():
            _write_cache(source, side_px, cache, folder, skip_bad)
    try:
        images = np.load(folder / "images.npy", mmap_mode="c")
        about = json.loads((folder / "about.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: damaged cache ({error}); delete it and run again") from None
    if about["bad"] and not skip_bad:
        raise UserError(f"{about['bad'][0]}; or leave bad images out with --skip-bad")
    if about["bad"]:
        print(
            f"{source.name}: {len(about['bad'])} bad image(s) left out: {'; '.join(about['bad'])}"
        )
    rows = np.array(about["rows"], dtype=np.int64)
    return Packed(images, torch.from_numpy(source.labels[rows]), rows, source)


def _write_cache(
    source: FileSet | DrawnSet, side_px: int, cache: Path, folder: Path, skip_bad: bool
) -> None:
    for leftover in cache.glob(".partial-*"):  # we hold the lock: nobody writes there any more
        shutil.rmtree(leftover)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=cache))
    try:
        with (partial / "images.npy").open("wb") as file:
            rows, bad = _decode_into(file, source, side_px, skip_bad)
        (partial / "about.json").write_text(json.dumps({"rows": rows, "bad": bad}))
        partial.rename(folder)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        size_mb = len(source.labels) * side_px**2 * 3 / 1e6
        raise UserError(
            f"{cache}: {error.strerror} while packing {source.name}, which takes {size_mb:.0f} MB;"
            " free space or choose another --cache"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _decode_into(file, source, side_px: int, skip_bad: bool) -> tuple[list[int], list[str]]:
    """Write the squares to an .npy file; returns the rows written and what was left out.

    Written, not memory-mapped: on a full disk a write raises where a mapping kills the process.
    """
    rows, bad, count = [], [], len(source.labels)
    _npy_header(file, (count, side_px, side_px, 3))
    for row, square in enumerate(_squares(source, side_px)):
        if isinstance(square, str):
            bad.append(square)
            if not skip_bad:
                raise UserError(f"{square}; mend it, or leave bad images out with --skip-bad")
        else:
            rows.append(row)
            file.write(square.tobytes())
    if not rows:
        raise UserError(f"{source.name}: none of {count} images can be read; first: {bad[0]}")
    file.seek(0)
    _npy_header(file, (len(rows), side_px, side_px, 3))
    return rows, bad


def _npy_header(file, shape: tuple[int, ...]) -> None:
    # NumPy pads the header to a multiple of 64 bytes and leaves room for a growing first number.
    about = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, about)


def _squares(source, side_px: int) -> Iterator[np.ndarray | str]:
    """Each picture's central square in order, or the reason why there is none."""
    count = len(source.labels)
    pool = ProcessPoolExecutor(
        os.cpu_count(), initializer=_start_worker, initargs=(source, side_px)
    )
    try:
        squares = pool.map(_square, range(count), chunksize=16)
        yield from progress(squares, f"packing {source.name}", count, unit="image")
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(source, side_px: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    globals()["_work"] = (source, side_px)


def _square(index: int) -> np.ndarray | str:
    # NumPy alone: PyTorch's threads do not survive a fork, and an operation would wait for them.
    source, side_px = globals()["_work"]
    try:
        image = source.picture(index, side_px)
    except UserError as error:
        return str(error)
    top, left = ((side - side_px) // 2 for side in image.shape[:2])
    return image[top : top + side_px, left : left + side_px].copy()
