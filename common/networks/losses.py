"""Losses between two images: of pixels, of VGG-16's feature maps, LPIPS and SSIM, in one registry.

    import torch; from common.networks.losses import pixel_losses
    image = torch.rand(3, 32, 32)
    print(pixel_losses(image, image.flip(-1)))

Images are float (3, H, W) in [0, 1]. A loss of `registry` takes the features of two images: the
dict of maps from `features_of`, with the image itself under "pixels". A calibrated loss is divided
by the mean loss between unrelated pictures: 0 means "the same", 1 "another picture".
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.networks.vgg import VGG16Features
from common.reporting.statistics import interval, resample_weights

Features = Mapping[str, Tensor]
Loss = Callable[[Features, Features], float]
CHUNK_NUMBERS = 2**18  # values of a map compared at a time; temporaries then stay in the cache


def registry(network: VGG16Features) -> dict[str, Loss]:
    """Every loss of the tables and figures: {name: function(features_a, features_b) -> number}.

    Squared differences are "l2", the network's layers, "lpips" (if it has heads) and "dssim" (1 -
    SSIM). Absolute differences are "l1" and "mae_" + layer.
    """
    heads = network.lpips_heads
    losses = {
        "l1": lambda a, b: pixel_losses(a["pixels"], b["pixels"])["l1"],
        "l2": lambda a, b: pixel_losses(a["pixels"], b["pixels"])["l2"],
        **{layer: lambda a, b, at=layer: mse(a[at], b[at]) for layer in network.layers},
        "lpips": lambda a, b: sum(lpips_layer(a[tap], b[tap], heads[tap]) for tap in heads),
        "dssim": lambda a, b: 1 - ssim(a["pixels"], b["pixels"]),
        **{f"mae_{layer}": lambda a, b, at=layer: mae(a[at], b[at]) for layer in network.layers},
    }
    if not heads:
        del losses["lpips"]
    return losses


def features_of(network: VGG16Features, image: Tensor) -> Features:
    """The features that the registry's losses take: the network's maps, and the image."""
    with torch.inference_mode():
        return {"pixels": image, **network(image)}


def pixel_losses(a: Tensor, b: Tensor) -> dict[str, float]:
    """Mean absolute and mean squared error of two images, {"l1", "l2"}, in 0-255 units."""
    difference = (a.double() - b.double()) * 255
    return {"l1": difference.abs().mean().item(), "l2": difference.square().mean().item()}


def psnr(l2: float) -> float:
    """Peak signal-to-noise ratio in dB from the MSE in 0-255 units; infinite for an MSE of 0."""
    return 10 * math.log10(255**2 / l2) if l2 > 0 else math.inf


def ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity of two images, with the 11 px window of Wang et al. 2004."""
    from skimage.metrics import structural_similarity  # slow to import, and only SSIM needs it

    how = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    return float(structural_similarity(a.numpy(), b.numpy(), channel_axis=0, **how))


def wrapped_uint8_losses(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """The report's wrong losses {"l1_uint8", "l2_uint8"}, from uint8 arrays that wrap around."""
    difference = a - b
    return {"l1_uint8": float(difference.mean()), "l2_uint8": float((difference**2).mean())}


def mse(a: Tensor, b: Tensor) -> float:
    """Mean squared difference of two feature maps (1, C, H, W)."""
    chunks = (torch.linalg.vector_norm(x - y).item() ** 2 for x, y in _row_chunks(a, b))
    return sum(chunks) / a.numel()


def mae(a: Tensor, b: Tensor) -> float:
    """Mean absolute difference of two feature maps (1, C, H, W)."""
    chunks = (torch.linalg.vector_norm(x - y, ord=1).item() for x, y in _row_chunks(a, b))
    return sum(chunks) / a.numel()


def lpips_layer(a: Tensor, b: Tensor, head: Tensor) -> float:
    """What one layer adds to LPIPS (Zhang et al. 2018, equation 1).

    Maps are (1, C, H, W); `head` is the linear layer's C weights. eps keeps a feature of zero
    length at zero instead of NaN.
    """
    total, eps, head = 0.0, 1e-20, head.to(a.device)
    for rows_a, rows_b in _row_chunks(a, b):
        unit_a = rows_a * rows_a.square().sum(1, keepdim=True).add_(eps).rsqrt_()
        unit_b = rows_b * rows_b.square().sum(1, keepdim=True).add_(eps).rsqrt_()
        total += torch.einsum("nchw,c->", (unit_a - unit_b).square_(), head).item()
    return total / (a.shape[2] * a.shape[3])


def _row_chunks(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the same few rows of two maps (1, C, H, W) at a time, in float32."""
    rows = max(1, CHUNK_NUMBERS // (a.shape[1] * a.shape[3]))
    for rows_a, rows_b in zip(a.split(rows, dim=2), b.split(rows, dim=2), strict=True):
        yield rows_a.float(), rows_b.float()


def compare(
    losses: Mapping[str, Loss],
    features: Callable[[Tensor], Features],
    images: Mapping[Hashable, Tensor],
    pairs: Iterable[tuple[Hashable, Hashable]],
    known: Mapping[Hashable, Features] | None = None,
) -> dict[tuple, dict[str, float]]:
    """All losses of all pairs of images: {pair: {loss: value}}.

    A pair is two names of `images`; `known` has the features of some images. Other features are
    kept from an image's first pair to its last, so put the pairs of an image next to each other.
    """
    pairs, held, values = list(dict.fromkeys(pairs)), dict(known or {}), {}
    due = Counter(name for pair in pairs for name in pair)
    for pair in pairs:
        for name in pair:
            if name not in held:
                held[name] = features(images[name])
        a, b = (held[name] for name in pair)
        values[pair] = {name: float(loss(a, b)) for name, loss in losses.items()}
        due.subtract(pair)
        held = {name: maps for name, maps in held.items() if due[name] > 0}
    return values


@dataclass(eq=False)
class Calibrated:
    """Raw losses of pairs of copies of pictures, and their ratios to losses of unrelated pictures.

    raw: (pictures, pairs, losses). unrelated: (M, losses), losses between unrelated pictures.
    others: the indexes of the two pictures of each of the M; the second is None for a reference
    that is not among the pictures.
    relative: (pairs, losses), the mean raw loss over the mean unrelated loss. resampled: the same
    for each resample of the pictures, (resamples, pairs, losses), with its own unrelated losses.
    """

    pairs: list[str]
    losses: list[str]
    raw: np.ndarray
    unrelated: np.ndarray
    others: Sequence[tuple[int, int | None]]

    def __post_init__(self):
        yardstick = self.unrelated.mean(0)
        for loss, value in zip(self.losses, yardstick, strict=True):
            if not value > 0:
                raise UserError(
                    f"{loss} is {value:g} between unrelated pictures, so it cannot be calibrated;"
                    " give other reference pictures or other weights"
                )
        self.relative = self.raw.mean(0) / yardstick

    @cached_property
    def resampled(self) -> np.ndarray:
        weights = resample_weights(len(self.raw))
        between = np.ones((len(weights), len(self.others)))
        for column, (a, b) in enumerate(self.others):
            between[:, column] = weights[:, a] * (1 if b is None else weights[:, b])
        # A resample without an unrelated pair (one of two pictures twice, say) uses all of them.
        between[between.sum(1) == 0] = 1
        yardstick = between @ self.unrelated / between.sum(1, keepdims=True)
        return np.einsum("bn,npl->bpl", weights, self.raw) / yardstick[:, None]

    def row(self, pair: str, loss: str) -> dict[str, float]:
        """{"raw", "relative", "low", "high"}: means over pictures, and relative's interval."""
        place = self.pairs.index(pair), self.losses.index(loss)
        means = {"raw": float(self.raw.mean(0)[place]), "relative": float(self.relative[place])}
        return means | interval(self.resampled[:, place[0], place[1]])

    def rows(self, pair: str) -> dict[str, dict[str, float]]:
        """{loss: its `row`} of one pair."""
        return {loss: self.row(pair, loss) for loss in self.losses}

    def curves(self, pairs: Sequence[str], loss: str) -> np.ndarray:
        """A loss of pairs, such as doses: relative first, then resampled (1 + resamples, pairs)."""
        places, loss_place = [self.pairs.index(pair) for pair in pairs], self.losses.index(loss)
        both = self.relative[None], self.resampled
        return np.concatenate([values[:, places, loss_place] for values in both])
