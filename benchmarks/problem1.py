"""Benchmarks of Problem 1's losses against the usual ways, which compute the same numbers."""

import warnings
from collections.abc import Iterator
from functools import partial

import lpips
import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from benchmarks import photos
from benchmarks.bench import NO_BF16, PEAK, Machine, Ways, bench, forward_flops
from common.data.images import IMAGENET_MEAN, IMAGENET_STD, to_tensor
from common.data.streams import generator
from common.networks.losses import compare, features_of, registry
from common.networks.vgg import LAYERS, VGG16Features, layer_name
from common.networks.weights import Weights, load_vgg16

LAYER_NAMES = [layer_name(number) for number in ("4", "9", "12", "30")]  # the report's
SIGMA = 25  # of the noise, in 0-255 units
# Five of the six pairs that the report's four images form.
PAIRS = [("a", "b"), ("a", "noisy a"), ("b", "noisy b"), ("a", "noisy b"), ("noisy a", "noisy b")]
TRUNCATED, LPIPS = "a truncated VGG-16 a layer, a pass a pair", "the lpips package"
WITHIN = 0.02  # the relative error that bf16 may cause in LPIPS


def four_images(photo: np.ndarray) -> dict[str, Tensor]:
    """The report's four images of a photo: as it is, shifted by one pixel, noisy, and both."""
    image = to_tensor(photo)
    noise = torch.randn(image[..., 1:].shape, generator=generator(0)) * (SIGMA / 255)
    a, b = image[..., :-1].contiguous(), image[..., 1:].contiguous()
    return {"a": a, "b": b, "noisy a": (a + noise).clamp(0, 1), "noisy b": (b + noise).clamp(0, 1)}


def all_pairs(network: VGG16Features, sets: list[dict[str, Tensor]]) -> list[dict]:
    """All losses of the five pairs of every set of four images."""
    features = partial(features_of, network)
    # Only losses that the peers compute too.
    losses = {name: loss for name, loss in registry(network).items() if name not in ("l1", "dssim")}
    found = (compare(losses, features, images, PAIRS) for images in sets)
    return [row for rows in found for row in rows.values()]


@torch.inference_mode()
def truncated_pairs(layers: nn.Sequential, images: dict[str, Tensor]) -> list[dict]:
    """Losses by one truncated network per layer, run again for each image of each pair."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    losses = []
    for pair in PAIRS:
        losses.append({})
        for name in LAYER_NAMES:
            truncated = layers[: LAYERS[name].number]
            map_a, map_b = (truncated(((images[key] - mean) / std)[None]) for key in pair)
            losses[-1][name] = nn.functional.mse_loss(map_a, map_b).item()
    return losses


def four_layers(width: int, height: int) -> Ways:
    """Our way and truncated networks on a photo; both are checked to agree."""
    weights = load_vgg16("auto", 0, want_lpips=False)
    network, layers = VGG16Features(weights, LAYER_NAMES), make_layers(cfgs["D"])
    layers.load_state_dict(weights.features)
    images = four_images(*photos.parts(1, width, height))
    assert_equal(all_pairs(network, [images]), truncated_pairs(layers, images), LAYER_NAMES)
    operations = len(images) * forward_flops(make_layers(cfgs["D"])[:30], 1, 3, height, width - 1)
    return Ways(
        partial(all_pairs, network, [images]),
        {TRUNCATED: partial(truncated_pairs, layers, images)},
        work=operations,
        peak="fp32 convolution",
        warm_ups=0,  # the check was a warm-up
    )


def assert_equal(ours: list[dict], theirs: list[dict], names: list[str], within=1e-4) -> float:
    """Check losses, pair by pair; returns the largest relative difference."""
    numbers = [np.array([[pair[name] for name in names] for pair in way]) for way in (ours, theirs)]
    np.testing.assert_allclose(*numbers, rtol=within)
    return float(np.abs(numbers[0] / numbers[1] - 1).max())


WANTED = {TRUNCATED: 6, PEAK: 0.85}


@bench("losses-450", "P1: losses at four layers, five pairs of 450 x 300 px", WANTED)
def losses_450(machine: Machine) -> Iterator[Ways]:
    yield four_layers(machine.size(451, 33), machine.size(300, 32))


@bench("losses-1920", "P1: the same of a band of 1,920 x 160 px", WANTED)
def losses_1920(machine: Machine) -> Iterator[Ways]:
    yield four_layers(machine.size(1921, 65), machine.size(160, 32))


def lpips_ways(machine: Machine, dtype: torch.dtype, within: float) -> Ways:
    """LPIPS of five pairs of each of ten photos, ours in `dtype`; both are checked to agree."""
    weights, side_px = load_vgg16("auto", 0), machine.size(160, 32)
    network, package = VGG16Features(weights, [], dtype), lpips_package(weights)
    sets = [four_images(photo) for photo in photos.parts(machine.size(10, 2), side_px, side_px)]

    def theirs() -> list[dict]:
        with torch.inference_mode():
            pairs = [(images[a][None], images[b][None]) for images in sets for a, b in PAIRS]
            return [{"lpips": package(a, b, normalize=True).item()} for a, b in pairs]

    off = assert_equal(all_pairs(network, sets), theirs(), ["lpips"], within)
    return Ways(
        partial(all_pairs, network, sets),
        {LPIPS: theirs},
        warm_ups=0,
        about={"largest_relative_difference": off},
    )


def lpips_package(weights: Weights) -> lpips.LPIPS:
    """The lpips package's network, with these weights."""
    with warnings.catch_warnings(action="ignore"):  # it calls torchvision the old way
        package = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    names = package.net.state_dict()
    package.net.load_state_dict(dict(zip(names, weights.features.values(), strict=True)))
    return package


@bench("lpips", "P1: LPIPS of 50 pairs, fp32", {LPIPS: 3.3})
def lpips_fp32(machine: Machine) -> Iterator[Ways]:
    yield lpips_ways(machine, torch.float32, 1e-4)


@bench("lpips-bf16", "P1: LPIPS of 50 pairs, ours in bf16, within 2 %", {LPIPS: 4})
def lpips_bf16(machine: Machine) -> Iterator[Ways | str]:
    is_fast = machine.kind == "bf16"
    yield lpips_ways(machine, torch.bfloat16, WITHIN) if is_fast else NO_BF16
