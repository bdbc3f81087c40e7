"""Losses between two images: of pixels, of VGG-16's feature maps, and LPIPS.

    import torch; from common.networks.losses import pixel_losses
    image = torch.rand(3, 32, 32)
    print(pixel_losses(image, image.flip(-1)))

Images are float (3, H, W) in [0, 1].
"""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from common.networks.vgg import VGG16Features, lock_step

Losses = dict[str, float]
CHUNK_NUMBERS = 2**18  # of a map that are compared at a time, so that temporaries stay in the cache


def pixel_losses(a: Tensor, b: Tensor) -> Losses:
    """Mean absolute and mean squared error of two images, {"l1", "l2"}, in 0-255 units."""
    difference = (a.double() - b.double()) * 255
    return {"l1": difference.abs().mean().item(), "l2": difference.square().mean().item()}


def psnr(l2: float) -> float:
    """Peak signal-to-noise ratio in dB from the MSE in 0-255 units; infinite where that is 0."""
    return 10 * math.log10(255**2 / l2) if l2 > 0 else math.inf


def ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity of two images, with the Gaussian window of Wang et al. 2004.

    Both sides are at least as long as the window, 11 px.
    """
    from skimage.metrics import structural_similarity  # slow to import, and only SSIM needs it

    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(
        structural_similarity(a.numpy(), b.numpy(), channel_axis=0, data_range=1, **window)
    )


def wrapped_uint8_losses(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """The report's arithmetic error: l1 and l2 of uint8 arrays that are left to wrap around."""
    difference = a - b
    return float(np.abs(difference).mean()), float((difference**2).mean())


def feature_losses(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Mean squared and mean absolute error of two feature maps (1, C, H, W)."""
    squared = absolute = 0.0
    for rows_a, rows_b in _row_chunks(a, b):
        difference = rows_a - rows_b
        squared += torch.linalg.vector_norm(difference).item() ** 2
        absolute += torch.linalg.vector_norm(difference, ord=1).item()
    return squared / a.numel(), absolute / a.numel()


def lpips_layer(a: Tensor, b: Tensor, head: Tensor) -> float:
    """What one layer adds to LPIPS (Zhang et al. 2018, equation 1).

    Maps are (1, C, H, W); `head` is the linear layer's C weights. eps keeps a feature of zero
    length at zero instead of NaN.
    """
    total, eps = 0.0, 1e-20
    for rows_a, rows_b in _row_chunks(a, b):
        unit_a = rows_a * rows_a.square().sum(1, keepdim=True).add_(eps).rsqrt_()
        unit_b = rows_b * rows_b.square().sum(1, keepdim=True).add_(eps).rsqrt_()
        total += torch.einsum("nchw,c->", (unit_a - unit_b).square_(), head).item()
    return total / (a.shape[2] * a.shape[3])


def _row_chunks(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """A few rows at a time of two maps (1, C, H, W), in float32."""
    rows = max(1, CHUNK_NUMBERS // (a.shape[1] * a.shape[3]))
    for rows_a, rows_b in zip(a.split(rows, dim=2), b.split(rows, dim=2), strict=True):
        yield rows_a.float(), rows_b.float()


def compare(
    network: VGG16Features,
    images: Mapping[Hashable, Tensor],
    pairs: Mapping[Hashable, tuple[Hashable, Hashable]],
    progress: Callable[[], object] = lambda: None,
) -> dict[Hashable, Losses]:
    """All losses of all pairs of images of one size, each image in one pass (see `lock_step`).

    Returns {key of a pair: {"l1", "l2", each of the network's layers (MSE), "lpips", "mae_" + each
    layer}}; "lpips" only where the network has LPIPS' heads.
    """
    zeros = dict.fromkeys([*network.layers, *(["lpips"] if network.lpips_heads else [])], 0.0)
    losses = {key: pixel_losses(images[a], images[b]) | zeros for key, (a, b) in pairs.items()}
    for key, tap, a, b in lock_step(network, images, pairs, progress):
        if tap in network.layers:
            losses[key][tap], losses[key][f"mae_{tap}"] = feature_losses(a, b)
        if tap in network.lpips_heads:
            losses[key]["lpips"] += lpips_layer(a, b, network.lpips_heads[tap].to(a.device))
        del a, b  # else these maps would live on through the next image's pass
    return losses
