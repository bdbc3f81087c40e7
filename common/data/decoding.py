"""Decoding of image files to upright RGB pixels, or to an error of one line that says why not."""

import contextlib
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base as Tag

from common.errors import UserError

# Without EPS, which is a program, and PSD and Photo CD: Pillow may read only a preview of those.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

# Pillow's warnings are about metadata; ignored here, once, since threads share the filters.
warnings.filterwarnings("ignore", module=r"PIL\.")


def load_image(path: Path) -> np.ndarray:
    """An image file as RGB, uint8 of shape (height, width, 3).

    EXIF orientation is applied; grey, palette and CMYK become RGB; alpha is laid over white;
    16-bit grey is scaled to 8 bits. Only the first frame of an animation, or first page, is read.
    A file that is missing, damaged, too large, or of a kind that Pillow reads wrongly raises a
    UserError that names it.
    """
    with open_image(path) as image:
        return np.array(_upright_rgb(image))


def load_square(path: Path, side_px: int) -> np.ndarray:
    """The central square of an image file, scaled to `side_px`, uint8 (side_px, side_px, 3).

    The result is that of scaling the short side and cropping, but only the square is scaled.
    """
    with open_image(path) as image:
        image.draft(None, (side_px, side_px))  # a JPEG is decoded at 1/2, 1/4 or 1/8
        return np.array(_central_square(_upright_rgb(image), side_px))


def _central_square(image: Image.Image, side_px: int) -> Image.Image:
    sides = np.array(image.size)
    scaled = side_px * sides // sides.min()
    start = (scaled - side_px) // 2
    ends = np.minimum(sides, (start + side_px) * sides / scaled)
    box = (*(start * sides / scaled), *ends)
    return image.resize((side_px, side_px), Image.Resampling.BICUBIC, box, reducing_gap=3)


@contextlib.contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image file without reading its pixels yet; refuse what Pillow would read wrongly."""
    try:
        with path.open("rb") as file:
            image = Image.open(file, formats=FORMATS)
            if image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError  # as Pillow does at twice as many
            if reason := _misread(image):
                raise UserError(f"{path}: {reason}; save it as a PNG of 8 bits")
            yield image
    except (UserError, MemoryError):  # lack of memory is not damage
        raise
    except Exception as error:  # Pillow raises any error for damaged files
        raise UserError(f"{path}: {_why_unread(error)}") from None


def _why_unread(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file; give the path of an image"
    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow can read; convert it to PNG or JPEG"
    if isinstance(error, Image.DecompressionBombError):
        most = f"{Image.MAX_IMAGE_PIXELS:,}"
        return f"more than {most} pixels, refused as a decompression bomb; scale it down first"
    if isinstance(error, OSError) and error.errno:  # the system's, not Pillow's
        return f"cannot be read ({error.strerror})"
    return f"damaged image ({str(error) or type(error).__name__})"


def _misread(image: Image.Image) -> str:
    """Why Pillow would read wrong pixels from the image; empty if it reads the right ones."""
    if image.format == "PNG" and "transparency" in image.info:  # a value not scaled like pixels
        odd = image.tile[0].args in ("L;2", "L;4", "RGB;16B")
        return "a transparent value of other than 8 bits" if odd else ""
    if image.format != "TIFF":
        return ""
    tags = image.tag_v2
    reduced = tags.get(Tag.NewSubfileType, 0) & 1 or tags.get(Tag.SubfileType) == 2
    if reduced or Tag.DNGVersion in tags:
        return "only a preview of it can be read"
    bits = max(tags.get(Tag.BitsPerSample, (1,)))
    if bits == 16 and tags.get(Tag.PlanarConfiguration) == 2 and image.tile[0].codec_name == "raw":
        return "16-bit colour in separate planes"
    if bits == 16 and tags.get(Tag.PhotometricInterpretation, 0) == 0:
        return "16-bit grey whose zero is white"
    return "12-bit grey" if bits == 12 else ""


def _turn_upright(image: Image.Image) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:  # however bad the EXIF data, the pixels are good
        if isinstance(error, MemoryError):
            raise


def _upright_rgb(image: Image.Image) -> Image.Image:
    if image.format == "TIFF":  # Pillow's load_end also turns, but raises on damaged EXIF
        image.load_end = partial(_turn_upright, image)
    image.load()
    _turn_upright(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        deep = np.asarray(image)
        grey = (deep // 257).astype(np.uint8)
        grey[deep == image.info.get("transparency")] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode}: its range is unknown, save it with 8 or 16 bits")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")
