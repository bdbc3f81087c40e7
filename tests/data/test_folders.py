import os
import shutil

import pytest

from common.data import folders
from tests.data.conftest import draw, fails


@pytest.mark.usefixtures("root")
def test_bad_folders_end_in_one_line(tmp_path):
    fails(r"none: cannot be read \(No such file", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    fails(r"empty: 0 class folder\(s\)", tmp_path / "empty")
    (tmp_path / "empty" / "only").mkdir()
    fails(r"empty: 1 class folder\(s\)", tmp_path / "empty")
    fails(r"words.txt: cannot be read \(Not a directory", tmp_path / "words.txt")
    shutil.rmtree(tmp_path / "empty")
    (tmp_path / "val").mkdir()
    fails(r"images/[abcd]: a folder inside a class folder; give the folder that holds", tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_folder_or_file_is_named(root):
    (root / "b").chmod(0)
    fails(r"images/b: cannot be read \(Permission denied\)", root)
    (root / "b").chmod(0o700)
    for path in (root / "b").iterdir():
        path.chmod(0)
    fails(r"images/b/b \d+.png: cannot be read \(Permission denied\)", root, classes=4)


def test_what_the_system_refuses_is_named(root, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    fails(r"images: cannot be read \(Permission denied\)", root)


def test_files_among_the_class_folders(root):
    before = draw(root)
    names = (".DS_Store", "words.txt", "LOC_synset_mapping.txt", "a/._a 0.png", "a/.DS_Store")
    for name in (*names, "a/IMG_1.HEIC", "b/notes.txt"):
        (root / name).write_text("")
    (root / "a" / ".cache").mkdir()
    after = draw(root)
    assert after.rows == before.rows
    assert after.left_out == [
        "a/._a 0.png: hidden",
        "a/IMG_1.HEIC: no image by its ending; rename or convert it",
        "b/notes.txt: no image by its ending; rename or convert it",
    ]
    shutil.copy(root / "a" / "a 0.png", root / "stray.png")
    fails(r"images/stray.png: a file among the class folders; move it away", root)


def test_links(root, tmp_path):
    before = draw(root)
    (tmp_path / "link").symlink_to(root)  # the data folder itself may be one
    assert draw(tmp_path / "link").rows == before.rows
    shutil.move(root / "b", tmp_path / "elsewhere")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    fails(r"images/b: a symbolic link that leads out of .*images; .* add --follow-links", root)
    assert draw(root, follow_links=True) == before
    (root / "b").unlink()
    shutil.move(tmp_path / "elsewhere", root / "b")
    shutil.move(root / "a" / "a 0.png", tmp_path / "outside.png")
    (root / "a" / "a 0.png").symlink_to(tmp_path / "outside.png")
    fails(r"a 0.png: a symbolic link that leads out of .* --follow-links", root)
    assert draw(root, follow_links=True) == before
    (root / "a" / "a 0.png").unlink()
    (root / "a" / "a 0.png").symlink_to("../b/b 0.png")  # which leads nowhere else
    assert draw(root).rows
    for target in ("loop", ".", root, root.parent):
        (root / "loop").symlink_to(target)
        fails(r"images/loop: (cannot be read \(Too many levels|a symbolic link in a circle)", root)
        (root / "loop").unlink()
    (root / "a" / "up.png").symlink_to(root)
    fails(r"a/up.png: a folder inside a class folder", root)
    (root / "a" / "up.png").unlink()
    (root / "a" / "lost.png").symlink_to("nowhere")
    fails(r"a/lost.png: a link to nothing", root)


def test_class_names(root):
    assert folders.class_names(root, ["b", "a", "z"]) == {"b": "bee", "a": "ant, emmet", "z": "z"}
    (root / "LOC_synset_mapping.txt").write_text("a army ant, driver\nz zebra\n")
    names = folders.class_names(root, ["a", "b", "z"])
    assert names == {"a": "army ant, driver", "b": "bee", "z": "zebra"}  # the nearer file wins


def test_class_names_from_the_package(root):
    names = folders.class_names(root, ["n01440764", "a", "n9"])
    assert names == {"n01440764": "tench, Tinca tinca", "a": "ant, emmet", "n9": "n9"}
