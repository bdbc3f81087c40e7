import shutil
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize, to_pil_image

from common.data import packed as packing
from common.data.decoding import load_image, load_square
from common.data.packed import WINDOW, in_parallel
from common.data.sets import FileSet
from common.errors import UserError
from tests.conftest import picture

CPU = torch.device("cpu")


def pack(source, tmp_path, skip_bad=False, size=28):
    return packing.pack(source, size, tmp_path / "cache", skip_bad)


def folders(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").iterdir() if path.is_dir())


def test_packed_images_are_the_scaled_central_squares(source, tmp_path):
    packed = pack(source, tmp_path)
    assert packed.images.shape == (7, 32, 32, 3)
    assert packed.images.dtype == np.uint8
    assert isinstance(packed.images, np.memmap)
    assert packed.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    for row, path in enumerate(source.files):
        image = torch.from_numpy(load_image(path)).permute(2, 0, 1)
        # torchvision's own call of Pillow: the same size and filter, without reducing first.
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
    monkeypatch.setattr(packing, "in_parallel", None)
    assert np.array_equal(pack(source, tmp_path).images, first.images)


def test_the_key_is_the_data_set_the_size_and_the_file_list(source, tmp_path):
    pack(source, tmp_path)
    pack(source, tmp_path, size=21)
    fewer = FileSet("toys train", source.files[:5], [0, 1, 2, 0, 1], source.class_names)
    assert len(pack(fewer, tmp_path)) == 5
    assert len(folders(tmp_path)) == 3
    Image.fromarray(picture(99)).save(source.files[0])
    assert not np.array_equal(pack(source, tmp_path).images[0], pack(fewer, tmp_path).images[1])
    assert len(folders(tmp_path)) == 5  # the changed file is in both lists


def test_a_corrupt_image_is_named_and_left_out_only_on_request(source, tmp_path, capsys):
    source.files[3].write_bytes(source.files[3].read_bytes()[:200])
    with pytest.raises(UserError, match=r"3.png: damaged image .* --skip-bad"):
        pack(source, tmp_path)
    assert folders(tmp_path) == []
    packed = pack(source, tmp_path, skip_bad=True)
    told = capsys.readouterr().err
    assert str(source.files[3]) in told
    assert told.count("\n") == 1
    assert len(packed.left_out) == 1
    assert packed.rows.tolist() == [0, 1, 2, 4, 5, 6]
    assert packed.labels.tolist() == [0, 1, 2, 1, 2, 0]
    assert len(packed.images) == 6
    with pytest.raises(UserError, match=r"3.png"):  # though a cache without it exists
        pack(source, tmp_path)


def test_jpegs_are_decoded_at_a_fraction_and_turned_upright(tmp_path):
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    Image.fromarray(picture(1, 800, 400)).save(turned, exif=exif, quality=95)
    small = load_square(turned, 64)
    assert small.shape == (64, 64, 3)
    whole = Image.fromarray(load_image(turned)).resize((64, 128), Image.Resampling.BICUBIC)
    assert np.abs(small.astype(int) - np.array(whole)[32:96]).mean() < 2


@pytest.mark.parametrize(("width", "height"), [(700, 90), (91, 333), (640, 480), (65, 64)])
def test_a_square_is_that_of_the_scaled_picture(tmp_path, width, height):
    Image.fromarray(picture(5, width, height)).save(tmp_path / "picture.png")
    image = Image.fromarray(picture(5, width, height))
    size = [64 * side // min(image.size) for side in image.size]
    scaled = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3)
    left, top = (size[0] - 64) // 2, (size[1] - 64) // 2
    wanted = np.array(scaled.crop((left, top, left + 64, top + 64))).astype(int)
    assert np.abs(load_square(tmp_path / "picture.png", 64) - wanted).max() <= 2


# ------------------------------------------------------------------------------- a damaged cache


@pytest.mark.parametrize("name", ["images.npy", "about.json"])
def test_a_damaged_cache_is_named(source, tmp_path, name):
    pack(source, tmp_path)
    folder = tmp_path / "cache" / folders(tmp_path)[0]
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=str(folder)):
        pack(source, tmp_path)
    shutil.rmtree(folder)
    assert len(pack(source, tmp_path)) == 7


def test_small_pictures_are_packed_as_they_are(tmp_path):
    files = []
    for seed in range(3):
        files.append(tmp_path / f"{seed}.png")
        Image.fromarray(picture(seed, 28, 28)).save(files[-1])
    small = FileSet("small", files, [0, 1, 0], ["a", "b"])
    packed = pack(small, tmp_path)
    assert all(np.array_equal(packed.images[row], picture(row, 28, 28)) for row in range(3))
    assert pack(small, tmp_path, size=32).images.shape[1] == 32


# ------------------------------------------------------------------------------------------ threads


def double(number):
    if number == 13:
        raise ValueError("thirteen")
    return 2 * number


def test_results_are_in_the_order_of_the_items():
    items = [*range(12, -1, -1), *range(14, 300)]
    assert list(in_parallel(double, items, "doubling")) == [2 * number for number in items]
    assert list(in_parallel(double, [], "doubling")) == []


def test_an_error_of_the_work_is_raised_and_the_rest_given_up():
    begun, threads = [], threading.active_count()

    def work(number):
        begun.append(number)
        return double(number)

    with pytest.raises(ValueError, match="thirteen"):
        list(in_parallel(work, range(1000), "doubling"))
    assert len(begun) <= 13 + WINDOW
    assert threading.active_count() == threads


def test_ctrl_c_ends_it_without_the_items_left():
    begun, threads = [], threading.active_count()
    results = in_parallel(begun.append, range(100_000), "working")
    next(results)
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt)
    assert len(begun) <= WINDOW
    assert threading.active_count() == threads
