"""The pointing game on drawn flowers: how often a network's Grad-CAM peak lies on the flower."""

import torch
from torch import Tensor

from common.data.images import centre_crop
from common.data.packed import Packed
from common.networks import gradcam
from common.networks.normalized import Normalized
from common.training.runs import Setup


def see(setup: Setup, network: Normalized, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """A network's predictions and its Grad-CAM maps at --layer, as `gradcam.see`."""
    network = network.to(setup.device).eval()
    layer = network.network.get_submodule(setup.args.layer)
    return gradcam.see(network, layer, images, labels)


def play_pointing_game(setup: Setup, rows: Tensor, seen: dict[str, dict]) -> dict[str, float]:
    """Play it on the flowers' masks of test images: per cent of maps by network, and controls.

    `rows` are the images' indexes, `seen` what `see` says of them by network. "chance" is a random
    pixel, "centre" the middle one.
    """
    size_px, test = setup.args.image_size, setup.packed["test"]
    masks = torch.stack([flower_mask(test, int(row), size_px) for row in rows])
    game = {name: gradcam.pointing_game(made["predicted"], masks) for name, made in seen.items()}
    controls = {"chance": masks, "centre": masks[:, size_px // 2, size_px // 2]}
    return game | {name: 100 * hit.float().mean().item() for name, hit in controls.items()}


def flower_mask(test: Packed, row: int, size_px: int) -> Tensor:
    """Bool (size_px, size_px): the drawn flower in the square that the network sees."""
    side_px = test.images.shape[1]
    mask = torch.from_numpy(test.source.flower(int(test.rows[row]), side_px).mask.copy())
    return centre_crop(centre_crop(mask[None], side_px, side_px), size_px, size_px)[0]
