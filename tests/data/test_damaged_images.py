"""Files by a seed that are damaged or strange: decoded right, or refused in one line."""

import io
import os
import random
import socket
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from common.data.decoding import load_image, load_square
from common.data.images import load_folder
from common.data.sets import FileSet
from common.errors import UserError
from common.reporting.results import ROOT
from tests.conftest import picture

RED = Image.new("RGB", (60, 90), "red")
TAGS = (0x112, 0x103, 0x10F, 0x111, 0x11A, 0x128, 0x102, 0x14A, 0x2BC, 0x8769, 0x8825, 0x927C)


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


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it saves
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_no_exif_block_costs_the_pixels(tmp_path, ending):
    rng, path = random.Random(0), tmp_path / f"a.{ending}"
    for _ in range(400):
        RED.save(path, exif=random_exif(rng), **({} if ending == "jpg" else {"lossless": True}))
        assert is_red(load_image(path))
        assert load_square(path, 32).shape == (32, 32, 3)


def test_a_malformed_tag_does_not_keep_the_orientation_from_being_read(tmp_path):
    tags = struct.pack("<HHLHH", 0x103, 2, 4, 54, 0) + struct.pack("<HHLHH", 0x112, 3, 1, 6, 0)
    RED.save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\x02\0" + tags + bytes(4))
    assert load_image(tmp_path / "a.jpg").shape == (60, 90, 3)
    assert FileSet("one", [tmp_path / "a.jpg"], [0], ["red"]).size(0) == (60, 90)
    tags = struct.pack("<HHLL", 0x10F, 2, 2555904, 65535) + tags[12:]
    RED.save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\x02\0" + tags + bytes(4))
    assert load_image(tmp_path / "a.jpg").shape == (60, 90, 3)


def segment(content, marker, data):
    return content[:2] + struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data + content[2:]


def chunk(content, name, data):
    whole = struct.pack(">L", len(data)) + name + data + struct.pack(">L", zlib.crc32(name + data))
    return content[:33] + whole + content[33:]  # behind the header


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_no_other_metadata_costs_the_pixels(tmp_path):
    rng, jpeg, png = random.Random(0), saved(RED, "JPEG"), saved(RED, "PNG")
    heads = [(0xE0, b"JFIF\0"), (0xE2, b"ICC_PROFILE\0"), (0xE2, b"MPF\0"), (0xEE, b"Adobe")]
    heads += [(0xED, b"Photoshop 3.0\x008BIM"), (0xE1, b"http://ns.adobe.com/xap/1.0/\0")]
    names = (b"cHRM", b"gAMA", b"iCCP", b"pHYs", b"tEXt", b"iTXt", b"zTXt", b"sRGB", b"eXIf")
    for _ in range(40):
        data = rng.choice([rng.randbytes(rng.randrange(40)), random_exif(rng)[6:]])
        contents = [segment(jpeg, marker, head + data) for marker, head in heads]
        contents += [chunk(png, name, data) for name in (*names, b"acTL", b"fcTL", b"tIME")]
        for content in contents:
            (tmp_path / "a").write_bytes(content)
            assert is_red(load_image(tmp_path / "a")), content[:80]


def test_a_bomb_in_a_text_chunk_is_not_unpacked(tmp_path):
    text = b"Comment\0\0" + zlib.compress(bytes(300_000_000), 9)
    (tmp_path / "a.png").write_bytes(chunk(saved(RED, "PNG"), b"zTXt", text))
    assert is_red(load_image(tmp_path / "a.png"))


def test_damaged_files_end_in_one_line_or_in_pixels(tmp_path):
    """500 files cut short or with flipped bits: a UserError that names the file, or an image."""
    rng, source = random.Random(0), Image.fromarray(picture(3, 64, 48))
    kinds = ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO", "AVIF"]
    whole = [saved(source, kind) for kind in kinds]
    whole += [saved(source, "TIFF", compression=name) for name in ("jpeg", "tiff_lzw")]
    whole += [saved(source.convert(mode), "TIFF") for mode in ("CMYK", "P", "1", "LAB")]
    refused = 0
    for number in range(500):
        content = bytearray(rng.choice(whole))
        for _ in range(rng.randrange(4)):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        if number % 2:
            del content[rng.randrange(len(content)) :]
        path = tmp_path / f"{number}.png"
        path.write_bytes(content)
        told = ""
        try:
            image = load_image(path)
        except UserError as error:
            told = str(error)
            refused += 1
        if told:
            assert told.startswith(f"{path}: ")
            assert "\n" not in told
        else:
            assert image.dtype == np.uint8
            assert image.ndim == image.shape[2] == 3
    assert refused > 200


def huge_png(width, height):
    content = bytearray(saved(RED, "PNG"))
    content[16:24] = struct.pack(">LL", width, height)
    content[29:33] = struct.pack(">L", zlib.crc32(content[12:29]))
    return content


@pytest.mark.parametrize("size", [(60_000, 60_000), (2**31 - 1, 2**31 - 1), (9400, 9400)])
def test_a_header_of_huge_size_is_refused(tmp_path, size):
    (tmp_path / "a.png").write_bytes(huge_png(*size))
    with pytest.raises(UserError, match=r"a.png: (more than 89,478,485 pixels|damaged image)"):
        load_image(tmp_path / "a.png")


def test_a_large_picture_of_a_format_that_takes_much_memory_is_refused(tmp_path):
    Image.new("L", (16_000, 1_400)).save(tmp_path / "a.webp", lossless=True, method=0)
    with pytest.raises(UserError, match=r"more than 22,369,621 pixels, too many for WEBP;"):
        load_image(tmp_path / "a.webp")


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder"])
def test_what_is_no_regular_file_is_never_opened(tmp_path, kind, monkeypatch):
    path = tmp_path / "a.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        monkeypatch.chdir(tmp_path)  # a socket's path may have 107 bytes
        socket.socket(socket.AF_UNIX).bind("a.png")
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    told = "a folder, not an image" if kind == "folder" else "not a regular file"
    readers = [load_image, lambda path: load_square(path, 8)]
    readers.append(lambda path: FileSet("one", [path], [0], ["red"]).size(0))
    for read in readers:
        with pytest.raises(UserError, match=f"a.png: {told}"):
            read(path)
    if kind != "folder":
        RED.save(tmp_path / "b.png")
        assert load_folder(tmp_path)[0].keys() == {"b.png"}


def test_postscript_is_not_run(tmp_path):
    (tmp_path / "a.eps").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments"
    )
    with pytest.raises(UserError, match=r"a.eps: a PostScript program, not run"):
        load_image(tmp_path / "a.eps")


def test_any_file_name_is_read(tmp_path):
    names = ["-a.png", "--out.png", "a b.png", "a\nb.png", "$x_{1$.png", "猫.png", "\udcff.png"]
    for name in names:
        RED.save(tmp_path / name.replace("\udcff", "bytes"))
        (tmp_path / name.replace("\udcff", "bytes")).rename(tmp_path / name)
    loaded, left_out = load_folder(tmp_path)
    assert sorted(loaded) == sorted(names)
    assert left_out == []


# ------------------------------------------------------------------ what libraries print and warn


def stderr_of(code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_thirty_files_with_broken_metadata_are_read_without_a_line(tmp_path):
    tag = struct.pack("<HHLL", 0x10F, 2, 2555904, 65535)
    for number in range(30):
        exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + tag + bytes(4)
        RED.save(tmp_path / f"{number}.jpg", exif=exif)
    code = """
import sys
from pathlib import Path
from common.data.decoding import load_image
from common.data.images import load_folder
from common.data.packed import in_parallel
folder = Path(sys.argv[1])
assert len(load_folder(folder)[0]) == 30
assert len(list(in_parallel(load_image, sorted(folder.iterdir()), "reading"))) == 30
"""
    assert stderr_of(code, tmp_path) == ""


def test_a_truncated_tiff_is_one_line_of_ours(tmp_path):
    content = saved(Image.fromarray(picture(0, 300, 300)), "TIFF", compression="tiff_lzw")
    tail = content.rindex(b"II") if content.count(b"II") > 1 else len(content) // 2
    damaged = bytearray(content)
    damaged[tail // 2 : tail // 2 + 2000] = os.urandom(2000)
    (tmp_path / "a.tif").write_bytes(damaged)
    (tmp_path / "b.tif").write_bytes(content[: len(content) * 2 // 3])
    code = """
import sys
from pathlib import Path
from common.data.images import load_image
from common.errors import UserError
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        load_image(path)
    except UserError as error:
        print(error, file=sys.stderr)
"""
    told = stderr_of(code, tmp_path).splitlines()
    assert [line.split(": ")[0] for line in told] == [
        str(tmp_path / "a.tif"),
        str(tmp_path / "b.tif"),
    ]


def test_stderr_is_there_again_after_a_tiff(tmp_path, capfd):
    RED.save(tmp_path / "a.tif", compression="tiff_lzw")
    assert is_red(load_image(tmp_path / "a.tif"))
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"
