"""Bad picture files made by seed, and good ones of rare kinds, each with what it has to become."""

import io
import itertools
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tests.faults import tiny

ENDINGS = {
    "PNG": ".png",
    "JPEG": ".jpg",
    "TIFF": ".tif",
    "GIF": ".gif",
    "WEBP": ".webp",
    "BMP": ".bmp",
}
SIZE = (90, 60)  # width, height


@dataclass(frozen=True)
class Specimen:
    """A file's name and content, and what is right.

    right: its pixels, uint8 (height, width, 3), where they are known. turned: they may be turned
    and mirrored. tolerance: of a pixel. must_decode: no refusal; otherwise either is right.
    must_refuse: no pixels.
    """

    name: bytes
    content: bytes
    right: np.ndarray | None = None
    turned: bool = False
    tolerance: int = 0
    must_decode: bool = False
    must_refuse: bool = False


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    """An image as the content of a file."""
    buffer = io.BytesIO()
    if kind == "WEBP":
        options = {"lossless": True, "exact": True, **options}
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(content: bytes) -> np.ndarray:
    """What Pillow makes of a plain file."""
    return np.array(Image.open(io.BytesIO(content)).convert("RGB"))


def _plain(rng: random.Random, kind: str) -> tuple[Image.Image, bytes]:
    image = Image.fromarray(tiny.picture(rng.randrange(10**6), *SIZE))
    return image, encoded(image, kind)


def truncated(rng: random.Random, kind: str) -> Specimen:
    """Cut short anywhere."""
    _, content = _plain(rng, kind)
    return Specimen(b"a" + ENDINGS[kind].encode(), content[: rng.randrange(len(content))])


def flipped(rng: random.Random, kind: str) -> Specimen:
    """One to eight bits flipped, half of the times in the first 200 bytes."""
    content = bytearray(_plain(rng, kind)[1])
    last = rng.choice((min(200, len(content)), len(content)))
    for _ in range(rng.choice((1, 1, 2, 8))):
        content[rng.randrange(last)] ^= 1 << rng.randrange(8)
    return Specimen(b"a" + ENDINGS[kind].encode(), bytes(content))


def wrong_ending(rng: random.Random, kind: str) -> Specimen:
    """A good file with the ending of another kind, told by its content."""
    _, content = _plain(rng, kind)
    others = [ending for name, ending in ENDINGS.items() if name != kind]
    name = b"a" + rng.choice(others).encode()
    return Specimen(name, content, decoded(content), must_decode=True)


def exif(rng: random.Random, kind: str) -> Specimen:
    """A block of EXIF with random tags, types, counts and values: no pixel is lost."""
    image, plain = _plain(rng, kind)
    tags = rng.randrange(1, 6)
    body = b"II*\0\x08\0\0\0" + struct.pack("<H", tags)
    for _ in range(tags):
        tag = rng.choice((0x112, 0x112, 0x103, 0x10F, 0x8769, 0x8825, 0x9286, rng.randrange(2**16)))
        count = rng.choice((0, 1, 2, 54, 2555904, 2**32 - 1))
        value = rng.choice((0, 1, 6, 8, 9, 65535, 2**32 - 1, rng.randrange(2**32)))
        body += struct.pack("<HHLL", tag, rng.randrange(0, 15), count, value)
    body += bytes(4)
    if rng.random() < 0.3:
        body = body[: rng.randrange(len(body))]
    content = encoded(image, kind, exif=b"Exif\0\0" + body)
    name = b"a" + ENDINGS[kind].encode()
    return Specimen(name, content, decoded(plain), turned=True, must_decode=True)


def huge_header(rng: random.Random, kind: str) -> Specimen:
    """A small file that claims to be huge."""
    content = bytearray(_plain(rng, kind)[1])
    width, height = rng.choice(
        ((100_000, 100_000), (65535, 65535), (2**31 - 1, 1), (60_000, 3_000))
    )
    short = struct.pack("<HH", min(width, 65535), min(height, 65535))
    if kind == "PNG":
        content[16:24] = struct.pack(">LL", width, height)
        content[29:33] = struct.pack(">L", zlib.crc32(bytes(content[12:29])))
    elif kind == "BMP":
        content[18:26] = struct.pack("<LL", width, height)
    elif kind == "GIF":
        content[6:10] = short
    elif kind == "JPEG":
        place = content.index(b"\xff\xc0") + 5
        content[place : place + 4] = struct.pack(">HH", min(height, 65535), min(width, 65535))
    elif kind == "TIFF":
        for tag, value in ((256, width), (257, height)):
            place = bytes(content).index(struct.pack("<HH", tag, 4))
            content[place + 8 : place + 12] = struct.pack("<L", value)
    else:
        content[21:25] = struct.pack("<L", 0x0FFFFFFF)  # 14 bits each
    return Specimen(b"a" + ENDINGS[kind].encode(), bytes(content), must_refuse=kind != "GIF")


def deep(rng: random.Random, kind: str) -> Specimen:
    """More than 8 bits: 16-bit grey by its upper range, with or without a transparent value."""
    width, height = SIZE
    values = np.random.default_rng(rng.randrange(10**6)).integers(0, 65536, (height, width))
    name = b"a" + ENDINGS[kind].encode()
    image = Image.fromarray(values.astype(np.uint16))
    right = np.repeat((values // 257).astype(np.uint8)[..., None], 3, axis=2)
    way = rng.randrange(4)
    if way == 0 and kind == "PNG":  # white where the transparent value is
        values[:20] = 1000
        content = bytearray(encoded(Image.fromarray(values.astype(np.uint16)), "PNG"))
        chunk = b"tRNS" + struct.pack(">H", 1000)
        chunk = struct.pack(">L", 2) + chunk + struct.pack(">L", zlib.crc32(chunk))
        content[33:33] = chunk
        right[values == 1000] = 255
        return Specimen(name, bytes(content), right, tolerance=1, must_decode=True)
    if way == 1 and kind == "TIFF":  # floats, whose range is not known
        return Specimen(name, encoded(Image.fromarray(values.astype(np.float32)), kind))
    if way == 2 and kind == "TIFF":
        return Specimen(name, encoded(Image.fromarray(values.astype(np.int32), "I"), kind))
    return Specimen(name, encoded(image, kind), right, tolerance=1, must_decode=True)


def cmyk(rng: random.Random, kind: str) -> Specimen:
    """CMYK: red is white less cyan and black."""
    width, height = SIZE
    inks = np.random.default_rng(rng.randrange(10**6)).integers(
        0, 256, (height // 10, width // 10, 4)
    )
    inks = inks.repeat(10, 0).repeat(10, 1).astype(np.uint8)
    content = encoded(
        Image.fromarray(inks, "CMYK"), kind, **({"quality": 100} if kind == "JPEG" else {})
    )
    whole = inks.astype(float)
    right = (255 - whole[..., :3]) * (255 - whole[..., 3:]) / 255
    name = b"a" + ENDINGS[kind].encode()
    if kind == "JPEG":  # the colours of blocks ring
        return Specimen(name, content, None, must_decode=True)
    return Specimen(name, content, right.round().astype(np.uint8), tolerance=2, must_decode=True)


def alpha(rng: random.Random, kind: str) -> Specimen:
    """Palettes, grey, one bit, and alpha, which is laid over white."""
    rgb = tiny.picture(rng.randrange(10**6), *SIZE)
    share = tiny.picture(rng.randrange(10**6), *SIZE)[..., :1]
    image, name = Image.fromarray(rgb), b"a" + ENDINGS[kind].encode()
    mode = rng.choice(("RGBA", "LA", "P", "Ptrns", "L", "1"))
    if kind != "PNG":
        modes = {"WEBP": ("RGBA",), "JPEG": ("L",)}
        mode = rng.choice(modes.get(kind, ("L", "P", "1")))
    if mode in ("RGBA", "LA"):
        full = rgb if mode == "RGBA" else np.repeat(np.array(image.convert("L"))[..., None], 3, 2)
        layers = np.concatenate([full if mode == "RGBA" else full[..., :1], share], axis=2)
        right = full * (share / 255) + 255 * (1 - share / 255)
        content = encoded(Image.fromarray(layers, mode), kind)
        return Specimen(
            name, content, right.round().astype(np.uint8), tolerance=2, must_decode=True
        )
    if mode == "Ptrns":
        palette = image.quantize(16)
        right = np.array(palette.convert("RGB"))
        right[np.array(palette) == 3] = 255
        content = encoded(palette, kind, transparency=3)
        return Specimen(name, content, right, tolerance=1, must_decode=True)
    other = image.quantize(16) if mode == "P" else image.convert(mode)
    content = encoded(other, kind)
    right = decoded(content) if kind == "JPEG" else np.array(other.convert("RGB"))
    return Specimen(name, content, right, must_decode=True)


def animated(rng: random.Random, kind: str) -> Specimen:
    """Several frames or pages: the first."""
    frames = [Image.fromarray(tiny.picture(rng.randrange(10**6), *SIZE)) for _ in range(3)]
    if kind == "GIF":
        frames = [frame.quantize(64) for frame in frames]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    right = np.array(frames[0].convert("RGB"))
    return Specimen(b"a" + ENDINGS[kind].encode(), content, right, must_decode=True)


TURNED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


def oriented(rng: random.Random, kind: str, orientation: int) -> Specimen:
    """An orientation of EXIF: the picture is shown upright."""
    image, plain = _plain(rng, kind)
    tags = Image.Exif()
    tags[0x112] = orientation
    content = encoded(image, kind, exif=tags.tobytes())
    right = TURNED[orientation](decoded(plain))
    return Specimen(b"a" + ENDINGS[kind].encode(), content, right, must_decode=True)


def strip(rng: random.Random, kind: str, width: int, height: int) -> Specimen:
    """A picture of a line."""
    values = np.random.default_rng(rng.randrange(10**6)).integers(0, 256, (height, width, 3))
    content = encoded(Image.fromarray(values.astype(np.uint8)), kind)
    return Specimen(b"a" + ENDINGS[kind].encode(), content, decoded(content), must_decode=True)


NAMES = (
    *(
        b"with space.png",
        b"new\nline.png",
        b"tab\t.png",
        b"$5_vs_$6.png",
        b"Ba$$in.png",
        b"`id`.png",
    ),
    *("猫.png".encode(), "ü.png".encode(), "u\u0308.png".encode(), "\u202egnp.png".encode()),
    *(b"\xff\xfe.png", b"caf\xe9.png", b"-rf.png", b"--out.png", b"a'b\"c.png", b"<script>.png"),
    *(
        b"%s%n{x}.png",
        b"a\\b.png",
        b"\x1b[31mred.png",
        b"$x_{1$.png",
        b"#.png",
        b"x" * 200 + b".png",
    ),
)


def named(rng: random.Random, name: bytes) -> Specimen:
    """A good file of an unusual name."""
    _, content = _plain(rng, "PNG")
    return Specimen(name, content, decoded(content), must_decode=True)


NO_PICTURES = (
    *(b"", b"\0", b"hello\n", b"<html><body>404</body></html>", b"\x89PNG\r\n\x1a\n", b"GIF89a"),
    *(
        b"\xff\xd8\xff",
        b"BM",
        b"II*\0",
        b"MM\0*\0\0\0\x08",
        b"RIFF\0\0\0\0WEBP",
        b"%!PS-Adobe-3.0 EPSF",
    ),
    *(b"%PDF-1.4\n", b"P6 9999999 9999999 255\n", b"P5\n1 1\n65535\n", b"\0" * 100_000),
)


def no_picture(_: random.Random, content: bytes) -> Specimen:
    """A file that is no picture, or its first bytes alone."""
    return Specimen(b"a.png", content, must_refuse=True)


EVERY_KIND = {  # how many files of each kind
    "truncated": (truncated, 16),
    "flipped bits": (flipped, 16),
    "wrong ending": (wrong_ending, 4),
    "header of huge size": (huge_header, 4),
    "palette, grey or alpha": (alpha, 6),
}
SOME_KINDS = {  # and of some kinds alone
    "random EXIF": (exif, {"JPEG": 56, "PNG": 22, "WEBP": 22}),
    "16 bits": (deep, {"PNG": 8, "TIFF": 8}),
    "CMYK": (cmyk, {"TIFF": 6, "JPEG": 3}),
    "palette, grey or alpha": (alpha, {"PNG": 12}),
    "animated": (animated, dict.fromkeys(("GIF", "PNG", "WEBP", "TIFF"), 3)),
}
STRIPS = ((16000, 1), (1, 16000), (4000, 1), (1, 4000), (60000, 2))


def all_specimens(quick: bool) -> Iterator[tuple[str, Callable, tuple]]:
    """(name of the fault, maker, its arguments after the generator) of every file."""
    if quick:
        yield from [("truncated", truncated, (kind,)) for kind in ENDINGS]
        yield from [("random EXIF", exif, ("JPEG",))] * 3
        return
    for fault, (make, count) in EVERY_KIND.items():
        for kind in ENDINGS:
            yield from [(fault, make, (kind,))] * count
    for fault, (make, counts) in SOME_KINDS.items():
        for kind, count in counts.items():
            yield from [(fault, make, (kind,))] * count
    turns = itertools.product(("JPEG", "PNG", "WEBP", "TIFF"), TURNED)
    yield from [("orientation", oriented, how) for how in turns]
    yield from [("strip", strip, (kind, *size)) for kind in ("PNG", "JPEG") for size in STRIPS]
    yield from [("file name", named, (name,)) for name in NAMES]
    yield from [("no picture", no_picture, (content,)) for content in NO_PICTURES]
