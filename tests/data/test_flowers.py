import hashlib

import numpy as np
import pytest
from PIL import Image

from common import cli, synthetic
from common.synthetic import NUM_CLASSES, class_names, draw_flower, full_size


def box_scaled(pixels, like):
    """Mean over boxes, to the size of `like`."""
    size = like.shape[1::-1]
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX)).astype(int)


def test_the_same_key_gives_the_same_picture():
    for short_side_px in (48, None):
        first, again = (draw_flower(3, "val", 11, 10, short_side_px) for _ in range(2))
        np.testing.assert_array_equal(first.image, again.image)
        np.testing.assert_array_equal(first.mask, again.mask)
        assert first.label == again.label


@pytest.mark.parametrize(
    ("key", "short_side_px", "digest"),
    [
        ((0, "train", 0), 64, "32d1536035307e0030743ab8222c210b326307603f98cbc076d6dbde7729bcce"),
        (
            (7, "test", 101),
            None,
            "b9ef1dab0bcdf23a06996fb259ce40c042880edcea45fb4d5686403bbda97905",
        ),
    ],
    ids=["64 px", "full"],
)
def test_pictures_are_the_same_on_every_machine(key, short_side_px, digest):
    flower = draw_flower(*key, short_side_px=short_side_px)
    pixels = flower.image.tobytes() + flower.mask.tobytes()
    assert hashlib.sha256(pixels).hexdigest() == digest


def test_seed_split_and_index_all_change_the_picture():
    keys = [(0, "train", 0), (1, "train", 0), (0, "val", 0), (0, "test", 0), (0, "train", 10)]
    pictures = [draw_flower(*key, 10, 32) for key in keys]
    assert {flower.label for flower in pictures} == {0}
    assert len({flower.image.tobytes() for flower in pictures}) == len(keys)
    assert len({flower.mask.tobytes() for flower in pictures}) == len(keys)


def test_labels_are_balanced():
    labels = [draw_flower(0, "train", index, 7, 16).label for index in range(35)]
    assert np.bincount(labels).tolist() == [5] * 7


@pytest.mark.parametrize("seed", range(6))
def test_a_species_has_its_colour_in_every_seed(seed):
    for index, pink in ((0, False), (2, True)):  # the others are white
        flower = draw_flower(seed, "train", index, 10, 64)
        red, green, _ = np.median(flower.image[flower.mask], axis=0)
        assert (red > 1.4 * green) == pink


def test_few_classes_are_the_first_of_many():
    assert class_names(10) == class_names()[:10]
    for index in range(10):
        few, many = (draw_flower(0, "train", index, n, 32) for n in (10, NUM_CLASSES))
        np.testing.assert_array_equal(few.image, many.image)


def test_names_are_unique_and_short():
    names = class_names()
    assert len(set(names)) == NUM_CLASSES
    assert max(map(len, names)) <= 32
    assert names[0] == "5 round, white, yellow eye"


def test_masks_cover_a_part_of_the_picture():
    for index in range(NUM_CLASSES):
        flower = draw_flower(0, "test", index, short_side_px=32)
        assert flower.image.dtype == np.uint8
        assert flower.mask.dtype == bool
        assert flower.image.shape == (*flower.mask.shape, 3)
        assert 0.03 < flower.mask.mean() < 0.7, index


def test_the_mask_lies_on_the_flower():
    """Pink flowers: red exceeds green on them and not around them, in each of some pictures."""
    for index in (2, 12, 22, 3, 13, 23):
        flower = draw_flower(0, "train", index, 10, 64)
        red, green, _ = flower.image.astype(int).transpose(2, 0, 1)
        assert np.median((red - green)[flower.mask]) > 30
        assert np.median((red - green)[~flower.mask]) < 15


@pytest.mark.parametrize("index", range(4))
def test_low_resolution_resembles_the_full_picture(index):
    small, full = draw_flower(0, "val", index, 10, 64), draw_flower(0, "val", index, 10)
    assert full.image.shape[1::-1] == full_size(0, "val", index)
    assert min(full.mask.shape) == 500
    assert np.abs(box_scaled(full.image, small.image) - small.image).mean() < 8
    scaled_mask = box_scaled(full.mask.astype(np.uint8) * 255, small.mask) >= 128
    assert (scaled_mask != small.mask).mean() < 0.02


def test_sizes_vary_as_those_of_photos():
    sizes = [full_size(0, "train", index) for index in range(200)]
    assert {min(size) for size in sizes} == {500}
    portrait = np.mean([height > width for width, height in sizes])
    assert 0.15 < portrait < 0.45
    assert len(set(sizes)) >= 4


@pytest.mark.parametrize("num_classes", [0, 103])
def test_a_wrong_number_of_classes_is_refused(num_classes):
    with pytest.raises(cli.UserError, match="choose from 1 to 102"):
        draw_flower(0, "train", 0, num_classes)
    with pytest.raises(cli.UserError, match="choose from 1 to 102"):
        class_names(num_classes)


def test_wrong_keys_are_refused():
    with pytest.raises(cli.UserError, match="short side 15"):
        draw_flower(0, "train", 0, short_side_px=15)
    with pytest.raises(ValueError, match="not in tuple"):
        full_size(0, "valid", 0)
    with pytest.raises(ValueError, match="non-negative"):
        full_size(0, "train", -1)


def test_folders_hold_what_was_drawn(run, tmp_path):
    folder = tmp_path / "flowers"
    flags = ("--classes", 3, "--images-per-class", 2, "--short-side", 32, "--seed", 5)
    code, out, _ = run(synthetic, "--out", folder, *flags)
    assert code == 0
    assert str(folder) in out
    pictures = sorted(path.relative_to(folder) for path in folder.glob("t*/*/*.png"))
    assert len(pictures) == 2 * 3 * 2
    assert len(list(folder.glob("val/*/*.png"))) == 3 * 2
    flower = draw_flower(5, "test", 1 * 3 + 2, 3, 32)
    place = "test/002_5_notched_pink_yellow_eye/00001.png"
    np.testing.assert_array_equal(np.array(Image.open(folder / place)), flower.image)
    np.testing.assert_array_equal(np.array(Image.open(folder / "masks" / place)), flower.mask)


def test_the_command_line_refuses_in_one_line(fails, tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    assert "not an empty folder" in fails(synthetic, "--out", tmp_path)
    assert "not an empty folder" in fails(synthetic, "--out", tmp_path / "mine.txt")
    assert "classes 103" in fails(synthetic, "--out", tmp_path / "new", "--classes", 103)
    assert "short side 8" in fails(synthetic, "--out", tmp_path / "new", "--short-side", 8)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
