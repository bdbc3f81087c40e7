"""Augmentation of whole batches on their device: crop, mirror, jitter and mix, drawn per image."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from common.data import streams

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class Draws:
    """Random parameters for the images of one step and one purpose, such as `streams.AUGMENT`.

    They are drawn on the CPU for the whole batch, so that they are the same on every device and in
    every process of a job. `rows` selects the images whose draws are returned.
    """

    def __init__(
        self,
        seed: int,
        purpose: int,
        epoch: int,
        step: int,
        images: int,
        device: torch.device,
        rows: Tensor | slice = slice(None),
    ):
        self.key, self.images = (seed, purpose, epoch, step), images
        self.device, self.rows = device, rows
        self.generator = streams.generator(*self.key)

    def another(self, purpose: int) -> "Draws":
        """All images' draws in the same step for another purpose, from a stream of its own."""
        seed, _, epoch, step = self.key
        return Draws(seed, purpose, epoch, step, self.images, self.device)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform numbers in [low, high), float32 (wanted rows, *shape), on the images' device."""
        drawn = torch.rand(self.images, *shape, generator=self.generator)[self.rows]
        return drawn.mul_(high - low).add_(low).to(self.device, non_blocking=True)

    def on_device(self) -> torch.Generator:
        """A new generator on the images' device, for draws per pixel, with a stream of its own."""
        return streams.generator(*self.key, 1, device=self.device)


@dataclass(frozen=True)
class Augmentation:
    """How training batches are varied.

    `crop_area_min` is a fraction of the packed image's area, `jitter` the largest relative change
    of brightness, contrast and saturation, `cutmix_prob` a probability per image. `block` is a
    problem's own transform, a dataclass called with images and draws; images keep their shape.
    """

    crop_area_min: float = 0.25
    jitter: float = 0.3
    cutmix_prob: float = 0.5
    block: Callable[[Tensor, Draws], Tensor] | None = None
    randaugment: float = 0.0  # magnitude, 0 to 10; 0: none

    def vary(self, images: Tensor, size_px: int, draws: Draws) -> Tensor:
        """Crop, mirror and jitter packed uint8 images, each by its own draws; RandAugment if on.

        Returns float32 (N, 3, size_px, size_px) in [0, 1].
        """
        varied = random_resized_crop(to_float(images), size_px, self.crop_area_min, draws)
        varied = colour_jitter(varied, self.jitter, draws)
        return rand_augment(varied, self.randaugment, draws) if self.randaugment else varied

    def mix(self, varied: Tensor, targets: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Apply CutMix to the varied images and their targets (N, any), then the block if any."""
        varied, targets = cutmix(varied, targets, self.cutmix_prob, draws)
        if self.block:
            varied = self.block(varied, draws)
        return varied.contiguous(memory_format=torch.channels_last), targets


def to_float(images: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1]."""
    return images.float().div_(255)


def centre_square(images: Tensor, size_px: int) -> Tensor:
    """The central square of packed images (N, 3, S, S), uint8, as float32 in [0, 1]."""
    start = (images.shape[-1] - size_px) // 2
    return to_float(images[..., start : start + size_px, start : start + size_px])


def random_resized_crop(images: Tensor, size_px: int, area_min: float, draws: Draws) -> Tensor:
    """A random crop of each float image (N, 3, S, S), scaled to `size_px`, mirrored half the time.

    The crop's area is uniform in [area_min, 1], its aspect ratio log-uniform in [3/4, 4/3] (Szegedy
    et al. 2015, section 6), if both sides fit. One bilinear pass crops, scales and mirrors.
    """
    area = draws.uniform(area_min, 1)
    root_ratio = torch.exp(draws.uniform(-0.5, 0.5) * math.log(4 / 3))
    width = (area.sqrt() * root_ratio).clamp(max=1)
    height = (area.sqrt() / root_ratio).clamp(max=1)
    centre = draws.uniform(-1, 1, 2)
    mirror = torch.where(draws.uniform(0, 1) < 0.5, -1.0, 1.0)
    theta = images.new_zeros(len(images), 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = width * mirror, centre[:, 0] * (1 - width)
    theta[:, 1, 1], theta[:, 1, 2] = height, centre[:, 1] * (1 - height)
    grid = functional.affine_grid(theta, [len(images), 3, size_px, size_px], align_corners=False)
    # The kernel for contiguous input is the fast one on a CPU.
    return functional.grid_sample(
        images.contiguous(), grid, padding_mode="border", align_corners=False
    )


def colour_jitter(images: Tensor, strength: float, draws: Draws) -> Tensor:
    """Multiply brightness, contrast and saturation of float images by factors in 1 +- `strength`.

    This is torchvision's ColorJitter in that order, but clipped to [0, 1] only once, at the end.
    """
    brightness, contrast, saturation = (
        draws.uniform(1 - strength, 1 + strength, 1, 1, 1) for _ in range(3)
    )
    luma = images.new_tensor(LUMA).view(3, 1, 1)
    images = images * brightness
    grey_mean = (images * luma).sum(dim=1, keepdim=True).mean(dim=(2, 3), keepdim=True)
    images = torch.lerp(grey_mean.expand_as(images), images, contrast)
    grey = (images * luma).sum(dim=1, keepdim=True)
    return torch.lerp(grey.expand_as(images), images, saturation).clamp_(0, 1)


SHIFTS = ("rotate", "shear x", "shear y", "translate x", "translate y")
TINTS = ("brightness", "contrast", "saturation", "sharpness")
OPERATIONS = ("identity", *SHIFTS, *TINTS, "posterize", "solarize")


def rand_augment(images: Tensor, magnitude: float, draws: Draws) -> Tensor:
    """Apply two random operations to each float image, of magnitude 0 to 10 (Cubuk et al. 2020).

    The ranges are torchvision's: 30 degrees, shear 0.3, shift 0.45, colours 0.9, 4 bits. Its
    autocontrast and equalize are left out. The whole batch goes through every kind of operation.
    """
    for _ in range(2):
        chosen = draws.uniform(0, len(OPERATIONS)).long()
        signs = torch.where(draws.uniform(0, 1) < 0.5, -1.0, 1.0)
        amounts = {
            name: signs * (chosen == k) * magnitude / 10 for k, name in enumerate(OPERATIONS)
        }
        images = _tinted(_shifted(images, amounts), amounts)
    return images


def _shifted(images: Tensor, amounts: dict[str, Tensor]) -> Tensor:
    """Rotate, shear or move each image by its amounts; fill the empty parts with grey."""
    angle = amounts["rotate"] * math.pi / 6
    theta = images.new_zeros(len(images), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = angle.cos()
    theta[:, 0, 1] = 0.3 * amounts["shear x"] - angle.sin()
    theta[:, 1, 0] = 0.3 * amounts["shear y"] + angle.sin()
    for row, axis in enumerate("xy"):
        theta[:, row, 2] = 2 * 0.45 * amounts[f"translate {axis}"]
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images.contiguous() - 0.5, grid, align_corners=False) + 0.5
    is_shifted = sum(amounts[name] for name in SHIFTS) != 0
    return torch.where(is_shifted[:, None, None, None], moved, images)


def _tinted(images: Tensor, amounts: dict[str, Tensor]) -> Tensor:
    """Apply TINTS (moves away from black, mean grey, grey or a blur), posterize and solarize."""
    amounts = {name: amount[:, None, None, None] for name, amount in amounts.items()}
    grey = (images * images.new_tensor(LUMA).view(3, 1, 1)).sum(dim=1, keepdim=True)
    blurred = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), "replicate"), 3, stride=1)
    away_from = (0, grey.mean(dim=(2, 3), keepdim=True), grey, blurred)
    tinted = images
    for name, origin in zip(TINTS, away_from, strict=True):
        tinted = tinted + 0.9 * amounts[name] * (images - origin)
    levels = 2 ** (8 - 4 * amounts["posterize"].abs()).round()
    posterized = (tinted * 255 * levels / 256).floor() * 256 / levels / 255
    tinted = torch.where(amounts["posterize"] != 0, posterized, tinted)
    limit = 1 - amounts["solarize"].abs()
    tinted = torch.where((amounts["solarize"] != 0) & (tinted >= limit), 1 - tinted, tinted)
    return tinted.clamp(0, 1)


def cutmix(images: Tensor, targets: Tensor, prob: float, draws: Draws) -> tuple[Tensor, Tensor]:
    """Give each image, with probability `prob`, a rectangle of the image before it in the batch.

    The rectangle's share of the area is uniform in [0, 1] before it is cut at the border. The
    targets (N, classes) are mixed by the area that remains (Yun et al. 2019, section 3.1).
    """
    height, width = images.shape[2:]
    area = draws.uniform(0, 1)
    area = torch.where(draws.uniform(0, 1) < prob, area, 0)
    centre = draws.uniform(0, 1, 2)
    inside_y = _inside(centre[:, 0], area.sqrt(), height)
    inside_x = _inside(centre[:, 1], area.sqrt(), width)
    inside = (inside_y[:, :, None] & inside_x[:, None, :]).unsqueeze(1)
    mixed = torch.where(inside, images.roll(1, dims=0), images)
    mixed_area = inside.float().mean(dim=(1, 2, 3)).unsqueeze(1)
    return mixed, torch.lerp(targets, targets.roll(1, dims=0), mixed_area)


def _inside(centre: Tensor, length: Tensor, size_px: int) -> Tensor:
    """Bool (N, size_px): is a pixel's middle within `length / 2` of `centre`, as fractions of 1?"""
    pixels = (torch.arange(size_px, device=centre.device) + 0.5) / size_px
    return (pixels[None] - centre[:, None]).abs() < length[:, None] / 2
