import hashlib
import multiprocessing
import os
import resource
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import picture
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize, to_pil_image

from common import cli, data
from common.cli import UserError

CPU = torch.device("cpu")
SHARED = cli.ROOT.parent / "shared" / "data"


@pytest.fixture
def source(tmp_path):
    """Seven PNG files of three classes, of varying size."""
    folder = tmp_path / "originals"
    folder.mkdir()
    files = [folder / f"{seed}.png" for seed in range(7)]
    for seed, path in enumerate(files):
        Image.fromarray(picture(seed, 40 + seed, 33 + 2 * seed)).save(path)
    return data.FileSet("toys train", files, [0, 1, 2, 0, 1, 2, 0], ["rose", "lily", "iris"])


def pack(source, tmp_path, skip_bad=False, size=28):
    return data.pack(source, size, tmp_path / "cache", skip_bad)


def folders(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").iterdir() if path.is_dir())


def test_packed_images_are_the_scaled_central_squares(source, tmp_path):
    packed = pack(source, tmp_path)
    assert packed.images.shape == (7, 32, 32, 3)
    assert packed.images.dtype == np.uint8
    assert isinstance(packed.images, np.memmap)
    assert packed.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    for row, path in enumerate(source.files):
        image = torch.from_numpy(data.load_image(path)).permute(2, 0, 1)
        # torchvision's own way to Pillow: the same size and filter, and no reducing in between.
        scaled = resize(to_pil_image(image), 32, InterpolationMode.BICUBIC)
        left, top = (scaled.width - 32) // 2, (scaled.height - 32) // 2
        wanted = scaled.crop((left, top, left + 32, top + 32))
        assert np.array_equal(packed.images[row], np.array(wanted)), path


def test_a_batch_is_an_index_into_the_array(source, tmp_path):
    packed = pack(source, tmp_path)
    images, labels = packed.batch(torch.tensor([5, 0, 5]), CPU)
    assert images.shape == (3, 3, 32, 32)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images[0], images[2])
    assert np.array_equal(images[1].permute(1, 2, 0).numpy(), packed.images[0])
    assert labels.tolist() == [2, 0, 2]


def test_the_second_use_decodes_nothing(source, tmp_path, monkeypatch):
    first = pack(source, tmp_path)
    monkeypatch.setattr(data, "_squares", None)
    assert np.array_equal(pack(source, tmp_path).images, first.images)


def test_the_key_is_the_data_set_the_size_and_the_file_list(source, tmp_path):
    pack(source, tmp_path)
    pack(source, tmp_path, size=21)
    fewer = data.FileSet("toys train", source.files[:5], [0, 1, 2, 0, 1], source.class_names)
    assert len(pack(fewer, tmp_path)) == 5
    assert len(folders(tmp_path)) == 3
    Image.fromarray(picture(99)).save(source.files[0])
    assert not np.array_equal(pack(source, tmp_path).images[0], pack(fewer, tmp_path).images[1])
    assert len(folders(tmp_path)) == 5  # the changed file is in both lists


def test_a_cache_that_a_killed_run_left_is_not_taken_for_a_whole_one(source, tmp_path):
    def die_half_way(*_):
        yield np.zeros((32, 32, 3), np.uint8)
        os._exit(9)

    def child():
        data._squares = die_half_way
        pack(source, tmp_path)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 9
    assert [name[:9] for name in folders(tmp_path)] == [".partial-"]
    assert pack(source, tmp_path).images[6].any()
    assert [name[:5] for name in folders(tmp_path)] == ["toys-"]


def test_a_full_disk_ends_in_one_line_with_nothing_left_behind(source, tmp_path):
    def child(pipe):
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
        try:
            pack(source, tmp_path)
        except UserError as error:
            pipe.send(str(error))

    parent_end, child_end = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=child, args=(child_end,))
    process.start()
    process.join()
    message = parent_end.recv()
    assert "File too large while packing toys train" in message
    assert "choose another --cache" in message
    assert folders(tmp_path) == []
    assert len(pack(source, tmp_path)) == 7


def test_a_corrupt_image_is_named_and_left_out_only_on_request(source, tmp_path, capsys):
    source.files[3].write_bytes(source.files[3].read_bytes()[:200])
    with pytest.raises(UserError, match=r"3.png: damaged image .* --skip-bad"):
        pack(source, tmp_path)
    assert folders(tmp_path) == []
    packed = pack(source, tmp_path, skip_bad=True)
    assert "toys train: 1 bad image(s) left out" in capsys.readouterr().out
    assert packed.rows.tolist() == [0, 1, 2, 4, 5, 6]
    assert packed.labels.tolist() == [0, 1, 2, 1, 2, 0]
    assert len(packed.images) == 6
    with pytest.raises(UserError, match=r"3.png"):  # the cache that left it out is there by now
        pack(source, tmp_path)


def test_a_missing_image_is_named(source, tmp_path):
    source.files[2].unlink()
    with pytest.raises(UserError, match=r"2.png: no such file"):
        pack(source, tmp_path)


def test_a_damaged_cache_is_named(source, tmp_path):
    pack(source, tmp_path)
    array = tmp_path / "cache" / folders(tmp_path)[0] / "images.npy"
    array.write_bytes(array.read_bytes()[:500])
    with pytest.raises(UserError, match=r"damaged cache .* delete it and run again"):
        pack(source, tmp_path)


def test_jpegs_are_decoded_at_a_fraction_and_turned_upright(tmp_path):
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    Image.fromarray(picture(1, 800, 400)).save(turned, exif=exif, quality=95)
    small = data.load_image(turned, 64)
    assert small.shape == (128, 64, 3)
    whole = Image.fromarray(data.load_image(turned)).resize((64, 128), Image.Resampling.BICUBIC)
    assert np.abs(small.astype(int) - np.array(whole)).mean() < 2


# ----------------------------------------------------------------------------------- Flowers-102


@pytest.fixture
def flowers_root(tmp_path):
    """Flowers-102's real label files, without images."""
    if not (SHARED / "flowers-102").exists():
        pytest.skip(f"{SHARED / 'flowers-102'} is not there")
    folder = tmp_path / "root" / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    for file in data.FLOWERS_LABELS:
        shutil.copy(SHARED / "flowers-102" / file, folder)
    return folder.parent


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network in tests")

    monkeypatch.setattr("torchvision.datasets.flowers102.download_and_extract_archive", refuse)
    monkeypatch.setattr("torchvision.datasets.flowers102.download_url", refuse)


def test_official_splits(flowers_root):
    splits = data.flowers102(flowers_root)
    assert {split: len(one.files) for split, one in splits.items()} == data.FLOWERS_SIZES
    everything = [path.name for one in splits.values() for path in one.files]
    assert len(set(everything)) == 8189
    assert all(
        np.bincount(splits[split].labels).tolist() == [10] * 102 for split in ("train", "val")
    )
    assert splits["train"].class_names[:2] == ["pink primrose", "hard-leaved pocket orchid"]


@pytest.mark.usefixtures("offline")
def test_no_data_and_no_network(tmp_path):
    with pytest.raises(UserError) as caught:
        data.flowers102(tmp_path)
    message = str(caught.value)
    for word in ("102flowers.tgz", "imagelabels.mat", "setid.mat", "--data synthetic"):
        assert word in message
    assert str(tmp_path / "flowers-102") in message
    assert "\n" not in message


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("file", ["imagelabels.mat", "setid.mat"])
def test_a_label_file_with_another_md5_is_refused_and_kept(flowers_root, file):
    path = flowers_root / "flowers-102" / file
    path.write_bytes(path.read_bytes()[:-20])
    before = path.read_bytes()
    with pytest.raises(UserError, match=f"{file}: its MD5 is not .* refused"):
        data.flowers102(flowers_root)
    assert path.read_bytes() == before


def test_a_missing_flower_is_named(flowers_root, tmp_path):
    train = data.flowers102(flowers_root)["train"]
    with pytest.raises(UserError, match=r"image_\d{5}.jpg: no such file"):
        data.pack(train, 32, tmp_path / "cache", skip_bad=False)


def test_resolutions_of_original_flowers_are_exact():
    folder = SHARED / "flowers-originals"
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    files = sorted(folder.rglob("*.jpg"))
    originals = data.FileSet("originals", files, [0] * len(files), ["flower"])
    found = Counter(originals.size(index) for index in range(len(files)))
    wanted = Counter(data.load_image(path).shape[1::-1] for path in files)
    assert found == wanted
    assert found.total() == 190


# -------------------------------------------------------------------------------- embedded flowers


def test_drawn_splits_are_balanced_and_packed_alike(tmp_path):
    drawn = data.DrawnSet("train", 8, 4, seed=1)
    assert np.bincount(drawn.labels).tolist() == [2] * 4
    packed = data.pack(drawn, 28, tmp_path / "cache", skip_bad=False)
    assert packed.images.shape == (8, 32, 32, 3)
    assert [drawn.flower(i, 32).label for i in range(8)] == packed.labels.tolist()
    assert (
        hashlib.sha256(drawn.fingerprint().encode()).hexdigest()
        != hashlib.sha256(data.DrawnSet("train", 8, 4, seed=2).fingerprint().encode()).hexdigest()
    )
    assert drawn.size(0) == drawn.picture(0).shape[1::-1]


def test_files_are_absolute_or_relative_alike(source):
    moved = [Path(os.path.relpath(path)) for path in source.files]
    other = data.FileSet("toys train", moved, source.labels.tolist(), source.class_names)
    assert other.fingerprint() == source.fingerprint()
