"""The packed cache, for which every image of a split is decoded once, and the one process pool.

An image of Problem 3 is decoded twice: to be verified (`common.data.manifest`), and to be packed.
"""

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common import files
from common.data.sets import DrawnSet, FileSet
from common.errors import DISK_FULL, UserError
from common.job import progress, say


@dataclass(frozen=True)
class Packed:
    """A decoded split: square uint8 images in a memory-mapped array.

    `images` is uint8 (n, S, S, 3), `labels` int64 (n,). `source` holds the originals, and
    `rows[i]` is the index there of packed image i (some are missing with --skip-bad).
    """

    images: np.ndarray
    labels: Tensor
    rows: np.ndarray
    source: FileSet | DrawnSet

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes by label."""
        return self.source.class_names

    def batch(self, indexes: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """The images and labels of int64 indexes (N,), on `device`.

        Images are uint8 (N, 3, S, S), channels_last, labels int64 (N,).
        """
        images = torch.from_numpy(self.images[indexes.numpy()]).permute(0, 3, 1, 2)
        if device.type == "cuda":
            images = images.pin_memory()
        return (
            images.to(device, non_blocking=True),
            self.labels[indexes].to(device, non_blocking=True),
        )


def packed_side_px(image_size_px: int) -> int:
    """The side of the packed squares: 8/7 of what a network sees, as torchvision's 256 to 224."""
    return round(image_size_px * 8 / 7)


def pack(source: FileSet | DrawnSet, image_size_px: int, cache: Path, skip_bad: bool) -> Packed:
    """A split from its packed cache, which the first use makes with all cores.

    The short side is scaled to `packed_side_px` and the central square cut out. A folder of the
    cache is opened again for the same files (`fingerprint`) at the same side alone.

    Raises:
        UserError: a bad image (without `skip_bad`), a full disk, or a damaged cache.
    """
    side_px = packed_side_px(image_size_px)
    name = f"{source.name.replace(' ', '-')}-{side_px}px-{source.fingerprint()[:16]}"
    fill = partial(_fill, source=source, side_px=side_px, cache=cache, skip_bad=skip_bad)
    folder = files.cached_folder(cache, name, fill)
    try:
        images = np.load(folder / "images.npy", mmap_mode="c")
        about = json.loads(files.load(folder / "about.json"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: damaged cache ({error}); delete it and run again") from None
    if about["bad"] and not skip_bad:
        raise UserError(f"{about['bad'][0]}; or leave bad images out with --skip-bad")
    if about["bad"]:
        say(f"{source.name}: {len(about['bad'])} bad image(s) left out: {'; '.join(about['bad'])}")
    rows = np.array(about["rows"], dtype=np.int64)
    return Packed(images, torch.from_numpy(source.labels[rows]), rows, source)


def _fill(
    folder: Path, source: FileSet | DrawnSet, side_px: int, cache: Path, skip_bad: bool
) -> None:
    try:
        with (folder / "images.npy").open("wb") as file:
            rows, bad = _decode_into(file, source, side_px, skip_bad)
        files.save(folder / "about.json", json.dumps({"rows": rows, "bad": bad}))
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        size_mb = len(source.labels) * side_px**2 * 3 / 1e6
        raise UserError(
            f"{cache}: {error.strerror} while packing {source.name}, which takes {size_mb:.0f} MB;"
            " free space or choose another --cache"
        ) from None


def _decode_into(file, source, side_px: int, skip_bad: bool) -> tuple[list[int], list[str]]:
    """Write the squares to an .npy file; returns the rows written and what was left out.

    Written, not memory-mapped: on a full disk a write raises where a mapping kills the process.
    """
    rows, bad, count = [], [], len(source.labels)
    _npy_header(file, (count, side_px, side_px, 3))
    work = partial(_square, source=source, side_px=side_px)
    squares = in_parallel(work, range(count), f"packing {source.name}")
    for row, square in enumerate(squares):
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


def _square(index: int, source: FileSet | DrawnSet, side_px: int) -> np.ndarray | str:
    """A picture's central square, or the reason why there is none."""
    try:
        image = source.picture(index, side_px)
    except UserError as error:
        return str(error)
    top, left = ((side - side_px) // 2 for side in image.shape[:2])
    return image[top : top + side_px, left : left + side_px].copy()


# ----------------------------------------------------------------------------------- process pool


def in_parallel(work: Callable, items: Sequence, label: str) -> Iterator:
    """Yield `work(item)` of every item in order, computed by all cores, under a progress bar.

    `work` goes to each process once, items and results are pickled. It must do without PyTorch:
    its threads do not survive a fork, and an operation would wait for them. What it raises is
    raised here, and the items left are given up.
    """
    pool = ProcessPoolExecutor(os.cpu_count(), initializer=_start_worker, initargs=(work,))
    try:
        results = pool.map(_call_work, items, chunksize=16)
        yield from progress(results, label, len(items), unit="image")
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(work: Callable) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _work = work


def _call_work(item):
    return _work(item)
