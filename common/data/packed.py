"""The packed cache: all images of a split, decoded once, with one thread per core."""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common import files
from common.data.augment import centre_square
from common.data.images import say_left_out
from common.data.sets import DrawnSet, FileSet
from common.errors import UserError
from common.job import is_first, progress

FORMAT = 2  # version of a cache folder
SIZES_LOOKED_AT = 16
WINDOW = 64  # most results that wait for their turn


@dataclass(frozen=True)
class Packed:
    """A decoded split: square uint8 images in a memory-mapped array.

    `images` is uint8 (n, S, S, 3), `labels` int64 (n,). `source` holds the originals; `rows[i]` is
    the index of packed image i in it. `left_out` says why images are missing with --skip-bad.
    """

    images: np.ndarray
    labels: Tensor
    rows: np.ndarray
    source: FileSet | DrawnSet
    left_out: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes by label."""
        return self.source.class_names

    def batch(self, indexes: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """uint8 images (N, 3, S, S), channels_last, and int64 labels (N,) at int64 indexes (N,)."""
        images = torch.from_numpy(self.images[indexes.numpy()]).permute(0, 3, 1, 2)
        if device.type == "cuda":
            images = images.pin_memory()
        both = images, self.labels[indexes]
        return tuple(values.to(device, non_blocking=True) for values in both)

    def squares(self, indexes: Tensor, size_px: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """As `batch`, of each image its central square, float32 (N, 3, size_px, size_px)."""
        images, labels = self.batch(indexes, device)
        return centre_square(images, size_px), labels


def packed_side_px(image_size_px: int) -> int:
    """The side of packed squares: 8/7 of the network's input, like 256 to 224 in torchvision."""
    return round(image_size_px * 8 / 7)


def pack(source: FileSet | DrawnSet, image_size_px: int, cache: Path, skip_bad: bool) -> Packed:
    """Load a split from its packed cache; the first use makes the cache, with all cores.

    The squares' side is `packed_side_px`, or less for smaller pictures (at least `image_size_px`):
    nothing is enlarged to be cropped again. The folder's name holds the side and a fingerprint.
    """
    side_px = min(packed_side_px(image_size_px), max(image_size_px, _short_side_px(source)))
    settings = f"{side_px}px-v{FORMAT}-{source.fingerprint()[:16]}"
    name = f"{source.name.replace(' ', '-')}-{settings}"
    fill = partial(_fill, source=source, side_px=side_px, skip_bad=skip_bad)
    folder = files.cached_folder(cache, name, fill)
    try:
        if is_first():  # once per job, since it reads the whole file
            files.check(folder / "images.npy")
        images = np.load(folder / "images.npy", mmap_mode="c", allow_pickle=False)
        about = files.load_json(folder / "about.json")
    except (FileNotFoundError, ValueError, UserError) as error:
        raise UserError(f"damaged cache: {error}; delete {folder} and run again") from None
    rows, bad = np.array(about["rows"], dtype=np.int64), about["bad"]
    if bad and not skip_bad:
        raise UserError(f"{bad[0]}; repair it, or leave out bad images with --skip-bad")
    say_left_out(bad, source.name)
    return Packed(images, torch.from_numpy(source.labels[rows]), rows, source, bad)


def _short_side_px(source: FileSet | DrawnSet) -> int:
    """The largest short side of some evenly spaced pictures of a split."""
    short_sides_px = [0]
    for index in np.linspace(0, len(source.labels) - 1, SIZES_LOOKED_AT, dtype=int):
        with contextlib.suppress(UserError):  # packing reports what can't be read
            short_sides_px.append(min(source.size(int(index))))
    return max(short_sides_px)


def _fill(folder: Path, source: FileSet | DrawnSet, side_px: int, skip_bad: bool) -> None:
    rows, bad, count = [], [], len(source.labels)

    def square_of(index: int) -> np.ndarray | str:
        try:
            return source.square(index, side_px)
        except UserError as error:
            return str(error)

    squares = in_parallel(square_of, range(count), f"packing {source.name}")
    # Written, not memory-mapped: on a full disk a write raises, but a mapping kills the process.
    with (folder / "images.npy").open("wb") as file:
        _npy_header(file, (count, side_px, side_px, 3))
        for row, square in enumerate(squares):
            if isinstance(square, np.ndarray):
                rows.append(row)
                file.write(square.tobytes())
            elif skip_bad:
                bad.append(square)
            else:
                raise UserError(f"{square}; repair it, or leave out bad images with --skip-bad")
        file.seek(0)  # the header's length stays: NumPy leaves room for the first number
        _npy_header(file, (len(rows), side_px, side_px, 3))
    if not rows:
        raise UserError(f"{source.name}: none of the {count} images can be read; first: {bad[0]}")
    files.record(folder / "images.npy")
    files.save_json(folder / "about.json", {"rows": rows, "bad": bad})


def _npy_header(file, shape: tuple[int, ...]) -> None:
    about = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, about)


def in_parallel(work: Callable, items: Sequence, label: str) -> Iterator:
    """Yield `work(item)` of every item in order, with a progress bar and one thread per core.

    Threads help if `work` releases Python's lock, as Pillow does while it decodes and scales. An
    exception in `work` is raised here, and the remaining items are dropped.
    """
    threads, waiting = ThreadPoolExecutor(os.cpu_count()), deque()
    try:
        for item in progress(items, label, unit="image"):
            waiting.append(threads.submit(work, item))
            if len(waiting) == WINDOW:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)  # waits only for the items begun
