"""A teacher: VGG-16's features of each place in a picture, for a network to guess.

The features with which the baselines classify say more about a picture than its label. A network
with a teacher learns, besides the label, to guess them from its own maps, place by place.
VGG-16 sees each image once, uncropped; a crop's features are the means of its maps over the crop.
So both see the same place (Beyer et al. 2022, "consistent teaching") in as many crops as there are
steps. What a crop does to the features beyond that, and jitter, the teacher doesn't see.
"""

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from common import files, job
from common.data.augment import to_float
from common.data.packed import Packed
from common.errors import UserError
from common.networks.efficientnet import GUIDED, Taught
from common.networks.vgg import VGG16Features
from common.networks.weights import load_vgg16
from common.studies.baselines import scaled
from common.training import parallel
from common.training.convolutions import with_fast_convolutions
from common.training.run import save_checkpoint
from common.training.runs import Setup

LAYERS = ("relu2_2", "relu3_3", "relu4_3")  # with these VGG-16's ridge regression was best on val
LEAST_PX = 96  # VGG-16's input: --image-size, but at least this
CELLS = 12  # along a side of the kept maps
BATCH_SIZE = 32  # of a pass through VGG-16


@dataclass(eq=False)
class Teacher:
    """VGG-16's maps of the training images, and their origin.

    about: part of a run's identity: what the maps depend on (data, images, layers, size_px of
    VGG-16's input, cells, weights by SHA-256) and `hinted`. seconds: VGG-16's passes took so long.
    maps: fp16 (images, F, cells, cells), all layers' channels.
    """

    about: dict
    seconds: float
    maps: Tensor
    loss_weight = 8  # of each guess's mean square error; that of the cross-entropy is 1

    def __post_init__(self):
        self.about = {**self.about, "hinted": list(GUIDED)}  # earlier networks: the last maps alone
        parts = self.maps.split(256)  # all at once would take twice their memory
        roots = torch.cat(
            [functional.avg_pool2d(part.float(), CELLS // 2) for part in parts]
        ).sqrt()
        # Of quarters of images; smaller cells vary more. The limit is for dead channels.
        self.moments = roots.mean((0, 2, 3)), roots.std((0, 2, 3)).clamp(min=1e-3)

    def features(self, indexes: Tensor, crops: Tensor, sides: list[int]) -> list[Tensor]:
        """The features of side x side cells of crops: standardised roots (N, F, side, side) each.

        indexes: int64 (N,), which of the training images they are. crops: float (N, 2, 3), as of
        `augment.random_crops`.
        """
        means = cell_means(self.maps[indexes].to(crops.device).float(), crops, sides)
        mean, deviation = (moment.to(crops.device)[:, None, None] for moment in self.moments)
        return [(cells.sqrt() - mean) / deviation for cells in means]

    def taught(self, network: nn.Module) -> Taught:
        """The network with layers that also guess the features."""
        device = next(network.parameters()).device
        return with_fast_convolutions(Taught(network, self.maps.shape[1]), device)


def cell_means(maps: Tensor, crops: Tensor, sides: list[int]) -> list[Tensor]:
    """Means of maps (N, F, S, S) over the side x side cells of each one's crop, by area."""
    shares = torch.cat([_shares(crops, side, maps.shape[-1]) for side in sides], dim=1)
    means = (maps.flatten(2) @ shares.mT).split([side**2 for side in sides], dim=2)
    return [cells.unflatten(2, (side, side)) for cells, side in zip(means, sides, strict=True)]


def _shares(crops: Tensor, side: int, pixels: int) -> Tensor:
    """The share of each cell that lies in each pixel of a map: float (N, side^2, pixels^2)."""
    centres, halves = crops[:, :, 2:], crops.diagonal(dim1=1, dim2=2).unsqueeze(2)
    ends = centres + halves * torch.linspace(-1, 1, side + 1, device=crops.device)
    low, high = ((ends + 1) * pixels / 2).unfold(2, 2, 1).aminmax(dim=3)  # mirrored ends descend
    pixel = torch.arange(pixels, device=crops.device)
    covered = (high[..., None].minimum(pixel + 1) - low[..., None].maximum(pixel)).clamp(min=0)
    columns, rows = (covered / covered.sum(dim=3, keepdim=True)).unbind(1)
    return torch.einsum("niy,njx->nijyx", rows, columns).flatten(3).flatten(1, 2)


def describe(setup: Setup) -> dict | None:
    """The results' entry on the teacher (about, seconds, loss_weight), or None without one."""
    made = teacher(setup)
    return made and {**made.about, "seconds": made.seconds, "loss_weight": made.loss_weight}


@cache
def teacher(setup: Setup) -> Teacher | None:
    """The teacher that --teacher asks for, kept in --cache, or None without the flag.

    If its file is missing, the first process of a job makes it.
    """
    if setup.args.teacher is None:
        return None
    train, size_px = setup.packed["train"], max(LEAST_PX, setup.args.image_size)
    about = {
        "data": train.source.fingerprint(),
        "images": len(train),
        "layers": list(LAYERS),
        "size_px": size_px,
        "cells": CELLS,
    }
    name = files.digest_of({**about, "packed_side_px": train.images.shape[1]})
    path = setup.args.cache / f"teacher-{name}.pt"
    lock = files.locked(path.parent, "fills the cache")
    parallel.broadcast(lambda: lock(_make)(path, about, train, setup.device))
    try:
        return Teacher(**torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    except Exception as error:  # a damaged file can raise anything
        damage = f"{path}: damaged ({type(error).__name__}); delete it, and it is made again"
        raise UserError(damage) from None


@torch.inference_mode()
def _make(path: Path, about: dict, train: Packed, device: torch.device) -> None:
    """Compute the training images' maps with VGG-16 and write their file, if it is missing."""
    if path.exists():
        return
    weights = load_vgg16("auto", seed=0, want_lpips=False)
    network, maps = VGG16Features(weights, about["layers"]).to(device), []
    start, steps = time.perf_counter(), torch.arange(len(train)).split(BATCH_SIZE)
    for rows in job.progress(steps, "VGG-16 on train", leave=False):
        images = to_float(train.batch(rows, device)[0])
        seen = network(scaled(images, about["size_px"])).values()
        cells = [functional.adaptive_avg_pool2d(taps.float(), about["cells"]) for taps in seen]
        maps.append(torch.cat(cells, dim=1).half().cpu())
    seconds = time.perf_counter() - start
    about = {**about, "weights": weights.sha256}
    save_checkpoint(path, {"about": about, "seconds": seconds, "maps": torch.cat(maps)})
    job.say(f"teacher: {len(train):,} images, {seconds:.0f} s, in {path}")
