"""Seeded files that are damaged or strange are decoded correctly, or refused in one line."""

import io
import random
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, TiffImagePlugin
from tifffile import TiffWriter

import problem1_perceptual as p1
from common.data.decoding import load_image, load_square
from common.data.images import open_folder
from common.data.sets import FileSet
from common.errors import UserError
from tests.conftest import picture

pytestmark = pytest.mark.filterwarnings("ignore")  # pytest would repeat the warnings
RED = Image.new("RGB", (60, 90), "red")
TAGS = (0x112, 0x103, 0x10F, 0x111, 0x11A, 0x128, 0x102, 0x14A, 0x2BC, 0x8769, 0x8825, 0x927C)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def refused(path, why):
    """Check that every way to read a picture refuses it in one line."""
    readers = [load_image, lambda path: load_square(path, 8)]
    readers.append(lambda path: FileSet("one", [path], [0], ["red"]).size(0))
    for read in readers:
        with pytest.raises(UserError, match=f"{path.name}: {why}") as error:
            read(path)
        assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------- damaged metadata


def random_exif(rng):
    """An EXIF block whose tags have random types, counts and places."""
    order = rng.choice("<>")
    block = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}L", rng.choice([8, 9]))
    count = rng.randrange(12)
    block += struct.pack(f"{order}H", rng.choice([count, count, rng.randrange(65536)]))
    for _ in range(count):
        length = rng.choice([0, 1, 2, 4, 100, rng.randrange(2**32)])
        value = rng.choice([0, 1, 6, 54, rng.randrange(400), rng.randrange(2**32)])
        block += struct.pack(f"{order}HHLL", rng.choice(TAGS), rng.randrange(20), length, value)
    return b"Exif\0\0" + block + rng.randbytes(rng.randrange(200))


def is_red(image):
    right_size = image.shape in ((90, 60, 3), (60, 90, 3))
    return right_size and np.abs(image.astype(int) - (255, 0, 0)).max() <= 2


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_no_exif_block_costs_the_pixels(tmp_path, ending):
    rng, path = random.Random(0), tmp_path / f"a.{ending}"
    for _ in range(100):
        RED.save(path, exif=random_exif(rng), **({} if ending == "jpg" else {"lossless": True}))
        assert is_red(load_image(path))
        assert load_square(path, 32).shape == (32, 32, 3)


# ----------------------------------------------------------------------------------- damaged files


def test_damaged_files_end_in_one_line_or_in_pixels(tmp_path):
    """200 files, cut short or with flipped bits: each gives an image, or a UserError naming it."""
    rng, source = random.Random(0), Image.fromarray(picture(3, 64, 48))
    kinds = ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF"]
    whole = [saved(source, kind) for kind in kinds]
    whole += [saved(source, "TIFF", compression=name) for name in ("jpeg", "tiff_lzw")]
    whole += [saved(source.convert(mode), "TIFF") for mode in ("CMYK", "P", "1", "LAB")]
    refusals = 0
    for number in range(200):
        content = bytearray(rng.choice(whole))
        for _ in range(rng.randrange(4)):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        if number % 2:
            del content[rng.randrange(len(content)) :]
        path = tmp_path / f"{number}.png"
        path.write_bytes(content)
        try:
            assert load_image(path).shape[2:] == (3,)
        except UserError as error:
            assert re.fullmatch(f"{path}: .*", str(error))  # noqa: PT017 both ends are right
            refusals += 1
    assert refusals > 80


@pytest.mark.parametrize("size", [(2**31 - 1, 2**31 - 1), (9400, 9600)])
def test_a_header_of_huge_size_is_refused(tmp_path, size):
    content = bytearray(saved(RED, "PNG"))
    content[16:24] = struct.pack(">LL", *size)
    content[29:33] = struct.pack(">L", zlib.crc32(content[12:29]))
    (tmp_path / "a.png").write_bytes(content)
    refused(tmp_path / "a.png", "more than 89,478,485 pixels")


def test_any_file_name_is_read(tmp_path):
    names = ["-a.png", "--out.png", "a b.png", "a\nb.png", "$x_{1$.png", "猫.png", "\udcff.png"]
    for seed, name in enumerate(names):
        Image.fromarray(picture(seed)).save(tmp_path / "saved.png")
        (tmp_path / "saved.png").rename(tmp_path / name)
    loaded, _, left_out = open_folder(tmp_path)
    assert sorted(loaded) == sorted(names)
    assert left_out == []


def test_want_of_memory_is_no_damage(tmp_path, monkeypatch, fails):
    def no_memory(_):
        raise MemoryError

    RED.save(tmp_path / "a.png")
    monkeypatch.setattr(ImageFile.ImageFile, "load", no_memory)
    with pytest.raises(MemoryError):
        load_image(tmp_path / "a.png")
    told = fails(p1, "1.1", "--images", tmp_path, "--out", tmp_path / "out")
    assert "out of memory" in told


# ------------------------------------------------------------------------------ what is misread


SMALL, LARGE = picture(0, 24, 20), picture(1, 96, 80)
DEEP = np.random.default_rng(0).integers(0, 2**16, (20, 24, 3)).astype(np.uint16)


def reduced_page(path):
    with TiffWriter(path) as tiff:
        tiff.write(SMALL, subfiletype=1, photometric="rgb")
        tiff.write(LARGE, photometric="rgb")


def dng_version(path):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[50706], tags.tagtype[50706] = b"\1\4\0\0", 1
    Image.fromarray(LARGE).save(path, "TIFF", tiffinfo=tags)


def deep_planes(path):
    with TiffWriter(path) as tiff:
        tiff.write(DEEP.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")


def white_is_zero(path):
    with TiffWriter(path) as tiff:
        tiff.write(DEEP[..., 0], photometric="miniswhite")


def twelve_bits(path):
    """Write two pixels into three bytes, as scanners do; tifffile can't write this format."""
    tags = {256: 24, 257: 20, 258: 12, 259: 1, 262: 1, 273: 0, 277: 1, 278: 20, 279: 720}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    content = b"II*\0" + struct.pack("<LH", 8, len(tags))
    for tag, value in tags.items():
        content += struct.pack("<HHLL", tag, 4, 1, value)
    path.write_bytes(content + bytes(4) + random.Random(0).randbytes(720))


@pytest.mark.parametrize(
    ("write", "why"),
    [
        (reduced_page, "only a preview of it can be read"),
        (dng_version, "only a preview of it can be read"),
        (deep_planes, "16-bit colour in separate planes"),
        (white_is_zero, "16-bit grey whose zero is white"),
        (twelve_bits, "12-bit grey"),
    ],
)
def test_what_pillow_would_read_wrongly_is_refused(tmp_path, write, why, fails):
    path = tmp_path / "picture.tif"
    write(path)
    with Image.open(path) as image:  # Pillow itself accepts it
        image.load()
    refused(path, f"{why}; save it as a PNG of 8 bits")
    assert re.search(why, fails(p1, "1.1", "--image", path, "--out", tmp_path))


@pytest.mark.parametrize("options", [{}, {"planarconfig": "separate", "compression": "zlib"}])
def test_16_bit_colour_is_scaled(tmp_path, options):
    pixels = DEEP.transpose(2, 0, 1) if options else DEEP
    with TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(pixels, photometric="rgb", **options)
    np.testing.assert_array_equal(load_image(tmp_path / "a.tif"), DEEP >> 8)


@pytest.mark.parametrize("top", [65535, 4095])
def test_a_deep_pgm_is_read_as_the_equal_png(tmp_path, top):
    values = DEEP[..., 0].astype(int) % (top + 1)
    content = b"P5\n24 20\n%d\n" % top + values.astype(">u2").tobytes()
    (tmp_path / "a.pgm").write_bytes(content)
    equal = np.round(values / top * 65535).astype(np.uint16)
    Image.fromarray(equal).save(tmp_path / "a.png")
    pixels = load_image(tmp_path / "a.pgm")
    np.testing.assert_array_equal(pixels, load_image(tmp_path / "a.png"))
    np.testing.assert_array_equal(pixels[..., 0], equal // 257)
