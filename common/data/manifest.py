"""A prototype data set, drawn from class folders: verified, split, and kept as a list of files.

Its images are decoded twice: here to be verified, before it is known which are in the set, and by
`common.data.packed` to be packed, at a size that the manifest does not know.
"""

import csv
import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common import files
from common.data.decoding import load_image, open_image
from common.data.folders import class_names, list_classes, readable, sort_names
from common.data.images import leads_out
from common.data.packed import in_parallel
from common.data.sets import SPLITS, FileSet
from common.data.splits import check_class_size, split_sizes
from common.errors import UserError
from common.job import printable

Listing = dict[str, list[str]]  # file names by class id

CLASSES = 500
ENCODING = ("utf-8", "surrogateescape")  # file names may be any bytes


@dataclass(frozen=True, slots=True)
class Row:
    """An image of a data set, as a line of the manifest has it.

    `path` is relative to the root: its class id, "/", its file name. `split` is one of SPLITS.
    `width` and `height` are the header's, in px: an EXIF orientation is not applied. `bytes` is
    the file's size, `sha256` hexadecimal.
    """

    path: str
    class_id: str
    class_name: str
    split: str
    width: int
    height: int
    bytes: int
    sha256: str


COLUMNS = [field.name for field in fields(Row)]


class _Verified(NamedTuple):
    """An image file that can be decoded; its fields are those of a `Row`."""

    path: str
    width: int
    height: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A data set: its images in the order of class id and path, and why others are not in it.

    `quarantined` are images that can't be decoded and duplicates, `left_out` files and classes
    that were never drawn: "PATH: why".
    """

    root: Path
    rows: list[Row]
    quarantined: list[str]
    left_out: list[str]

    def catalogue(self) -> dict:
        """Count the classes and the images, of each split too.

        Keys: classes, images_per_class (an integer, or [fewest, most] where they differ), total,
        train, val, test.
        """
        class_sizes = Counter(row.class_id for row in self.rows)
        split_images = Counter(row.split for row in self.rows)
        fewest, most = min(class_sizes.values()), max(class_sizes.values())
        return {
            "classes": len(class_sizes),
            "images_per_class": most if fewest == most else [fewest, most],
            "total": len(self.rows),
            **{split: split_images[split] for split in SPLITS},
        }

    def sets(self) -> dict[str, FileSet]:
        """The splits train, val and test by name, labelled from 0 in the order of class ids.

        Where two classes share a name, their ids are appended to it.
        """
        names = {row.class_id: row.class_name for row in self.rows}
        class_ids, uses = sort_names(names), Counter(names.values())
        shown = [
            names[class_id] if uses[names[class_id]] == 1 else f"{names[class_id]} ({class_id})"
            for class_id in class_ids
        ]
        labels = {class_id: label for label, class_id in enumerate(class_ids)}
        sets = {}
        for split in SPLITS:
            rows = [row for row in self.rows if row.split == split]
            sets[split] = FileSet(
                f"prototype {split}",
                [self.root / row.path for row in rows],
                [labels[row.class_id] for row in rows],
                shown,
                [row.sha256 for row in rows],
            )
        return sets

    def csv_bytes(self) -> bytes:
        """The manifest as CSV, which `read` takes: a row an image; file names keep their bytes."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(map(astuple, self.rows))
        return text.getvalue().encode(*ENCODING)


# ------------------------------------------------------------------------------------------- draw


def draw(
    root: Path,
    classes: int | None,
    per_class: int,
    split: tuple[float, float, float],
    seed: int,
    allow_fewer: bool,
    follow_links: bool = False,
) -> Manifest:
    """Draw `classes` class folders and `per_class` images of each, and decode every image.

    A corrupt file, and one whose SHA-256 was drawn before, is quarantined; the next draw of its
    class takes its place, so the splits of the other images stay. A class that runs out is
    replaced by the next one drawn, or with `allow_fewer` keeps what it has. `classes` None means
    500, or all where there are fewer. `split` is one that `splits.check_split` lets pass.

    Raises:
        UserError: a folder that can't be used, or more asked for than there is.
    """
    drawn, reserve, left_out = choose(root, classes, per_class, seed, allow_fewer, follow_links)
    least = len(SPLITS) if allow_fewer else per_class
    most = min(per_class, max(map(len, [*drawn.values(), *reserve.values()])))
    images, quarantined, given_up = _take_images(root, drawn, reserve, most, least)
    if len(images) < max(2, classes or 0):
        raise UserError(
            f"{root}: only {len(images)} classes have {least} or more good images; ask for fewer"
            " with --classes or --per-class, or add --allow-fewer"
        )
    return Manifest(root, _rows(root, images, split), quarantined, left_out + given_up)


def choose(
    root: Path,
    classes: int | None,
    per_class: int,
    seed: int,
    allow_fewer: bool,
    follow_links: bool = False,
) -> tuple[Listing, Listing, list[str]]:
    """Choose the classes drawn and those in reserve: ids and all their file names, in draw order.

    The third are the files and classes left out: "PATH: why". Nothing is opened. The order of
    classes depends on the seed and the sorted ids, that of a class's files on the seed, its id and
    its sorted file names: fewer images are the first of more.

    Raises:
        UserError: a folder that can't be used, or more asked for than there is.
    """
    check_class_size(per_class)
    listing, left_out = list_classes(root, follow_links)
    least = len(SPLITS) if allow_fewer else per_class
    class_ids = _shuffled(list(listing), seed, "")
    order = [class_id for class_id in class_ids if len(listing[class_id]) >= least]
    wanted = min(CLASSES, len(order)) if classes is None else classes
    if not 2 <= wanted <= len(order):
        counts = [len(names) for names in listing.values()]
        raise UserError(
            f"--classes {'all' if classes is None else classes}: {len(order)} of the"
            f" {len(listing)} classes in {root} have {least} or more images"
            f" ({min(counts):,} to {max(counts):,} a class); take at least 2 classes and no more"
            " than there are, lower --per-class or add --allow-fewer"
        )
    # Popped, so that the sorted names and the shuffled ones are not both kept of all classes.
    queues = {class_id: _shuffled(listing.pop(class_id), seed, class_id) for class_id in order}
    drawn = {class_id: queues[class_id] for class_id in order[:wanted]}
    left_out += (f"{name}: {len(images)} images, not {least}" for name, images in listing.items())
    return drawn, {class_id: queues[class_id] for class_id in order[wanted:]}, left_out


def _shuffled(names: list[str], seed: int, class_id: str) -> list[str]:
    digest = hashlib.sha256(f"{seed} ".encode() + os.fsencode(class_id)).digest()
    order = np.random.default_rng(int.from_bytes(digest)).permutation(len(names))
    return [names[place] for place in order.tolist()]


def _rows(
    root: Path, images: dict[str, list[_Verified]], split: tuple[float, float, float]
) -> list[Row]:
    """Sorted rows; the first images of a class are train's, the next val's, the last test's."""
    names, rows = class_names(root, images), []
    for class_id in sort_names(images):
        sizes = split_sizes(len(images[class_id]), split)
        seats = [name for name, size in zip(SPLITS, sizes, strict=True) for _ in range(size)]
        class_rows = [
            Row(path, class_id, names[class_id], seat, *about)
            for (path, *about), seat in zip(images[class_id], seats, strict=True)
        ]
        rows += sorted(class_rows, key=lambda row: os.fsencode(row.path))
    return rows


# ----------------------------------------------------------------------------------------- verify


def _take_images(
    root: Path, drawn: Listing, reserve: Listing, per_class: int, least: int
) -> tuple[dict[str, list[_Verified]], list[str], list[str]]:
    """The verified images of each class, in draw order; why files and classes are left out.

    A class has `per_class` seats. In each round every empty seat gets the next file of its class,
    and all of the round are verified at once.
    """
    queues = {class_id: iter(names) for class_id, names in {**drawn, **reserve}.items()}
    seats: dict[str, list[_Verified | None]] = {name: [None] * per_class for name in drawn}
    spare, taken, quarantined, given_up = iter(reserve), {}, [], []  # taken: paths by SHA-256
    while short := [class_id for class_id, images in seats.items() if None in images]:
        calls = [call for name in short for call in _next_files(name, seats[name], queues[name])]
        verdicts = _verify(root, [path for _, _, path in calls])
        for (class_id, place, path), verdict in zip(calls, verdicts, strict=True):
            if isinstance(verdict, str):
                quarantined.append(f"{path}: {verdict}")
            elif verdict.sha256 in taken:
                quarantined.append(f"{path}: duplicate of {taken[verdict.sha256]}")
            else:
                taken[verdict.sha256] = path
                seats[class_id][place] = verdict
        if calls:
            continue
        for class_id in short:  # there are no more files of these
            good = [image for image in seats[class_id] if image is not None]
            if len(good) >= least:
                seats[class_id] = good
                continue
            given_up.append(f"{class_id}: {len(good)} good images, not {least}")
            del seats[class_id]
            for image in good:  # it no longer stands in the way of its duplicates
                del taken[image.sha256]
            replacement = next(spare, None)
            if replacement is not None:
                seats[replacement] = [None] * per_class
    return seats, quarantined, given_up


def _next_files(
    class_id: str, seats: list[_Verified | None], queue: Iterator[str]
) -> Iterator[tuple[str, int, str]]:
    """(class id, seat, path) for each empty seat of a class, as long as it has files."""
    empty = [place for place, image in enumerate(seats) if image is None]
    for place, name in zip(empty, queue, strict=False):
        yield class_id, place, f"{class_id}/{name}"


def _verify(root: Path, paths: list[str]) -> Iterator[_Verified | str]:
    with readable():
        yield from in_parallel(partial(_verify_file, root), paths, "verifying")


def _verify_file(root: Path, path: str) -> _Verified | str:
    """What a file is, or the reason why packing could not decode it.

    What keeps a file from being read is no fault of the image and stays an OSError.
    """
    file = root / path
    size_bytes, sha256 = _digest(file)
    try:
        load_image(file)
        with open_image(file) as image:
            return _Verified(path, *image.size, size_bytes, sha256)
    except UserError as error:
        return str(error).removeprefix(printable(f"{file}: "))


def _digest(file: Path) -> tuple[int, str]:
    """(size in bytes, SHA-256)."""
    content = file.read_bytes()
    return len(content), hashlib.sha256(content).hexdigest()


# ------------------------------------------------------------------------------------------- read


def read(path: Path, root: Path, follow_links: bool = False) -> Manifest:
    """The data set of a file of `Manifest.csv_bytes`, every image file of it checked.

    Raises:
        UserError: not such a manifest, or not as it was written; a file in `root` that is missing,
            that has changed, or without `follow_links` that a link leads out to.
    """
    rows, bad = _parse(path), []
    check = partial(_check_file, root, follow_links)
    with readable():
        digests = in_parallel(check, [row.path for row in rows], "checking")
        for row, digest in zip(rows, digests, strict=True):
            if digest != (row.bytes, row.sha256):
                bad.append(f"{root / row.path}: {'changed' if digest else 'missing'}")
    if bad:
        raise UserError(
            f"{bad[0]} since {path} was written ({len(bad):,} such of {len(rows):,} images);"
            " restore it, or draw the data set anew"
        )
    return Manifest(root, rows, [], [])


def _check_file(root: Path, follow_links: bool, path: str) -> tuple[int, str] | None:
    file = root / path
    if not file.is_file():  # a pipe would not end
        return None
    if not follow_links and leads_out(file, root):
        raise UserError(
            f"{file}: a symbolic link leads out of {root}; remove it, or add --follow-links"
        )
    return _digest(file)


def _parse(path: Path) -> list[Row]:
    with readable():
        text = io.StringIO(files.load(path).decode(*ENCODING), newline="")
    reader, rows, seen = csv.reader(text), [], {}
    try:
        if next(reader, None) != COLUMNS:
            raise ValueError(f"its columns are not {','.join(COLUMNS)}")
        for line in reader:
            row = _row(line)
            for key in (row.path, row.sha256):  # so that no image is in two splits
                if key in seen:
                    raise ValueError(f"{row.path} has the path or SHA-256 of {seen[key]} above")
                seen[key] = row.path
            rows.append(row)
        _check_splits(rows)
    except (ValueError, csv.Error) as error:
        raise UserError(
            f"{path}: not a manifest of this project: line {reader.line_num}: {error}; restore it,"
            " or draw the data set anew"
        ) from None
    return rows


def _row(line: list[str]) -> Row:
    if len(line) != len(COLUMNS):
        raise ValueError(f"{len(line)} columns, not {len(COLUMNS)}")
    path, class_id, class_name, split, width, height, size_bytes, sha256 = line
    folder, _, name = path.partition("/")
    no_name = "/" in name or "\0" in name or {folder, name}.intersection(("", ".", ".."))
    if folder != class_id or no_name:
        raise ValueError(f"path {path!r} does not lie in the folder of its class")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}")
    about = (int(width), int(height), int(size_bytes), sha256)
    return Row(path, class_id, class_name, split, *about)


def _check_splits(rows: list[Row]) -> None:
    """Raise where there are fewer than two classes, or a class has no image in a split."""
    places = {(row.class_id, row.split) for row in rows}
    class_ids = sort_names({class_id for class_id, _ in places})
    if len(class_ids) < 2:
        raise ValueError(f"{len(class_ids)} class(es), not two or more")
    for class_id, split in product(class_ids, SPLITS):
        if (class_id, split) not in places:
            raise ValueError(f"no {split} images of {class_id}")
