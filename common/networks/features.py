"""What baselines look at: colour, edge or VGG-16 features, and the nearest neighbour.

    import torch; from common.networks import features
    counts = features.colour_histograms(torch.randint(256, (9, 32, 32, 3)).byte().numpy(), 24)
    print(features.nearest(counts[5:], counts[:5]))

Pictures are uint8 (n, S, S, 3), features float32 (n, D).
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.networks.vgg import VGG16Features

HOG_CELLS = 8  # cells along a side; images of all sizes that 8 divides have equally many features


def colour_histograms(squares: np.ndarray, size_px: int) -> Tensor:
    """Count each central square's pixels in 8 x 8 x 4 bins of hue, saturation and value.

    A central square has sides of `size_px`. Counts are float32 (n, 256).
    """
    counts = np.zeros((len(squares), 256), np.float32)
    for row, square in zip(counts, _central(squares, size_px), strict=True):
        # Pillow's conversion takes a tenth of scikit-image's time, and rounds to 8 bits.
        hsv = np.asarray(Image.fromarray(square).convert("HSV")).astype(int)
        bins = hsv[..., 0] // 32 * 32 + hsv[..., 1] // 32 * 4 + hsv[..., 2] // 64
        row[:] = np.bincount(bins.ravel(), minlength=256)
    return torch.from_numpy(counts)


def hog_features(squares: np.ndarray, size_px: int) -> Tensor:
    """Histograms of oriented gradients, which ignore colour (Dalal & Triggs 2005).

    The central squares get nine directions in each of 8 x 8 cells, normalised in blocks of 2 x 2
    cells. Returns float32 (n, D); D is 1,764 if 8 divides `size_px`.
    """
    from skimage.feature import hog

    cell_px = size_px // HOG_CELLS
    options = {"pixels_per_cell": (cell_px, cell_px), "cells_per_block": (2, 2), "channel_axis": -1}
    rows = [hog(square, **options) for square in _central(squares, size_px)]
    return torch.from_numpy(np.stack(rows).astype(np.float32))


def _central(squares: np.ndarray, size_px: int) -> np.ndarray:
    start = (squares.shape[1] - size_px) // 2
    return squares[:, start : start + size_px, start : start + size_px]


@torch.inference_mode()
def vgg_features(network: VGG16Features, images: Tensor) -> dict[str, Tensor]:
    """Each channel's mean and maximum over all places, by tap: {tap: float32 (N, 2, C)}."""
    return {
        tap: torch.stack([maps.mean((2, 3)), maps.amax((2, 3))], dim=1).float()
        for tap, maps in network(images).items()
    }


def nearest(queries: Tensor, references: Tensor) -> Tensor:
    """The index of each query's nearest reference by L1 distance; the first one in a tie."""
    chunks = queries.split(1024)  # to bound the memory of the distances
    return torch.cat([torch.cdist(chunk, references, p=1).argmin(1) for chunk in chunks])
