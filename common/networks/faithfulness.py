"""Does a map show what a network's answer rests on? Deletion and insertion of its pixels.

    import torch; from torchvision.models import resnet18; from common.networks import faithfulness
    network, images, classes = resnet18().eval(), torch.rand(2, 3, 64, 64), torch.tensor([3, 7])
    print(faithfulness.curves(network, images, torch.rand(2, 64, 64), classes, steps=8)["deletion"])

Petsiuk et al. 2018, section 4.1: a good map loses the class soon where its highest pixels are
deleted first, and finds it soon where they are inserted first. Networks are in eval mode.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


@torch.inference_mode()
def curves(
    network: nn.Module, images: Tensor, maps: Tensor, classes: Tensor, steps: int
) -> dict[str, Tensor]:
    """The probability of a class while pixels go or come in `steps`, the map's highest first.

    Images are float (N, 3, H, W), maps (N, H, W), `classes`, one an image, int64 (N,). In
    "deletion" pixels turn into the image's mean colour, in "insertion" those of a blurred image
    turn sharp. Both are probabilities (N, steps + 1), on the CPU.
    """
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    ranks = order.argsort(dim=1).view_as(maps)[:, None]
    mean = images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    ends = {"deletion": (images, mean), "insertion": (blurred(images), images)}
    found = {}
    for kind, (first, last) in ends.items():
        points = []
        for step in range(steps + 1):
            batch = torch.where(ranks < step * maps[0].numel() / steps, last, first)
            points.append(network(batch).softmax(dim=1).gather(1, classes[:, None]))
        found[kind] = torch.cat(points, dim=1).cpu()
    return found


def area(curve: Tensor) -> Tensor:
    """The area under curves (N, steps + 1) over the share of pixels, from 0 to 1: float (N,)."""
    return torch.trapezoid(curve, dx=1 / (curve.shape[1] - 1), dim=1)


def blurred(images: Tensor) -> Tensor:
    """Images without what is smaller than an eighth of their side, in their own size."""
    side_px = max(1, images.shape[-1] // 8)
    coarse = functional.avg_pool2d(images, side_px, ceil_mode=True)
    return functional.interpolate(coarse, images.shape[2:], mode="bilinear", align_corners=False)


def centred(images: Tensor) -> Tensor:
    """A control: maps (N, H, W) that are highest in the middle, whatever an image shows."""
    rows, columns = (torch.linspace(-1, 1, side) for side in images.shape[2:])
    distance = (rows[:, None].square() + columns.square()).sqrt()
    return (-distance).expand(len(images), -1, -1).to(images.device)


def random(images: Tensor, cells: tuple[int, int], generator: torch.Generator) -> Tensor:
    """A control: maps (N, H, W) of random cells (rows, columns), enlarged as Grad-CAM's are.

    Single random pixels would be no fair control: they leave no part of an object whole.
    """
    coarse = torch.rand(len(images), 1, *cells, generator=generator)
    enlarged = functional.interpolate(coarse, images.shape[2:], mode="bilinear")
    return enlarged[:, 0].to(images.device)
