"""Grad-CAM, and the pointing game that measures its maps.

    from common.networks.gradcam import grad_cam; from torchvision.models import resnet18; import torch
    network = resnet18().eval()
    maps = grad_cam(network, network.layer4, torch.rand(1, 3, 64, 64), torch.tensor([0]))
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.errors import UserError


def grad_cam(network: nn.Module, layer: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Where a bare network in eval mode sees a class (Selvaraju et al. 2017, equations 1 and 2).

    Args:
        images: float (N, 3, H, W), what the network takes.
        classes: int64 (N,), the class that is asked for in each image.

    Returns:
        Maps, float (N, H, W), >= 0, not normalised: all zero where nothing speaks for the class.
    """
    kept = []
    handle = layer.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    try:
        with torch.enable_grad():
            logits = network(images.requires_grad_())
            scores = logits.gather(1, classes[:, None]).sum()
            (gradients,) = torch.autograd.grad(scores, kept[0])
    finally:
        handle.remove()
    weights = gradients.mean(dim=(2, 3), keepdim=True)
    maps = (weights * kept[0]).sum(dim=1, keepdim=True).relu().detach()
    maps = functional.interpolate(maps, images.shape[2:], mode="bilinear", align_corners=False)
    return maps[:, 0]


def find_layer(network: nn.Module, name: str) -> nn.Module:
    """The module of that name in a bare network, such as features.6.

    Raises:
        UserError: there is none, or its name is of no feature map.
    """
    modules = dict(network.named_modules())
    if name not in modules or not name.startswith("features."):
        stages = ", ".join(f"features.{k}" for k in range(len(network.features)))
        raise UserError(f"--layer {name}: no such feature layer; choose from {stages} or a part")
    return modules[name]


def peaks(maps: Tensor) -> Tensor:
    """(row, column) of each map's largest value, (N, 2); of a plateau the pixel nearest the middle.

    A coarse map scaled up is flat from the border to its outer cells' centres: those are meant.
    """
    height, width = maps.shape[1:]
    from_middle = torch.cartesian_prod(
        torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2
    ).norm(dim=1)
    highest = maps == maps.amax(dim=(1, 2), keepdim=True)
    nearest = from_middle.where(highest.flatten(1), torch.inf).argmin(1)
    return torch.stack([nearest // width, nearest % width], dim=1)


def pointing_game(maps: Tensor, masks: Tensor) -> float:
    """Per cent of maps (N, H, W) whose peak lies on the mask (Zhang et al. 2018, section 4.2).

    An all-zero map points nowhere, which is a miss.
    """
    row, column = peaks(maps).unbind(1)
    hit = masks[torch.arange(len(masks)), row, column] & (maps.amax(dim=(1, 2)) > 0)
    return 100 * hit.float().mean().item()
