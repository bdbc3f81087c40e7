import shutil

import pytest

from common.data import manifest
from tests.data.conftest import SPLIT, draw, fails


@pytest.mark.usefixtures("root")
def test_folders_of_no_use_end_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    fails(r"empty: 0 class folder\(s\)", tmp_path / "empty")
    (tmp_path / "val").mkdir()
    fails(r"images/a: a folder inside a class folder", tmp_path)


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
    assert "stray.png: a file among the class folders" in draw(root).left_out


def test_one_may_work_in_the_datas_own_folder(root):
    before = draw(root)
    for name in ("problem3", "outputs/problem3"):
        (root / name).mkdir(parents=True)
        assert manifest.draw(root, 3, 8, SPLIT, 0, False, written=[root / name]) == before
        shutil.rmtree(root / name.split("/")[0])


def test_links_are_followed(root, tmp_path):
    before = draw(root)
    (tmp_path / "link").symlink_to(root)  # the data folder itself may be one
    assert draw(tmp_path / "link").rows == before.rows
    shutil.move(root / "b", tmp_path / "elsewhere")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    shutil.move(root / "a" / "a 0.png", tmp_path / "outside.png")
    (root / "a" / "a 0.png").symlink_to(tmp_path / "outside.png")
    assert draw(root) == before


def test_class_names(root):
    assert manifest.class_names(root, ["b", "a", "z"]) == {"b": "bee", "a": "ant, emmet", "z": "z"}
    (root / "LOC_synset_mapping.txt").write_text("a army ant, driver\nz zebra\n")
    names = manifest.class_names(root, ["a", "b", "z"])
    assert names == {"a": "army ant, driver", "b": "bee", "z": "zebra"}  # the nearer file wins


def test_class_names_from_the_package(root):
    names = manifest.class_names(root, ["n01440764", "a", "n9"])
    assert names == {"n01440764": "tench, Tinca tinca", "a": "ant, emmet", "n9": "n9"}
