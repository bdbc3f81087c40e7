"""Shifted and noisy pictures, and five distortions with the same pixel loss (l2) as a shift.

    from common.data.images import embedded_photos
    from common.networks.distortions import rank_losses
    print(rank_losses({"mine": lambda a, b: (a - b).norm()}, list(embedded_photos().values())[:2]))

Images are float (3, H, W) in [0, 1]; sigma and l2 (mean squared error) are in 0-255 units.
"""

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.data.images import to_tensor, to_uint8
from common.data.streams import generator
from common.networks.losses import pixel_losses
from common.reporting.statistics import interval, resample_weights

BISECTIONS = 10


def translate(image: Tensor, shift_px: float, edge: str) -> tuple[Tensor, Tensor]:
    """The image, and its copy moved `shift_px` to the left, cut to the columns to compare.

    A shift by whole pixels is exact; a fraction uses band-limited (Fourier) interpolation. `edge`:
    "crop" keeps the columns that both have (width - ceil(shift_px)), "replicate" repeats the last
    column, "wrap" continues with the first columns.
    """
    width = image.shape[-1]
    whole_px = int(shift_px)
    moved = _move_by_fraction(image, shift_px - whole_px, periodic=edge == "wrap")
    columns = torch.arange(width) + whole_px
    if edge == "wrap":
        columns %= width
    elif edge == "replicate":
        columns.clamp_(max=width - 1)
    else:
        columns = columns[: width - math.ceil(shift_px)]
    return image[..., : len(columns)], moved[..., columns]


def _move_by_fraction(image: Tensor, fraction_px: float, periodic: bool) -> Tensor:
    if fraction_px == 0:
        return image
    # A row and its mirror image join without a step; a step would ring over the whole row.
    row = image if periodic else torch.cat([image, image.flip(-1)], dim=-1)
    frequencies = torch.fft.rfftfreq(row.shape[-1], dtype=torch.float64)
    phase = torch.polar(torch.ones_like(frequencies), 2 * math.pi * fraction_px * frequencies)
    moved = torch.fft.irfft(torch.fft.rfft(row.double()) * phase, n=row.shape[-1])
    return moved[..., : image.shape[-1]].clamp(0, 1).to(image.dtype)


def unit_noise(shape: torch.Size, *key: int) -> Tensor:
    """Standard normal noise that depends on `key` alone, e.g. (seed, photo, draw)."""
    return torch.randn(shape, generator=generator(*key))


def add_noise(image: Tensor, sigma: float, noise: Tensor) -> tuple[Tensor, float]:
    """The image plus noise of deviation `sigma`, clipped to [0, 1], and the share clipped."""
    noisy = image + noise * (sigma / 255)
    clipped = noisy.clamp(0, 1)
    return clipped, (noisy != clipped).float().mean().item()


def blur(image: Tensor, sigma_px: float, _: Tensor) -> Tensor:
    from scipy.ndimage import gaussian_filter  # slow to import

    return torch.from_numpy(gaussian_filter(image.numpy(), sigma_px, axes=(1, 2)))


def jpeg(image: Tensor, roughness: float, _: Tensor) -> Tensor:
    """The image after JPEG compression at quality 100 - roughness, rounded (1 to 100)."""
    file = io.BytesIO()
    Image.fromarray(to_uint8(image)).save(file, "JPEG", quality=round(100 - roughness))
    return to_tensor(np.array(Image.open(file)))


# {name: (function(image, strength, unit noise), the largest strength)}. Strength 0 changes nothing
# (JPEG: little), and the pixel loss grows with the strength.
DISTORTIONS: dict[str, tuple[Callable[[Tensor, float, Tensor], Tensor], float]] = {
    "noise": (lambda image, sigma, noise: add_noise(image, sigma, noise)[0], 200),
    "blur": (blur, 10),
    "JPEG": (jpeg, 99),
    "brightness": (lambda image, share, _: (image + share).clamp(0, 1), 1),
    "contrast": (lambda image, share, _: image + share * (image.mean() - image), 1),
}


def distorted(image: Tensor, l2: float, noise: Tensor) -> dict[str, Tensor]:
    """The image under each of DISTORTIONS, at a pixel loss of about `l2` (MSE in 0-255 units).

    Bisection finds the strength. As JPEG has only a hundred qualities, the difference from the
    image is then scaled: its loss is exactly `l2`, except where values are clipped.
    """
    copies = {}
    for name, (distort, most) in DISTORTIONS.items():
        low, high = 0.0, float(most)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            costs = pixel_losses(image, distort(image, middle, noise))["l2"]
            low, high = (low, middle) if costs > l2 else (middle, high)
        copy = distort(image, high, noise)
        scale = math.sqrt(l2 / max(pixel_losses(image, copy)["l2"], 1e-12))
        copies[name] = (image + scale * (copy - image)).clamp(0, 1)
    return copies


def rank_losses(losses: Mapping[str, Callable], images: Iterable[np.ndarray]) -> dict[str, dict]:
    """Rank losses: the best forgive a one-pixel shift but see distortions of equal pixel loss.

    `losses` is {name: function(a, b) -> number} of two images, float (3, H, W - 1) in [0, 1].
    `images` are uint8 (H, W, 3), any sizes. Returns as `ranking`.
    """
    raw = []
    for number, image in enumerate(images):
        original, moved = translate(to_tensor(image), 1, "crop")
        noise = unit_noise(original.shape, 0, number, 0)
        copies = distorted(original, pixel_losses(original, moved)["l2"], noise).values()
        raw.append([[float(f(original, c)) for f in losses.values()] for c in (moved, *copies)])
    return ranking(list(losses), np.array(raw))


def ranking(losses: Sequence[str], raw: np.ndarray) -> dict[str, dict]:
    """Rank losses by what distortions cost them, relative to a shift of equal pixel loss.

    `raw` is (pictures, 6, losses): the shift's losses, then those of DISTORTIONS in their order.
    Returns, best first, {loss: {"mean", "low", "high", "ratios": {distortion: {"mean", "low",
    "high"}}}}. A ratio is a distortion's loss over the shift's; its "mean" is the geometric mean
    over pictures. The outer "mean" is the geometric mean of all five ratios. The pixels' l2 has
    ratios of 1. "low" and "high" are 95 % intervals, by a bootstrap over pictures.
    """
    logs = np.log(np.maximum(raw, 1e-12))
    ratios = logs[:, 1:] - logs[:, :1]
    weights, table = resample_weights(len(raw)), {}
    for place, loss in enumerate(losses):
        of_loss = np.column_stack([ratios[..., place], ratios[..., place].mean(1)])
        means, ends = np.exp(of_loss.mean(0)), interval(np.exp(weights @ of_loss))
        *rows, whole = (
            {"mean": mean, "low": low, "high": high}
            for mean, low, high in zip(means.tolist(), *ends.values(), strict=True)
        )
        table[loss] = whole | {"ratios": dict(zip(DISTORTIONS, rows, strict=True))}
    return dict(sorted(table.items(), key=lambda item: -item[1]["mean"]))
