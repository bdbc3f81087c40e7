import hashlib

import numpy as np
import pytest
from PIL import Image

from common.data import flowers
from common.data.flowers import NUM_CLASSES, SPLITS, class_names, draw_flower
from common.data.images import centre_crop

RED, YELLOW = 1, 3  # poppy, buttercup


@pytest.mark.parametrize(
    ("key", "short_side_px", "digest"),
    [((0, "train", 0), 64, "31f2cbe2d89dbe53"), ((7, "test", 101), None, "ce990cc5a88a29b0")],
)
def test_pictures_are_the_same_on_every_machine(key, short_side_px, digest):
    flower = draw_flower(*key, short_side_px=short_side_px)
    pixels = flower.image.tobytes() + flower.mask.tobytes()
    assert hashlib.sha256(pixels).hexdigest()[:16] == digest


def test_seed_split_and_index_all_change_the_picture():
    keys = [(0, "train", 0), (1, "train", 0), (0, "val", 0), (0, "test", 0), (0, "train", 10)]
    pictures = [draw_flower(*key, 10, 32) for key in keys]
    assert {flower.label for flower in pictures} == {0}
    assert len({flower.image.tobytes() for flower in pictures}) == len(keys)
    assert len({flower.mask.tobytes() for flower in pictures}) == len(keys)


@pytest.mark.parametrize("seed", range(3))
def test_a_species_has_its_colour_in_every_seed(seed):
    for index in (RED, YELLOW):
        flower = draw_flower(seed, "train", index, 10, 64)
        red, green, blue = np.median(flower.image[flower.mask].astype(int), axis=0)
        assert (red > 2 * green) == (index == RED)
        assert (green > 1.5 * blue) == (index == YELLOW)


def test_few_classes_are_the_first_of_many():
    assert class_names(10) == class_names()[:10]
    for index in range(10):
        few, many = (draw_flower(0, "train", index, n, 32) for n in (10, NUM_CLASSES))
        np.testing.assert_array_equal(few.image, many.image)


def test_the_first_ten_classes_share_no_colour_and_no_form():
    colours, forms = zip(*(name.split() for name in class_names(10)), strict=True)
    assert len(set(colours)) == len(set(forms)) == 10


def test_masks_cover_a_part_of_the_picture():
    for index in range(0, NUM_CLASSES, 3):
        flower = draw_flower(0, "test", index, short_side_px=32)
        assert flower.image.dtype == np.uint8
        assert flower.mask.dtype == bool
        assert flower.image.shape == (*flower.mask.shape, 3)
        assert 0.03 < flower.mask.mean() < 0.7, index


def test_flowers_stand_beside_the_centre_and_inside_the_central_square():
    masks = [draw_flower(0, "test", index, 10, 32).mask for index in range(80)]
    squares = [centre_crop(mask, 32, 32) for mask in masks]
    assert np.mean([square[16, 16] for square in squares]) < 0.55
    inside = [square.sum() / mask.sum() for square, mask in zip(squares, masks, strict=True)]
    assert min(inside) > 0.7
    assert np.mean(inside) > 0.95


def test_folders_hold_what_was_drawn(run, tmp_path):
    folder = tmp_path / "flowers"
    flags = ("--classes", 3, "--images-per-class", 2, "--short-side", 32, "--seed", 5)
    code, out, _ = run(flowers, "--out", folder, *flags)
    assert code == 0
    assert str(folder) in out
    for split in SPLITS:
        assert len(list(folder.glob(f"{split}/*/*.png"))) == 3 * 2
    flower = draw_flower(5, "test", 1 * 3 + 2, 3, 32)
    place = "test/002_orange_lily/00001.png"
    np.testing.assert_array_equal(np.array(Image.open(folder / place)), flower.image)
    np.testing.assert_array_equal(np.array(Image.open(folder / "masks" / place)), flower.mask)


def test_the_command_line_refuses_in_one_line(fails, tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    assert "not an empty folder" in fails(flowers, "--out", tmp_path)
    assert "mine.txt" in fails(flowers, "--out", tmp_path / "mine.txt")
    assert "'103' is not" in fails(flowers, "--out", tmp_path / "new", "--classes", 103)
    assert "'8' is not" in fails(flowers, "--out", tmp_path / "new", "--short-side", 8)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
