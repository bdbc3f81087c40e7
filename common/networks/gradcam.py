"""Grad-CAM, and the pointing game that measures its maps.

    import torch; from torchvision.models import resnet18; from common.networks import gradcam
    network, images = resnet18().eval(), torch.rand(2, 3, 64, 64)
    print(gradcam.grad_cam(network, network.layer4, images, classes=torch.tensor([3, 7])).shape)

Networks are bare ones in eval mode.
"""

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.errors import UserError


def grad_cam(network: nn.Module, layer: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Maps of where a network sees a class (Selvaraju et al. 2017, equations 1 and 2).

    Args:
        network: A bare one in eval mode, since a wrapped one gives a part of the batch.
        layer: One of its modules, with an output of (N, C, h, w).
        images: Float (N, 3, H, W), what the network takes.
        classes: int64 (N,), the class that is asked for in each image.

    Returns:
        Maps, float (N, H, W), >= 0, not normalised: all zero where nothing speaks for the class.
    """
    logits, output = _logits_and_output(network, layer, images)
    return _maps(logits, output, classes, images.shape[2:])


def _logits_and_output(
    network: nn.Module, layer: nn.Module, images: Tensor
) -> tuple[Tensor, Tensor]:
    outputs = []

    def keep(_module, _inputs, output: Tensor) -> Tensor:
        outputs.append(output)
        return output.clone()  # what follows may work in place

    handle = layer.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits = network(images.detach().requires_grad_())
    finally:
        handle.remove()
    return logits, outputs[0]


def _maps(logits: Tensor, output: Tensor, classes: Tensor, size_px: torch.Size) -> Tensor:
    scores = logits.gather(1, classes[:, None]).sum()
    (gradients,) = torch.autograd.grad(scores, output, retain_graph=True)
    weights = gradients.mean(dim=(2, 3), keepdim=True)
    maps = (weights * output).sum(dim=1, keepdim=True).relu().detach()
    return functional.interpolate(maps, size_px, mode="bilinear", align_corners=False)[:, 0]


def feature_layer(network: nn.Module, name: str, image_size_px: int) -> nn.Module:
    """The module of that name in a bare network with `features`, such as "features.6".

    Raises:
        UserError: there is none, or for images of this size its output is no map of 2x2 or more.
    """
    modules = dict(network.named_modules())
    stages = [f"features.{k}" for k in range(len(network.features))]
    if name not in modules or not name.startswith("features."):
        choice = f"choose from {', '.join(stages)} or a part of one"
        raise UserError(f"layer {name}: no such feature layer; {choice}")
    outputs = _outputs(network, {*stages, name}, image_size_px)
    if _is_map(output := outputs.get(name)):
        return modules[name]
    if isinstance(output, Tensor) and output.ndim == 4:
        found = f"its map is {output.shape[2]}x{output.shape[3]}"
    elif isinstance(output, Tensor):
        found = f"its output is of shape {tuple(output.shape)}, which is no map"
    else:
        found = f"its output is no map ({type(output).__name__})"
    upto = stages[: int(name.split(".")[1]) + 1]
    large = [stage for stage in upto if _is_map(outputs.get(stage))]
    choice = f"choose {large[-1]} or a part of it" if large else "choose larger images"
    raise UserError(
        f"layer {name}: for images of {image_size_px} px {found}; 2x2 or more are needed to show"
        f" where a network looks; {choice}"
    )


def _outputs(network: nn.Module, names: Collection[str], image_size_px: int) -> dict:
    """What modules put out for one image in eval mode, as tensors without content."""
    outputs, was_training = {}, network.training
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: outputs.setdefault(name, output)
        )
        for name in names
    ]
    state = {name: tensor.to("meta") for name, tensor in network.state_dict().items()}
    image = torch.zeros(1, 3, image_size_px, image_size_px, device="meta")
    try:
        with torch.no_grad():
            torch.func.functional_call(network.eval(), state, image)
    finally:
        network.train(was_training)
        for handle in handles:
            handle.remove()
    return outputs


def _is_map(output) -> bool:
    return isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1


def peaks(maps: Tensor) -> Tensor:
    """Where maps (N, H, W) are largest: int64 (N, 2), a row and a column each.

    Of a plateau it is the pixel nearest the middle of the map. A coarse map scaled up is flat from
    the border to its outer cells' centres: those are meant.
    """
    height, width = maps.shape[1:]
    from_middle = torch.cartesian_prod(
        torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2
    ).norm(dim=1)
    highest = maps == maps.amax(dim=(1, 2), keepdim=True)
    nearest = from_middle.where(highest.flatten(1), torch.inf).argmin(1)
    return torch.stack([nearest // width, nearest % width], dim=1)


def pointing_game(maps: Tensor, masks: Tensor) -> float:
    """Per cent of maps whose peak lies on the object (Zhang et al. 2018, section 4.2).

    Maps are (N, H, W), masks bool (N, H, W). An all-zero map points nowhere, which is a miss.
    """
    row, column = peaks(maps).unbind(1)
    hit = masks[torch.arange(len(masks)), row, column] & (maps.amax(dim=(1, 2)) > 0)
    return 100 * hit.float().mean().item()


def see(network: nn.Module, layer: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Predictions of a network in eval mode, and maps of the predicted and of the true classes.

    Args:
        network, layer, images: As `grad_cam` takes them, but any number of images.
        labels: int64 (N,), the true classes.

    Returns:
        On the CPU: probabilities (N, classes), and predicted and true, maps (N, H, W).
    """
    seen = {"probabilities": [], "predicted": [], "true": []}
    for batch, true in zip(images.split(32), labels.split(32), strict=True):
        logits, output = _logits_and_output(network, layer, batch)  # once for both classes
        seen["probabilities"].append(logits.detach().softmax(1).cpu())
        for kind, classes in (("predicted", logits.argmax(1)), ("true", true)):
            seen[kind].append(_maps(logits, output, classes, batch.shape[2:]).cpu())
    return {key: torch.cat(values) for key, values in seen.items()}
