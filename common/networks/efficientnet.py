"""EfficientNetV2-S: built from a seed or a file of weights, and measured stage by stage.

    from torchvision.models import efficientnet_v2_s; from common.networks import efficientnet
    narrow, wide = (efficientnet_v2_s(num_classes=classes) for classes in (10, 102))
    print(efficientnet.stage_rows(narrow, wide, image_size_px=64)[-1])

Networks are bare ones on the CPU.
"""

from pathlib import Path

import torch
from torch import nn
from torchvision.models import EfficientNet, EfficientNet_V2_S_Weights, efficientnet_v2_s

from common.errors import UserError
from common.networks.summary import count_macs, count_parameters
from common.networks.weights import published_file, read_state_dict

HEAD = ("classifier.1.weight", "classifier.1.bias")


def build(classes: int, init: str, seed: int) -> tuple[EfficientNet, Path | None, list[str]]:
    """torchvision's bare EfficientNetV2-S (Tan & Le 2021), from a seed and perhaps from a file.

    `init` is "scratch", "imagenet" (torchvision's IMAGENET1K_V1 weights) or the path of a state
    dict.

    Returns:
        The network, the file of its weights if any, and the names of its new tensors.

    Raises:
        UserError: as `load_but_head`, or torchvision's file can't be had.
    """
    torch.manual_seed(seed)
    network = efficientnet_v2_s(num_classes=classes)
    if init == "scratch":
        return network, None, list(network.state_dict())
    url = EfficientNet_V2_S_Weights.IMAGENET1K_V1.url
    path = published_file(url) if init == "imagenet" else Path(init)
    return network, path, load_but_head(network, path)


def load_but_head(network: EfficientNet, path: Path) -> list[str]:
    """Load a state dict, but of another number of classes not the head.

    Returns the names of the tensors that were left as they are.

    Raises:
        UserError: no such file, or one of another network.
    """
    state = {name.removeprefix("network."): value for name, value in read_state_dict(path).items()}
    for name, tensor in network.state_dict().items():
        if name not in state or (name not in HEAD and state[name].shape != tensor.shape):
            raise UserError(
                f"{path}: not EfficientNetV2-S: {name} of shape {tuple(tensor.shape)} is missing"
            )
    left = [name for name in HEAD if state[name].shape != network.get_parameter(name).shape]
    loaded = {name: value for name, value in state.items() if name not in left}
    network.load_state_dict(loaded, strict=False)
    return left


def trained(path: Path, classes: int) -> EfficientNet:
    """The bare network of a file of weights, head and all.

    Raises:
        UserError: as `load_but_head`, or its head has another number of classes.
    """
    network = efficientnet_v2_s(num_classes=classes)
    if load_but_head(network, path):
        raise UserError(f"{path}: it has another number of classes than the data, {classes}")
    return network


def stage_rows(narrow: EfficientNet, wide: EfficientNet, image_size_px: int) -> list[dict]:
    """The size of every stage of two networks, of a width each, that are on the CPU.

    Returns:
        A dict a stage: name; narrow and wide (the channels that come out), parameters_narrow,
        parameters_wide, macs_narrow and macs_wide (multiply-adds for one image).
    """
    modules = [*(f"features.{k}" for k in range(len(narrow.features))), "classifier"]
    names = ["stem", *(f"stage {k}" for k in range(1, len(modules) - 2)), "head conv", "classifier"]
    rows = [{"name": name} for name in names]
    for kind, network in (("narrow", narrow), ("wide", wide)):
        macs = count_macs(network, image_size_px, modules)
        for row, module in zip(rows, modules, strict=True):
            stage = network.get_submodule(module)
            layers = [m for m in stage.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
            row[kind] = len(layers[-1].weight)  # as the weights have it, whatever attributes say
            row[f"parameters_{kind}"] = count_parameters(stage)
            row[f"macs_{kind}"] = macs[module]
    return rows
