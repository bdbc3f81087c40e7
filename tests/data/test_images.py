import numpy as np
import pytest
import torch
from PIL import Image

import problem1_perceptual as p1
from common.data import images
from tests.conftest import picture


def test_embedded_photos_are_real_colour_photos():
    photos = images.embedded_photos()
    assert list(photos) == sorted(images.EMBEDDED_PHOTOS)
    for name, image in photos.items():
        assert image.dtype == np.uint8
        assert image.shape[2] == 3, name
        assert image.std(axis=2).mean() > 2, name  # the channels differ: not a grey picture


def test_uint8_to_tensor_and_back():
    image = picture(0)
    tensor = images.to_tensor(image)
    assert tensor.shape == (3, 40, 48)
    assert tensor.min() >= 0
    assert tensor.max() <= 1
    np.testing.assert_array_equal(images.to_uint8(tensor), image)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr"])
def test_any_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / "image.tif"
    image = Image.fromarray(picture(0)).convert(mode)
    image.save(path)
    np.testing.assert_array_equal(images.load_image(path), np.array(image.convert("RGB")))


def test_alpha_is_laid_over_white(tmp_path):
    pixels = np.zeros((12, 12, 4), np.uint8)
    pixels[:, :6] = (200, 0, 0, 255)
    pixels[:, 6:] = (200, 0, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "rgba.png")
    Image.fromarray(pixels).convert("LA").save(tmp_path / "la.png")
    loaded = images.load_image(tmp_path / "rgba.png")
    assert (loaded[:, :6] == (200, 0, 0)).all()
    assert (loaded[:, 6:] == 255).all()
    assert (images.load_image(tmp_path / "la.png")[:, 6:] == 255).all()


def test_a_transparent_palette_colour_is_laid_over_white(tmp_path):
    image = Image.new("P", (12, 12), 0)
    image.putpalette([10, 20, 30] + [0] * 765)
    image.save(tmp_path / "p.gif", transparency=0)
    assert (images.load_image(tmp_path / "p.gif") == 255).all()


@pytest.mark.parametrize(("dtype", "scale"), [(np.uint8, 1), (np.uint16, 257)])
def test_the_transparent_value_of_grey_is_white(tmp_path, dtype, scale):
    grey = Image.fromarray(np.array([[0, 60, 254]], dtype) * scale)
    grey.save(tmp_path / "t.png", transparency=60 * scale)
    assert images.load_image(tmp_path / "t.png")[0, :, 0].tolist() == [0, 255, 254]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "tif"])
def test_every_orientation_is_turned_upright(tmp_path, orientation, ending):
    pixels = np.repeat(np.repeat(picture(0, 6, 4), 16, axis=0), 16, axis=1)
    turned = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: np.rot90(pixels, k=-1),
        7: np.rot90(pixels, k=2).swapaxes(0, 1),
        8: np.rot90(pixels),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{ending}"
    options = {"quality": 100, "subsampling": 0} if ending == "jpg" else {"lossless": True}
    Image.fromarray(pixels).save(path, exif=exif, **options)
    loaded = images.load_image(path)
    assert loaded.shape == turned.shape
    assert np.abs(loaded.astype(int) - turned).max() <= (4 if ending == "jpg" else 0)


def test_fit_to_covers_and_cuts_the_centre():
    stripes = np.zeros((40, 100, 3), np.uint8)
    stripes[:, 30:70] = 255
    assert images.fit_to(stripes, 40, 40).shape == (40, 40, 3)
    assert (images.fit_to(stripes, 40, 40) == 255).all()
    assert images.fit_to(stripes, 30, 90).shape == (90, 30, 3)


def test_centre_crop():
    image = torch.arange(5 * 7).view(1, 5, 7)
    assert torch.equal(images.centre_crop(image, 3, 1), image[:, 2:3, 2:5])
    assert torch.equal(images.centre_crop(image, 99, 99), image)


def test_bad_images_end_in_one_line(fails, tmp_path):
    out = ("--out", tmp_path / "out")
    assert "no such file" in fails(p1, "1.1", "--image", tmp_path / "none.png", *out)
    assert "no such folder" in fails(p1, "1.1", "--images", tmp_path / "none", *out)
    (tmp_path / "text.jpg").write_text("no image")
    assert "not an image" in fails(p1, "1.1", "--image", tmp_path / "text.jpg", *out)


def test_a_picture_saved_again_is_left_out_whatever_its_format(tmp_path):
    for seed in range(3):
        for ending in ("bmp", "jpg", "png"):
            Image.fromarray(picture(seed, 90, 80)).save(tmp_path / f"{seed}.{ending}")
    loaded, sizes, left_out = images.open_folder(tmp_path)
    assert list(loaded) == list(sizes) == ["0.bmp", "1.bmp", "2.bmp"]
    assert left_out[:2] == [f"0.{kind}: the same picture as 0.bmp" for kind in ("jpg", "png")]
    assert len(left_out) == 6


def test_a_folder_is_read_picture_by_picture(class_folders, monkeypatch):
    pictures, sizes, left_out = images.open_folder(class_folders)
    assert len(pictures) == 3 * 7
    assert list(pictures)[:2] == ["n01440764/0.png", "n01440764/1.png"]
    assert set(sizes.values()) == {(48, 40)}
    assert left_out == []
    read = []
    load_image = images.load_image
    monkeypatch.setattr(images, "load_image", lambda path: read.append(path) or load_image(path))
    np.testing.assert_array_equal(pictures["odd/3.png"], picture(23))
    assert read == [class_folders / "odd" / "3.png"]


def test_a_draw_of_a_folder_is_seeded_and_in_order(class_folders):
    (class_folders / "odd" / "0.png").write_text("no image")
    draws = [list(images.open_folder(class_folders, 20, seed)[0]) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] == draws[2] == sorted(draws[0])
    few = [list(images.open_folder(class_folders, 6, seed)[0]) for seed in (1, 1, 2)]
    assert few[0] == few[1] == sorted(few[0])
    assert few[0] != few[2]
    assert len(few[2]) == 6


def test_a_folder_without_images_is_refused(fails, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    assert "(no images)" in fails(p1, "1.1", "--images", folder, "--out", tmp_path)
    (folder / "notes.txt").write_text("no image")
    (folder / "bad.png").write_text("no image")
    error = fails(p1, "1.1", "--images", folder, "--out", tmp_path)
    assert "no readable image (2 left out; first: bad.png: " in error
