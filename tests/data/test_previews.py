"""Files of which Pillow reads a smaller picture than theirs are refused, others are not."""

import struct

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from tifffile import TiffWriter

from common.data.decoding import load_image, load_square
from common.data.images import load_folder
from common.errors import UserError
from tests.conftest import picture

SMALL, LARGE = picture(0, 24, 20), picture(1, 96, 80)
REFUSED = "only a preview of it can be read; convert it to PNG or TIFF"


def dng(path):
    """As cameras write it: a reduced first image, the large one below it."""
    with TiffWriter(path) as tiff:
        tiff.write(SMALL, subfiletype=1, photometric="rgb", subifds=1)
        tiff.write(LARGE, subfiletype=0, photometric="rgb")


def larger_sub_image(path, **kind):
    """The first image is not said to be reduced, but has a larger one below it."""
    with TiffWriter(path, **kind) as tiff:
        tiff.write(SMALL, subfiletype=0, photometric="rgb", subifds=1)
        tiff.write(LARGE, subfiletype=0, photometric="rgb")


def big_endian(path):
    larger_sub_image(path, byteorder=">")


def in_big_tiff(path):
    larger_sub_image(path, bigtiff=True)


def reduced_page(path):
    with TiffWriter(path) as tiff:
        tiff.write(SMALL, subfiletype=1, photometric="rgb")
        tiff.write(LARGE, photometric="rgb")


def with_tag(path, tag, value, kind=3):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[tag], tags.tagtype[tag] = value, kind
    Image.fromarray(LARGE).save(path, "TIFF", tiffinfo=tags)


def old_subfile_type(path):
    with_tag(path, 255, 2)


def dng_version(path):
    with_tag(path, 50706, b"\1\4\0\0", 1)


def raw_mark(path, mark):
    """A TIFF whose header is 16 bytes long: the mark stands at byte 8."""
    Image.fromarray(LARGE).save(path, "TIFF")
    content = bytearray(path.read_bytes())
    (start,) = struct.unpack("<L", content[4:8])
    (count,) = struct.unpack("<H", content[start : start + 2])
    directory = content[start : start + 2 + 12 * count + 4]
    content[4:8] = struct.pack("<L", len(content))
    content[8:12] = mark  # over the old directory, of which a copy is at the end
    path.write_bytes(content + directory)


def cr2(path):
    raw_mark(path, b"CR\2\0")


def iiq(path):
    raw_mark(path, b"IIII")


def psd(path, merged):
    """A Photoshop file with version information: whether the whole picture is merged."""
    about = struct.pack(">4sHxxL", b"8BIM", 1057, 5) + struct.pack(">LB", 1, merged) + b"\0"
    header = struct.pack(">4sH6xHLLHH", b"8BPS", 1, 3, 80, 96, 8, 3) + bytes(4)
    header += struct.pack(">L", len(about)) + about + bytes(4) + bytes(2)
    path.write_bytes(header + LARGE.transpose(2, 0, 1).tobytes())


def layers_alone(path):
    psd(path, merged=0)


def xv_thumbnail(path):
    path.write_bytes(b"P7 332\n#END_OF_COMMENTS\n8 6 255\n" + bytes(48))


def photo_cd(path):
    header = bytearray(2048 * 3)
    header[2048:2052] = b"PCD_"
    path.write_bytes(header + bytes(768 * 512 * 2))


PREVIEWS = (dng, larger_sub_image, big_endian, in_big_tiff, reduced_page, old_subfile_type)
PREVIEWS += (dng_version, cr2, iiq, layers_alone, xv_thumbnail, photo_cd)


@pytest.mark.parametrize("write", PREVIEWS)
def test_a_preview_is_refused(tmp_path, write):
    path = tmp_path / "picture.tif"
    write(path)
    with Image.open(path):  # Pillow itself takes it
        pass
    for read in (load_image, lambda path: load_square(path, 16)):
        with pytest.raises(UserError) as error:
            read(path)
        assert str(error.value) == f"{path}: {REFUSED}"


def test_a_preview_in_a_folder_is_left_out_by_name(tmp_path):
    dng(tmp_path / "a.tif")
    Image.fromarray(LARGE).save(tmp_path / "b.tif")
    loaded, left_out = load_folder(tmp_path)
    assert list(loaded) == ["b.tif"]
    assert left_out == [f"a.tif: {REFUSED}"]


def pages(path):
    first, *others = (Image.fromarray(pixels) for pixels in (LARGE, SMALL, LARGE))
    first.save(path, save_all=True, append_images=others)


def larger_second_page(path):
    with TiffWriter(path) as tiff:
        tiff.write(LARGE, photometric="rgb")
        tiff.write(picture(2, 200, 180), photometric="rgb")


def pyramid(path, **kind):
    with TiffWriter(path, **kind) as tiff:
        tiff.write(LARGE, photometric="rgb", subifds=2)
        tiff.write(LARGE[::2, ::2], subfiletype=1, photometric="rgb")
        tiff.write(LARGE[::4, ::4], subfiletype=1, photometric="rgb")


def big_pyramid(path):
    pyramid(path, bigtiff=True)


def damaged_sub_image(path):
    with_tag(path, 330, 2**31, 4)


def merged_layers(path):
    psd(path, merged=1)


@pytest.mark.parametrize(
    "write", [pages, larger_second_page, pyramid, big_pyramid, damaged_sub_image, merged_layers]
)
def test_a_first_page_that_is_the_picture_is_read(tmp_path, write):
    write(tmp_path / "picture.tif")
    np.testing.assert_array_equal(load_image(tmp_path / "picture.tif"), LARGE)
