import shutil

import numpy as np
import pytest
from PIL import Image

from common.data import flowers, packed, sets
from common.data.images import load_image
from common.data.sets import DrawnSet
from common.errors import UserError
from common.reporting.results import ROOT

SHARED = ROOT.parent / "shared" / "data"


def test_class_folders_have_a_label_each_and_pictures_of_any_size(tmp_path):
    for place, size_px in (("b/1.png", (5, 4)), ("a/2.png", (3, 4)), ("a/1.png", (9, 2))):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        Image.new("RGB", size_px).save(tmp_path / place)
    source = sets.class_folders("originals", tmp_path)
    assert [source.size(index) for index in range(3)] == [(9, 2), (3, 4), (5, 4)]
    assert (source.labels.tolist(), source.class_names) == ([0, 0, 1], ["a", "b"])
    assert (source.only([2]).files, source.only([2]).labels) == (source.files[2:], [1])


# ----------------------------------------------------------------------------------- Flowers-102


IMAGES = [f"image_{number:05}.jpg" for number in range(1, 8190)]


@pytest.fixture
def flowers_root(tmp_path, monkeypatch):
    """A folder with Flowers-102's real label files, which seems to hold its 8,189 images."""
    if not (SHARED / "flowers-102").exists():
        pytest.skip(f"{SHARED / 'flowers-102'} is not there")
    folder = tmp_path / "root" / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    for file in ("imagelabels.mat", "setid.mat"):
        shutil.copy(SHARED / "flowers-102" / file, folder)
    monkeypatch.setattr("os.listdir", lambda _: IMAGES)
    return folder.parent


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network in tests")

    monkeypatch.setattr("torchvision.datasets.flowers102.download_and_extract_archive", refuse)
    monkeypatch.setattr("torchvision.datasets.flowers102.download_url", refuse)


def test_official_splits(flowers_root):
    splits = sets.flowers102(flowers_root)
    sizes = {split: len(files.files) for split, files in splits.items()}
    assert sizes == {"train": 1020, "val": 1020, "test": 6149}
    everything = [path.name for split in splits.values() for path in split.files]
    assert len(set(everything)) == 8189
    assert all(
        np.bincount(splits[split].labels).tolist() == [10] * 102 for split in ("train", "val")
    )
    assert sets.flowers102(flowers_root / "flowers-102")["val"].files == splits["val"].files
    assert splits["train"].class_names[:2] == ["pink primrose", "hard-leaved pocket orchid"]


@pytest.mark.usefixtures("offline")
def test_no_data_and_no_network(tmp_path):
    with pytest.raises(UserError) as caught:
        sets.flowers102(tmp_path)
    message = str(caught.value)
    for word in ("102flowers.tgz", "imagelabels.mat", "setid.mat", "--data synthetic"):
        assert word in message
    assert str(tmp_path / "flowers-102") in message
    assert "\n" not in message


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("file", ["imagelabels.mat", "setid.mat"])
def test_a_label_file_with_another_md5_is_refused_and_kept(flowers_root, file):
    path = flowers_root / "flowers-102" / file
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(UserError, match=file):
        sets.flowers102(flowers_root)
    assert path.read_bytes() == whole[:-20]


def test_missing_flowers_are_counted_before_any_work(flowers_root, monkeypatch):
    monkeypatch.setattr("os.listdir", lambda _: IMAGES[:-9])
    with pytest.raises(UserError, match=r"jpg: 9 images are missing, the first image_08181.jpg"):
        sets.flowers102(flowers_root)


# -------------------------------------------------------------------------------- embedded flowers


def test_drawn_splits_are_balanced_and_packed_alike(tmp_path):
    drawn = DrawnSet("train", 8, 4, seed=1)
    assert np.bincount(drawn.labels).tolist() == [2] * 4
    images = packed.pack(drawn, 28, tmp_path / "cache", skip_bad=False)
    assert images.images.shape == (8, 32, 32, 3)
    assert [drawn.flower(i, 32).label for i in range(8)] == images.labels.tolist()
    assert drawn.fingerprint() != DrawnSet("train", 8, 4, seed=2).fingerprint()
    assert drawn.size(0) == drawn.picture(0).shape[1::-1]


def test_embedded_folders_hold_the_flowers_of_the_train_split(tmp_path):
    folder = sets.embedded_folders(tmp_path / "cache", 3, 2, 20, seed=4)
    assert folder.name == "train"
    names = sorted(path.name for path in folder.iterdir())
    assert [name[:4] for name in names] == ["000_", "001_", "002_"]
    flower = DrawnSet("train", 6, 3, seed=4).picture(5, 20)
    assert min(flower.shape[:2]) == 20
    assert np.array_equal(load_image(folder / names[2] / "00001.png"), flower)
    assert not list(folder.parent.glob("val"))


def test_embedded_folders_are_written_once_and_are_others_by_their_numbers(tmp_path, monkeypatch):
    cache, written = tmp_path / "cache", []

    def write_folders(folder, *about):
        written.append(about)
        (folder / "train").mkdir()

    monkeypatch.setattr(flowers, "write_folders", write_folders)
    numbers = [(3, 2, 20, 4), (4, 2, 20, 4), (3, 1, 20, 4), (3, 2, 21, 4), (3, 2, 20, 5)]
    folders = {sets.embedded_folders(cache, *about) for about in [*numbers, *numbers]}
    assert len(folders) == 5
    assert written == [(*about, ("train",)) for about in numbers]
    monkeypatch.setattr(flowers, "__file__", __file__)  # other code would draw other flowers
    assert sets.embedded_folders(cache, *numbers[0]) not in folders
