"""Losses between two images: of pixels, of feature maps, and LPIPS.

    import torch; from common.networks.losses import pixel_losses
    original = torch.rand(3, 32, 32)
    pixel_losses(original, original.flip(-1))
"""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from common.networks.vgg import VGG16Features, lock_step

Losses = dict[str, float]


def pixel_losses(a: Tensor, b: Tensor) -> Losses:
    """l1 (mean absolute error) and l2 (mean squared error) of images in [0, 1], in 0-255 units."""
    difference = (a.double() - b.double()) * 255
    return {"l1": difference.abs().mean().item(), "l2": difference.square().mean().item()}


def psnr(l2: float) -> float:
    """Peak signal-to-noise ratio in dB from the MSE in 0-255 units; infinite where that is 0."""
    return 10 * math.log10(255**2 / l2) if l2 > 0 else math.inf


def ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity of (3, H, W) images in [0, 1], with the window of Wang et al. 2004."""
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(
        structural_similarity(a.numpy(), b.numpy(), channel_axis=0, data_range=1, **window)
    )


def wrapped_uint8_losses(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """The report's arithmetic error: l1 and l2 of uint8 arrays that are left to wrap around."""
    difference = a - b
    return float(np.abs(difference).mean()), float((difference**2).mean())


def _row_chunks(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of two maps in float32, a few at a time so that temporaries stay in the cache."""
    rows = max(1, 2**18 // (a.shape[1] * a.shape[3]))
    for part_a, part_b in zip(a.split(rows, dim=2), b.split(rows, dim=2), strict=True):
        yield part_a.float(), part_b.float()


def feature_losses(a: Tensor, b: Tensor) -> tuple[float, float]:
    """MSE and MAE of two feature maps (1, C, H, W)."""
    squared = absolute = 0.0
    for part_a, part_b in _row_chunks(a, b):
        difference = part_a - part_b
        squared += torch.linalg.vector_norm(difference).item() ** 2
        absolute += torch.linalg.vector_norm(difference, ord=1).item()
    return squared / a.numel(), absolute / a.numel()


def lpips_layer(a: Tensor, b: Tensor, head: Tensor) -> float:
    """One layer's share of LPIPS (Zhang et al. 2018, equation 1).

    Maps are (1, C, H, W); `head` is the linear layer's C weights. eps keeps a feature of zero
    length at zero instead of NaN.
    """
    total, eps = 0.0, 1e-20
    for part_a, part_b in _row_chunks(a, b):
        unit_a = part_a * part_a.square().sum(1, keepdim=True).add_(eps).rsqrt_()
        unit_b = part_b * part_b.square().sum(1, keepdim=True).add_(eps).rsqrt_()
        total += torch.einsum("nchw,c->", (unit_a - unit_b).square_(), head).item()
    return total / (a.shape[2] * a.shape[3])


def compare(
    network: VGG16Features,
    images: Mapping[Hashable, Tensor],
    pairs: Mapping[Hashable, tuple[Hashable, Hashable]],
    progress: Callable[[], object] = lambda: None,
) -> dict[Hashable, Losses]:
    """All losses of all pairs of (3, H, W) images, each image in one pass (see `lock_step`).

    Returns {key: {"l1", "l2", each of the network's layers (MSE), "lpips", "mae_" + layer}};
    "lpips" only where the network has LPIPS' heads.
    """
    losses = {key: pixel_losses(images[a], images[b]) for key, (a, b) in pairs.items()}
    for one in losses.values():
        one |= dict.fromkeys(network.layers, 0.0)
        if network.lpips_heads:
            one["lpips"] = 0.0
    for key, tap, a, b in lock_step(network, images, pairs, progress):
        if tap in network.layers:
            losses[key][tap], losses[key][f"mae_{tap}"] = feature_losses(a, b)
        if tap in network.lpips_heads:
            losses[key]["lpips"] += lpips_layer(a, b, network.lpips_heads[tap].to(a.device))
        del a, b  # else these maps would live on through the next image's pass
    return losses
