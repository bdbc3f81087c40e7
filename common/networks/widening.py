"""A truly wider EfficientNetV2-S, and weights with which it computes the narrow one's function.

    from torchvision.models import efficientnet_v2_s; from common.networks import widening
    narrow, wide = efficientnet_v2_s(num_classes=10), widening.wide_efficientnet(10, width=1.1)
    widening.widen_from(narrow, wide, seed=0)

Networks are bare (without `Normalized`) and on the CPU.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import EfficientNet
from torchvision.models.efficientnet import _efficientnet_conf
from torchvision.ops import SqueezeExcitation

from common.networks.summary import count_parameters


def wide_efficientnet(classes: int, width: float) -> EfficientNet:
    """EfficientNetV2-S of torchvision's blocks, with stem, stages and head `width` times as wide.

    Expanded channels are exact. torchvision rounds them to multiples of 8; then the first stage,
    whose expansion is 1, would get an extra convolution if its channels are no multiple of 8.
    """
    stages, last_channels = _efficientnet_conf("efficientnet_v2_s")
    for stage in stages:
        stage.input_channels = round(width * stage.input_channels)
        stage.out_channels = round(width * stage.out_channels)
        stage.adjust_channels = lambda channels, expansion: round(channels * expansion)
    return EfficientNet(
        stages,
        dropout=0.2,
        num_classes=classes,
        norm_layer=partial(nn.BatchNorm2d, eps=1e-3),
        last_channel=round(width * last_channels),
    )


def report_counts() -> dict[str, int]:
    """Counts of parameters that explain the report's, of networks with 1,000 classes.

    Keys: stock, torchvision's network; out_channels_set, the same after the report's Figure 14,
    which sets attributes of built layers and widens nothing; wider_head, as in d-li14/
    efficientnetv2.pytorch: 1,792 last channels, and a 1x1 convolution in both blocks of stage 1.
    """
    with torch.device("meta"):
        stock = models.efficientnet_v2_s()
        counts = {"stock": count_parameters(stock)}
        for stage in (2, 3, 4, 5):
            block = stock.features[stage][0]
            block.out_channels = int(block.out_channels * 1.1)
        counts["out_channels_set"] = count_parameters(stock)
        stages, _ = _efficientnet_conf("efficientnet_v2_s")
        wider_head = EfficientNet(stages, dropout=0.2, last_channel=1792)
    counts["wider_head"] = count_parameters(wider_head) + 2 * (24 * 24 + 2 * 24)
    return counts


def shares(copies: Tensor) -> Tensor:
    """The factor of each copy in the next layer's weights, (wide,): 1 over the number of copies."""
    return 1 / copies.bincount()[copies].float()


@torch.no_grad()
def widen_from(narrow: EfficientNet, wide: EfficientNet, seed: int) -> None:
    """Give `wide` weights with which it computes the same function as `narrow` in eval mode.

    Net2WiderNet (Chen et al. 2016, section 2.2): a wide channel copies a narrow one, and the next
    layer divides by the number of copies. Both terms of a residual sum copy the same channels; a
    depthwise convolution keeps its input's. Both networks are bare, on the CPU, with equal classes.
    """
    generator = torch.Generator().manual_seed(seed)
    stream = torch.arange(3)  # which narrow channel each wide channel copies
    pairs = list(zip(narrow.features, wide.features, strict=True))
    stream = _widen_layer(*pairs[0], stream, generator)
    for narrow_stage, wide_stage in pairs[1:-1]:
        for narrow_block, wide_block in zip(narrow_stage, wide_stage, strict=True):
            stream = _widen_block(narrow_block, wide_block, stream, generator)
    stream = _widen_layer(*pairs[-1], stream, generator)
    head, wide_head = narrow.classifier[1], wide.classifier[1]
    wide_head.weight.copy_(head.weight[:, stream] * shares(stream))
    wide_head.bias.copy_(head.bias)


def _widen_block(
    narrow: nn.Module, wide: nn.Module, stream: Tensor, generator: torch.Generator
) -> Tensor:
    """Widen a block whose input copies the channels `stream`; return those its output copies."""
    inner, last = stream, len(narrow.block) - 1
    for position, (layer, wide_layer) in enumerate(zip(narrow.block, wide.block, strict=True)):
        if isinstance(layer, SqueezeExcitation):
            squeezed = _widen_conv(layer.fc1, wide_layer.fc1, inner, generator)
            _widen_conv(layer.fc2, wide_layer.fc2, squeezed, inner)
        else:
            residual = position == last and narrow.use_res_connect
            outputs = stream if residual else generator
            inner = _widen_layer(layer, wide_layer, inner, outputs)
    return inner


def _widen_layer(
    narrow: nn.Module, wide: nn.Module, inputs: Tensor, outputs: Tensor | torch.Generator
) -> Tensor:
    """Widen a convolution and its batch norm; return `outputs`, drawn if it is a generator."""
    outputs = _widen_conv(narrow[0], wide[0], inputs, outputs)
    for name, values in narrow[1].state_dict().items():
        target = wide[1].state_dict()[name]
        target.copy_(values[outputs] if values.ndim else values)
    return outputs


def _widen_conv(
    narrow: nn.Conv2d, wide: nn.Conv2d, inputs: Tensor, outputs: Tensor | torch.Generator
) -> Tensor:
    """Widen a convolution, as `_widen_layer` does."""
    depthwise = narrow.groups > 1
    if depthwise:
        outputs = inputs
    elif isinstance(outputs, torch.Generator):
        count = narrow.out_channels  # all in order, then random ones (Chen et al. 2016, eq. 1)
        more = torch.randint(count, (wide.out_channels - count,), generator=outputs)
        outputs = torch.cat([torch.arange(count), more])
    weight = narrow.weight[outputs]
    if not depthwise:
        weight = weight[:, inputs] * shares(inputs).view(1, -1, 1, 1)
    wide.weight.copy_(weight)
    if narrow.bias is not None:
        wide.bias.copy_(narrow.bias[outputs])
    return outputs


@torch.no_grad()
def break_symmetry(network: nn.Module, noise: float, seed: int) -> None:
    """Multiply the entries of tensors with two or more axes by 1 + `noise` times a normal draw.

    Without this, exact copies get equal gradients, and only dropout makes them differ.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        if parameter.ndim >= 2:
            parameter.mul_(1 + noise * torch.randn(parameter.shape, generator=generator))


@torch.inference_mode()
def max_logit_difference(a: nn.Module, b: nn.Module, images: Tensor) -> float:
    """Largest absolute difference of two networks' logits for a batch, both put in eval mode."""
    return (a.eval()(images) - b.eval()(images)).abs().max().item()
