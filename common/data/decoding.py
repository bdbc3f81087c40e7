"""Image files decoded: their pixels, upright and in RGB, or one line that says why there are none.

What Pillow raises, warns of or prints never leaves this file, and metadata never costs the pixels.
"""

import contextlib
import logging
import os
import stat
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import (
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    TiffTags,
    UnidentifiedImageError,
)

from common.errors import UserError

# Pillow holds several copies of these at once: their limits keep decoding below half a GiB.
DECODED_COPIES = {"WEBP": 4, "JPEG2000": 4, "AVIF": 2}
BAND_ROWS = 256  # of a large picture, converted at a time
ORIENTATION = 274  # tags of EXIF and TIFF
WIDTH, HEIGHT, SUBFILE, OLD_SUBFILE, SUB_IMAGES, DNG_VERSION = 256, 257, 254, 255, 330, 50706
TURNS = {  # what shows a picture upright, by its EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PREVIEW_FORMATS = ("XVThumb", "PCD")  # of a Photo CD's sizes Pillow reads the middle one
RAW_MARKS = (b"CR\2\0", b"IIII", b"MMMM")  # at byte 8 of TIFFs by Canon and Phase One
MERGED = 1057  # the resource of a PSD that says whether the whole picture was saved beside layers
PNG_PIXELS = ("chunk_IHDR", "chunk_PLTE", "chunk_tRNS", "chunk_IDAT", "chunk_fdAT", "chunk_IEND")
JPEG_METADATA = range(0xFFE0, 0xFFF0)  # the markers APP0 to APP15


def load_image(path: Path) -> np.ndarray:
    """An image file as RGB, uint8 of shape (height, width, 3).

    EXIF orientation is applied; grey, palette and CMYK become RGB; alpha is laid over white;
    16-bit grey is scaled to 8 bits. Of an animation the first frame is taken, of pages the first.

    Raises:
        UserError: missing, not an image, only a preview, truncated, or too large to be safe.
    """
    with open_image(path) as image:
        return _to_array(_upright_rgb(image))


def load_square(path: Path, side_px: int) -> np.ndarray:
    """The central square of an image file, scaled to `side_px`, uint8 (side_px, side_px, 3).

    Equal to scaling the short side and cropping, but only the square is scaled.

    Raises:
        UserError: as `load_image`.
    """
    with open_image(path) as image:
        image.draft(None, (side_px, side_px))  # a JPEG is decoded at 1/2, 1/4 or 1/8
        return _to_array(_central_square(_upright_rgb(image), side_px))


def _central_square(image: Image.Image, side_px: int) -> Image.Image:
    starts, ends = [], []
    for side in image.size:
        scaled = side_px * side // min(image.size)
        start = (scaled - side_px) // 2
        starts.append(start * side / scaled)
        ends.append(min(side, (start + side_px) * side / scaled))
    size, box = (side_px, side_px), (*starts, *ends)
    return image.resize(size, Image.Resampling.BICUBIC, box, reducing_gap=3)


# -------------------------------------------------------------------------------- open and decode


@contextlib.contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image file of which Pillow can read the picture itself; its pixels are not yet read.

    Raises:
        UserError: as `load_image`, also for what happens in the block.
    """
    with one_line_errors(path):
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise UserError(f"{path}: a folder, not an image; a folder is given by --images")
        if not stat.S_ISREG(mode):  # to open a pipe would wait for whoever writes to it
            raise UserError(f"{path}: not a regular file")
        with path.open("rb") as file:
            image = Image.open(file)
            most = Image.MAX_IMAGE_PIXELS // DECODED_COPIES.get(image.format, 1)
            if image.width * image.height > most:
                raise UserError(
                    f"{path}: more than {most:,} pixels, too many for {image.format}; convert it to"
                    " PNG or JPEG"
                )
            if image.format == "EPS":
                raise UserError(f"{path}: a PostScript program, not run; convert it to PNG")
            if _is_preview(image, file):
                raise UserError(
                    f"{path}: only a preview of it can be read; convert it to PNG or TIFF"
                )
            yield image


@contextlib.contextmanager
def one_line_errors(path: Path) -> Iterator[None]:
    """Turn what Pillow and the system say of an image file into a UserError that names it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are of metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the path of an image") from None
    except PermissionError:
        raise UserError(f"{path}: cannot be read; see to its permissions") from None
    except UnidentifiedImageError:
        raise UserError(
            f"{path}: not an image that Pillow can read; convert it to PNG or JPEG"
        ) from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UserError(
            f"{path}: more than {Image.MAX_IMAGE_PIXELS:,} pixels, refused as a decompression bomb;"
            " scale it down first"
        ) from None
    except Exception as error:  # for damaged files Pillow raises anything
        if isinstance(error, OSError) and error.errno:  # the system's, not Pillow's
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        reason = str(error) or type(error).__name__
        raise UserError(f"{path}: damaged image ({reason})") from None


def _is_preview(image: Image.Image, file: BinaryIO) -> bool:
    """Whether Pillow reads a smaller picture than the one that a file is of."""
    if image.format == "PSD":
        return any(kind == MERGED and data[4:5] == b"\0" for kind, _, data in image.resources)
    if image.format != "TIFF":
        return image.format in PREVIEW_FORMATS
    tags = image.tag_v2
    file.seek(0)
    header = file.read(16)
    if header[8:12] in RAW_MARKS or DNG_VERSION in tags or _number(tags, OLD_SUBFILE) == 2:
        return True
    area = _number(tags, WIDTH) * _number(tags, HEIGHT)
    return bool(_number(tags, SUBFILE) & 1) or _largest_sub_image(tags, file, header) > area


def _largest_sub_image(tags, file: BinaryIO, header: bytes) -> int:
    """The area in px of the largest image below the first one of a TIFF; 0 where there is none."""
    area = 0
    with contextlib.suppress(Exception):  # damaged: nobody else could read them either
        offsets = tags.get(SUB_IMAGES, ())
        for offset in offsets if isinstance(offsets, tuple) else (offsets,):
            is_big = header[2] == 43
            directory = TiffImagePlugin.ImageFileDirectory_v2(header[: 16 if is_big else 8])
            file.seek(offset)
            directory.load(file)
            area = max(area, _number(directory, WIDTH) * _number(directory, HEIGHT))
    return area


def _number(tags, tag: int) -> int:
    try:
        return int(tags.get(tag, 0))
    except Exception:  # a damaged tag; what the pixels need is Pillow's to refuse
        return 0


def _upright_rgb(image: Image.Image) -> Image.Image:
    if image.format == "PNG" and "transparency" in image.info:
        raw_mode = image.tile[0].args  # Pillow scales the pixels and not the transparent value
        if raw_mode == "RGB;16B":
            raise ValueError("16-bit colour with a transparent value; save it with 8 bits")
        image.info["transparency"] *= {"L;2": 85, "L;4": 17}.get(raw_mode, 1)
    if image.format == "TIFF":
        image.load_end = lambda: None  # it would write the EXIF block anew to turn the picture
        with _quiet_stderr():
            image.load()
        turn = TURNS.get(_number(image.tag_v2, ORIENTATION))
    else:
        image.load()
        turn = None
        with contextlib.suppress(Exception):  # whatever there is for EXIF, the pixels are there
            turn = TURNS.get(image.getexif().get(ORIENTATION) or _later_orientation(image))
    rgb = _to_rgb(image)
    if turn is not None:
        rgb = rgb.transpose(turn)
    if rgb is not image:
        image.close()  # frees its pixels
    return rgb


def _later_orientation(image: Image.Image) -> int | None:
    """The EXIF orientation behind a damaged tag, at which Pillow stops to read."""
    block = image.info["exif"].removeprefix(b"Exif\0\0")
    order = "<" if block.startswith(b"II") else ">"
    (start,) = struct.unpack_from(f"{order}L", block, 4)
    (count,) = struct.unpack_from(f"{order}H", block, start)
    for place in range(start + 2, start + 2 + 12 * count, 12):
        tag, _, _, value = struct.unpack_from(f"{order}HHLH", block, place)
        if tag == ORIENTATION:
            return value
    return None


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Drop what C code prints to file descriptor 2, as libtiff does."""
    if sys.stderr is None:  # closed by who started us: 2 may be the image file
        yield
        return
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        deep = np.asarray(image)
        grey = (deep // 257).astype(np.uint8)
        grey[deep == image.info.get("transparency")] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode}: its range is unknown, save it with 8 or 16 bits")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    rgb = Image.new("RGB", image.size)
    for box in _bands(image):
        band = image.crop(box).convert("RGBA")
        white = Image.new("RGBA", band.size, "white")
        rgb.paste(Image.alpha_composite(white, band).convert("RGB"), box)
    return rgb


def _to_array(image: Image.Image) -> np.ndarray:
    array = np.empty((image.height, image.width, 3), np.uint8)
    for box in _bands(image):
        array[box[1] : box[3]] = np.asarray(image.crop(box))
    return array


def _bands(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Boxes that cover an image from top to bottom, so that a copy is never of all of it."""
    for top in range(0, image.height, BAND_ROWS):
        yield (0, top, image.width, min(top + BAND_ROWS, image.height))


def _mend_pillow() -> None:
    """Let Pillow pass over metadata of PNG and JPEG that it can't read, as other readers do.

    And let it read the places of images in a TIFF that takes 64 bits for each.
    """

    def forgiving_chunk(read: Callable) -> Callable:
        def read_or_skip(stream, position: int, length: int) -> bytes:
            try:
                return read(stream, position, length)
            except Exception:
                stream.fp.seek(position)
                return ImageFile._safe_read(stream.fp, length)

        return read_or_skip

    def forgiving_segment(read: Callable) -> Callable:
        def read_or_skip(image, marker: int) -> None:
            with contextlib.suppress(Exception):  # the segment is behind us by then
                read(image, marker)
            image.icclist = []  # put together later, where nothing is forgiven

        return read_or_skip

    logging.getLogger("PIL").addHandler(logging.NullHandler())
    kinds = TiffImagePlugin.ImageFileDirectory_v2._load_dispatch
    kinds.setdefault(18, kinds[TiffTags.LONG8])
    stream = PngImagePlugin.PngStream
    for chunk, read in dict(vars(stream)).items():
        if chunk.startswith("chunk_") and chunk not in PNG_PIXELS:
            setattr(stream, chunk, forgiving_chunk(read))
    for marker in JPEG_METADATA:
        name, about, read = JpegImagePlugin.MARKER[marker]
        JpegImagePlugin.MARKER[marker] = (name, about, forgiving_segment(read))


_mend_pillow()
