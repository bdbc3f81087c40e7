"""Networks for images in [0, 1], which apply ImageNet's normalisation themselves.

    import torch; from common.networks.normalized import Normalized
    network = Normalized(torch.nn.Flatten())
    print(network(torch.rand(2, 3, 8, 8)).mean())

Callers do not normalise.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from common.data.images import IMAGENET_MEAN, IMAGENET_STD


class Normalized(nn.Module):
    """A network for images in [0, 1]; `network` is the bare one, for normalised images."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.normalise(images))

    def normalise(self, images: Tensor) -> Tensor:
        """Images in [0, 1] as the input of the bare network."""
        return (images - self.mean) / self.std


def seeded(build: Callable[[], nn.Module], seed: int) -> Normalized:
    """The network of `build()`, whose initial weights depend on the seed alone."""
    torch.manual_seed(seed)
    return Normalized(build())
