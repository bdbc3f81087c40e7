"""Grad-CAM, and measures of its maps: the pointing game, and deletion and insertion of pixels.

    import torch; from torchvision.models import resnet18; from common.networks import gradcam
    network, images = resnet18().eval(), torch.rand(2, 3, 64, 64)
    print(gradcam.grad_cam(network, network.layer4, images, classes=torch.tensor([3, 7])).shape)

Networks are in eval mode; `feature_layer` and `map_size` take bare ones, without `Normalized`.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.errors import UserError
from common.networks.summary import shapes_alone

BATCH = 32  # images at once, to bound the memory


def grad_cam(network: nn.Module, layer: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Maps of where a network sees a class (Selvaraju et al. 2017, equations 1 and 2).

    `layer` is a module of the network whose output is (N, C, h, w). Images are float (N, 3, H, W);
    `classes` is int64 (N,), one per image. Maps are float (N, H, W), >= 0 and not normalised; they
    are 0 where nothing supports the class.
    """
    return _logits_and_maps(network, layer, images, classes)[1]


def _logits_and_maps(
    network: nn.Module, layer: nn.Module, images: Tensor, classes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Logits, and Grad-CAM maps of `classes`, or of the predicted classes if that is None."""
    outputs = []

    def keep(_module, _inputs, output: Tensor) -> Tensor:
        outputs.append(output)
        return output.clone()  # the layers that follow may work in place

    with layer.register_forward_hook(keep), torch.enable_grad():
        logits = network(images.detach().requires_grad_())
    classes = logits.argmax(1) if classes is None else classes
    scores = logits.gather(1, classes[:, None]).sum()
    (gradients,) = torch.autograd.grad(scores, outputs[0])
    weights = gradients.mean(dim=(2, 3), keepdim=True)
    maps = (weights * outputs[0]).sum(dim=1, keepdim=True).relu().detach()
    maps = functional.interpolate(maps, images.shape[2:], mode="bilinear")
    return logits.detach(), maps[:, 0]


def feature_layer(network: nn.Module, name: str, image_size_px: int) -> nn.Module:
    """The feature layer of this name, such as "features.6", in a bare network with `features`.

    A UserError if there is none, or if its output for images of this size is smaller than 2x2.
    """
    modules = dict(network.named_modules())
    stages = [f"features.{k}" for k in range(len(network.features))]
    if name not in modules or not name.startswith("features."):
        choice = f"choose from {', '.join(stages)} or a part of one"
        raise UserError(f"layer {name}: no such feature layer; {choice}")
    height, width = map_size(network, name, image_size_px)
    if min(height, width) < 2:
        raise UserError(
            f"layer {name}: its map is {height}x{width} for images of {image_size_px} px, but"
            " Grad-CAM needs at least 2x2; choose an earlier layer or larger images"
        )
    return modules[name]


def map_size(network: nn.Module, name: str, image_size_px: int) -> torch.Size:
    """(h, w) of a named module's output for a square image, from shapes alone."""
    shapes, sizes = shapes_alone(network), []
    shapes.get_submodule(name).register_forward_hook(
        lambda _module, _inputs, output: sizes.append(output.shape[2:])
    )
    with torch.no_grad():
        shapes(torch.zeros(1, 3, image_size_px, image_size_px, device="meta"))
    return sizes[0]


def peaks(maps: Tensor) -> Tensor:
    """The row and column of the largest value of each map (N, H, W), as int64 (N, 2).

    On a plateau, such as an enlarged map has at its border, it is the pixel nearest the middle.
    """
    places = (torch.arange(side) - (side - 1) / 2 for side in maps.shape[1:])
    from_middle = torch.cartesian_prod(*places).norm(dim=1)
    highest = maps == maps.amax(dim=(1, 2), keepdim=True)
    nearest = from_middle.where(highest.flatten(1), torch.inf).argmin(1)
    return torch.stack(torch.unravel_index(nearest, maps.shape[1:]), dim=1)


def pointing_game(maps: Tensor, masks: Tensor) -> float:
    """Per cent of maps whose peak lies on the object (Zhang et al. 2018, section 4.2).

    Maps are (N, H, W), masks bool (N, H, W). An all-zero map points nowhere and counts as a miss.
    """
    row, column = peaks(maps).unbind(1)
    hit = masks[torch.arange(len(masks)), row, column] & (maps.amax(dim=(1, 2)) > 0)
    return 100 * hit.float().mean().item()


class Predictions(NamedTuple):
    """Probabilities (N, classes), and maps (N, H, W) of the most probable classes."""

    probabilities: Tensor
    maps: Tensor

    @property
    def classes(self) -> Tensor:
        """The predicted classes, int64 (N,)."""
        return self.probabilities.argmax(1)


def predict_with_cams(network: nn.Module, layer: nn.Module, images: Tensor) -> Predictions:
    """Predict any number of images, with Grad-CAM maps of the predicted classes, on the CPU."""
    batches = []
    for batch in images.split(BATCH):
        logits, maps = _logits_and_maps(network, layer, batch, classes=None)
        batches.append((logits.softmax(1).cpu(), maps.cpu()))
    return Predictions(*map(torch.cat, zip(*batches, strict=True)))


@torch.inference_mode()
def deletion_and_insertion(
    network: nn.Module, images: Tensor, maps: Tensor, classes: Tensor, steps: int
) -> dict[str, Tensor]:
    """A class's probability as pixels are deleted or inserted in `steps`, the map's highest first.

    Deletion gives pixels the image's mean colour; insertion makes pixels of a blurred image sharp.
    A good map makes the probability fall, or rise, early (Petsiuk et al. 2018, section 4.1).
    Returns "deletion" and "insertion", probabilities (N, steps + 1) on the CPU.
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


def blurred(images: Tensor) -> Tensor:
    """Images blurred: details smaller than an eighth of their side are lost."""
    side_px = max(1, images.shape[-1] // 8)
    coarse = functional.avg_pool2d(images, side_px, ceil_mode=True)
    return functional.interpolate(coarse, images.shape[2:], mode="bilinear")


def centred_maps(images: Tensor) -> Tensor:
    """A control: maps (N, H, W) that are highest in the middle, whatever an image shows."""
    rows, columns = (torch.linspace(-1, 1, side) for side in images.shape[2:])
    distance = (rows[:, None].square() + columns.square()).sqrt()
    return (-distance).expand(len(images), -1, -1).to(images.device)


def random_maps(images: Tensor, cells: tuple[int, int], generator: torch.Generator) -> Tensor:
    """A control: maps (N, H, W) of random cells (rows, columns), enlarged as Grad-CAM's are.

    Single random pixels would be no fair control: they leave no part of an object whole.
    """
    coarse = torch.rand(len(images), 1, *cells, generator=generator)
    enlarged = functional.interpolate(coarse, images.shape[2:], mode="bilinear")
    return enlarged[:, 0].to(images.device)
