"""EfficientNetV2-S: built from a seed or a file of weights, and measured stage by stage.

    from torchvision.models import efficientnet_v2_s; from common.networks import efficientnet
    narrow, wide = (efficientnet_v2_s(num_classes=classes) for classes in (10, 102))
    print(efficientnet.stage_rows(narrow, wide, image_size_px=64)[-1])

Networks are bare (without `Normalized`), except in `Taught`, and on the CPU.
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import EfficientNet, EfficientNet_V2_S_Weights, efficientnet_v2_s
from torchvision.models.efficientnet import FusedMBConv, MBConv

from common.errors import UserError
from common.files import sha256_of
from common.job import say
from common.networks.normalized import Normalized
from common.networks.summary import count_macs, count_parameters
from common.networks.weights import find_tensors, published_file

HEAD = ("classifier.1.weight", "classifier.1.bias")
GUIDED = (-5, -3, -1)  # modules of `features` whose maps guess a teacher's: stages 3, 5, head conv


def build(classes: int, init: str, seed: int) -> tuple[EfficientNet, str, list[str]]:
    """Build torchvision's EfficientNetV2-S (Tan & Le 2021) from a seed or a file of weights.

    `init` is "scratch", "imagenet" (IMAGENET1K_V1) or the path of a file of weights. For a file, a
    line is printed that says what was loaded. Returns the network, "scratch" or the file's SHA-256,
    and the names of the tensors that were initialised from the seed.
    """
    torch.manual_seed(seed)
    network = efficientnet_v2_s(num_classes=classes)
    if init == "scratch":
        return network, init, list(network.state_dict())
    url = EfficientNet_V2_S_Weights.IMAGENET1K_V1.url
    path = published_file(url) if init == "imagenet" else Path(init)
    new, story = load_but_head(network, path)
    say(story)
    return network, f"SHA-256 {sha256_of(path)}", new


def load_but_head(network: EfficientNet, path: Path) -> tuple[list[str], str]:
    """Load a file of weights; skip its head if that is missing or has another number of classes.

    Returns the names of the head's tensors that were not loaded, and a line that sums up.
    """
    wanted = network.state_dict()
    tensors, taken = find_tensors(path, wanted, "EfficientNetV2-S", may_miss=HEAD)
    new = [] if tensors.keys() >= set(HEAD) else list(HEAD)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in new}
    network.load_state_dict(tensors, strict=False)
    words = [f"{len(tensors)} tensors loaded", f"not loaded: {', '.join(new) or 'none'}", taken]
    return new, f"{path}: {'; '.join(filter(None, words))}"


def trained(path: Path, classes: int) -> tuple[EfficientNet, str]:
    """The bare network of a file of weights, including the head, and a line on what was loaded."""
    network = efficientnet_v2_s(num_classes=classes)
    new, story = load_but_head(network, path)
    if new:
        raise UserError(f"{path}: no head for the data's {classes} classes; give another file")
    return network, story


def zero_head(network: EfficientNet) -> None:
    """Zero the head's weights, for equal logits at the start, like big_vision's `head_zeroinit`.

    torchvision draws the head's weights within +-1 / sqrt(classes), regardless of its 1,280 inputs.
    With few classes, training then spends epochs on undoing that.
    """
    nn.init.zeros_(network.classifier[1].weight)


def zero_residuals(network: EfficientNet) -> None:
    """Start every block with a skip path as that path alone (Goyal et al. 2017, section 5.1).

    In these 35 blocks the gamma of the last batch norm starts at 0.
    """
    for block in network.modules():
        if isinstance(block, FusedMBConv | MBConv) and block.use_res_connect:
            nn.init.zeros_(block.block[-1][1].weight)


class Taught(nn.Module):
    """A network that also predicts a teacher's features, linearly from each place of its maps.

    It does so from its last maps, and from those with two and four times as many places along a
    side, since hints on the way help (Romero et al. 2015). `strides_px`: the places' sides.
    """

    def __init__(self, network: Normalized, features: int):
        super().__init__()
        self.network = network
        self.strides_px, self.guesses, stages = [], nn.ModuleList(), network.network.features
        for end in GUIDED:
            layers = [m for m in stages[: end + 1 or None].modules() if isinstance(m, nn.Conv2d)]
            self.strides_px.append(math.prod(layer.stride[0] for layer in layers))
            self.guesses.append(nn.Conv2d(len(layers[-1].weight), features, 1))
        for parameter in self.guesses.parameters():
            nn.init.zeros_(parameter)

    def sides(self, size_px: int) -> list[int]:
        """Places along a side of the maps that predict, for input of `size_px`."""
        return [math.ceil(size_px / stride_px) for stride_px in self.strides_px]

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (N, classes), predicted features (N, F, side, side) for images in [0, 1]."""
        bare, maps = self.network.network, [self.network.normalise(images)]
        for stage in bare.features:
            maps.append(stage(maps[-1]))
        guessed = [guess(maps[end]) for guess, end in zip(self.guesses, GUIDED, strict=True)]
        return bare.classifier(bare.avgpool(maps[-1]).flatten(1)), guessed


def stage_rows(narrow: EfficientNet, wide: EfficientNet, image_size_px: int) -> list[dict]:
    """A dict per stage of two networks: output channels, parameters, multiply-adds for one image.

    Keys: name, narrow, wide (channels), parameters_narrow, parameters_wide, macs_narrow, macs_wide.
    """
    modules = [*(f"features.{k}" for k in range(len(narrow.features))), "classifier"]
    names = ["stem", *(f"stage {k}" for k in range(1, len(modules) - 2)), "head conv", "classifier"]
    rows = [{"name": name} for name in names]
    for kind, network in (("narrow", narrow), ("wide", wide)):
        macs = count_macs(network, image_size_px, modules)
        for row, module in zip(rows, modules, strict=True):
            stage = network.get_submodule(module)
            layers = [m for m in stage.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
            row[kind] = len(layers[-1].weight)  # from the weights, since attributes may be wrong
            row[f"parameters_{kind}"] = count_parameters(stage)
            row[f"macs_{kind}"] = macs[module]
    return rows
