"""Images read from files, folders and packages, converted, and cut to size."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from common.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Real colour photographs that come in scikit-image's wheel. Left out: hubble_deep_field and
# retina (mostly black) and motorcycle_right (the left one's stereo twin is not "another picture").
EMBEDDED_PHOTOS = {
    "astronaut": "astronaut.png",
    "chelsea": "chelsea.png",
    "coffee": "coffee.png",
    "ihc": "ihc.png",
    "motorcycle": "motorcycle_left.png",
    "rocket": "rocket.jpg",
}


def load_image(path: Path, short_side_px: int | None = None) -> np.ndarray:
    """An image file as RGB, uint8 of shape (height, width, 3), scaled where a short side is given.

    EXIF orientation is applied; grey, palette and CMYK become RGB; alpha is laid over white;
    16-bit grey is scaled to 8 bits. Of an animation the first frame is taken.

    Raises:
        UserError: missing, not an image, truncated, or too large to be opened safely.
    """
    with one_line_errors(path), Image.open(path) as image:
        if short_side_px is None:
            return np.array(_to_rgb(ImageOps.exif_transpose(image)))
        image.draft(None, (short_side_px, short_side_px))  # a JPEG is decoded at 1/2, 1/4 or 1/8
        return np.array(_scale(_to_rgb(ImageOps.exif_transpose(image)), short_side_px))


def _scale(image: Image.Image, short_side_px: int) -> Image.Image:
    size = tuple(short_side_px * side // min(image.size) for side in image.size)
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3)


@contextlib.contextmanager
def one_line_errors(path: Path) -> Iterator[None]:
    """Turn what Pillow and the system say of an image file into a UserError that names it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder, not an image") from None
    except PermissionError:
        raise UserError(f"{path}: cannot be read; see to its permissions") from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: not an image that Pillow can read") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UserError(
            f"{path}: more than {Image.MAX_IMAGE_PIXELS:,} pixels, refused as a decompression bomb;"
            " scale it down first"
        ) from None
    except (OSError, SyntaxError, ValueError, MemoryError) as error:  # Pillow's, for damaged files
        raise UserError(f"{path}: damaged image ({error})") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode}: its range is unknown, save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def load_folder(folder: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """All images directly in a folder, by file name in sorted order, and what was left out.

    Files are taken by the endings that Pillow knows; a bad one is left out with its reason.
    Images are uint8 (height, width, 3).

    Raises:
        UserError: no such folder, or no image in it that can be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    endings = Image.registered_extensions()
    images, bad = {}, []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in endings and path.is_file():
            try:
                images[path.name] = load_image(path)
            except UserError as error:
                bad.append(str(error))
    if not images:
        reason = (
            f"none of its {len(bad)} images can be read; first: {bad[0]}" if bad else "no images"
        )
        raise UserError(f"{folder}: {reason}")
    return images, bad


def embedded_photos() -> dict[str, np.ndarray]:
    """scikit-image's colour photographs by name, each uint8 (height, width, 3)."""
    import skimage.data  # slow to import, and only these photos need it

    folder = Path(skimage.data.data_dir)
    return {name: load_image(folder / file) for name, file in EMBEDDED_PHOTOS.items()}


def to_tensor(image: np.ndarray) -> Tensor:
    """An image of uint8 (height, width, 3) as float32 (3, height, width) in [0, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255


def to_uint8(image: Tensor) -> np.ndarray:
    """A float image (3, height, width) in [0, 1] as uint8 (height, width, 3), rounded."""
    return (image * 255).round().byte().permute(1, 2, 0).contiguous().numpy()


def fit_to(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """The centre of an image, scaled to cover `width` by `height` px with its aspect ratio kept.

    Both are uint8 (height, width, 3).
    """
    fitted = ImageOps.fit(Image.fromarray(image), (width, height), Image.Resampling.LANCZOS)
    return np.array(fitted)


def centre_crop(image: Tensor, width: int, height: int) -> Tensor:
    """The central (height, width) of an image of shape (..., H, W), or all there is of it."""
    top, left = max(0, image.shape[-2] - height) // 2, max(0, image.shape[-1] - width) // 2
    return image[..., top : top + height, left : left + width]
