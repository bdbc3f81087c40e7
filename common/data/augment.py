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
    every process of a job.
    """

    def __init__(
        self, seed: int, purpose: int, epoch: int, step: int, images: int, device: torch.device
    ):
        self.key, self.images, self.device = (seed, purpose, epoch, step), images, device
        self.generator = streams.generator(*self.key)

    def another(self, purpose: int) -> "Draws":
        """All images' draws in the same step for another purpose, from a stream of its own."""
        seed, _, epoch, step = self.key
        return Draws(seed, purpose, epoch, step, self.images, self.device)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform numbers in [low, high), float32 (images, *shape), on the images' device."""
        drawn = torch.rand(self.images, *shape, generator=self.generator)
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

    def vary(self, images: Tensor, crops: Tensor, size_px: int, draws: Draws) -> Tensor:
        """Cut crops out of packed uint8 images, jitter each by its own draws, RandAugment if on.

        Returns float32 (N, 3, size_px, size_px) in [0, 1].
        """
        varied = colour_jitter(cut_out(to_float(images), crops, size_px), self.jitter, draws)
        return rand_augment(varied, self.randaugment, draws) if self.randaugment else varied

    def mix(self, varied: Tensor, targets: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Apply CutMix to the varied images and their targets, then the block if any.

        Returns the images, and `cutmix`'s targets and pasted pixels.
        """
        varied, targets, pasted = cutmix(varied, targets, self.cutmix_prob, draws)
        if self.block:
            varied = self.block(varied, draws)
        return varied.contiguous(memory_format=torch.channels_last), targets, pasted


def to_float(images: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1]."""
    return images.float().div_(255)


def centre_square(images: Tensor, size_px: int) -> Tensor:
    """The central square of packed images (N, 3, S, S), uint8, as float32 in [0, 1]."""
    start = (images.shape[-1] - size_px) // 2
    return to_float(images[..., start : start + size_px, start : start + size_px])


def random_crops(area_min: float, draws: Draws) -> Tensor:
    """A random crop for each image, mirrored half the time, as `affine_grid` takes it: (N, 2, 3).

    The crop's area is uniform in [area_min, 1], its aspect ratio log-uniform in [3/4, 4/3] (Szegedy
    et al. 2015, section 6), if both sides fit.
    """
    area = draws.uniform(area_min, 1)
    root_ratio = torch.exp(draws.uniform(-0.5, 0.5) * math.log(4 / 3))
    width = (area.sqrt() * root_ratio).clamp(max=1)
    height = (area.sqrt() / root_ratio).clamp(max=1)
    centre = draws.uniform(-1, 1, 2)
    mirror = torch.where(draws.uniform(0, 1) < 0.5, -1.0, 1.0)
    theta = area.new_zeros(len(area), 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = width * mirror, centre[:, 0] * (1 - width)
    theta[:, 1, 1], theta[:, 1, 2] = height, centre[:, 1] * (1 - height)
    return theta


def cut_out(images: Tensor, crops: Tensor, size_px: int) -> Tensor:
    """Crops of float images (N, 3, S, S), scaled to `size_px` and mirrored in one bilinear pass."""
    grid = functional.affine_grid(crops, [len(images), 3, size_px, size_px], align_corners=False)
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


def rand_augment(images: Tensor, magnitude: float, draws: Draws) -> Tensor:
    """torchvision's RandAugment: two random operations on each float image (Cubuk et al. 2020).

    The magnitude, 0 to 10, is rounded. Moved images are filled with black. torchvision has the same
    operations for all images of a batch, so they go one by one.
    """
    from torchvision.transforms.v2 import RandAugment  # most runs don't need it

    operations = RandAugment(magnitude=round(magnitude), num_magnitude_bins=11)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(streams.mixed_seed(*draws.key, 2))
        return torch.stack([operations(image) for image in images]).clamp_(0, 1)


def cutmix(
    images: Tensor, targets: Tensor, prob: float, draws: Draws
) -> tuple[Tensor, Tensor, Tensor]:
    """Give each image, with probability `prob`, a rectangle of the image before it in the batch.

    The rectangle's share of the area is uniform in [0, 1] before it is cut at the border. The
    targets (N, classes) are mixed by the area that remains (Yun et al. 2019, section 3.1). Returns
    images, targets and which pixels were pasted, bool (N, 1, H, W).
    """
    height, width = images.shape[2:]
    area = draws.uniform(0, 1)
    area = torch.where(draws.uniform(0, 1) < prob, area, 0)
    centre = draws.uniform(0, 1, 2)
    inside_y = _inside(centre[:, 0], area.sqrt(), height)
    inside_x = _inside(centre[:, 1], area.sqrt(), width)
    pasted = (inside_y[:, :, None] & inside_x[:, None, :]).unsqueeze(1)
    mixed = torch.where(pasted, images.roll(1, dims=0), images)
    mixed_area = pasted.float().mean(dim=(1, 2, 3)).unsqueeze(1)
    return mixed, torch.lerp(targets, targets.roll(1, dims=0), mixed_area), pasted


def mix_maps(maps: Tensor, pasted: Tensor) -> Tensor:
    """Mix maps (N, C, h, w) of a batch's images by the share of each cell that was pasted."""
    shares = functional.adaptive_avg_pool2d(pasted.float(), maps.shape[2:])
    return torch.lerp(maps, maps.roll(1, dims=0), shares)


def _inside(centre: Tensor, length: Tensor, size_px: int) -> Tensor:
    """Bool (N, size_px): is a pixel's middle within `length / 2` of `centre`, as fractions of 1?"""
    pixels = (torch.arange(size_px, device=centre.device) + 0.5) / size_px
    return (pixels[None] - centre[:, None]).abs() < length[:, None] / 2
