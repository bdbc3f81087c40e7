"""Convolutions in the form that is fastest on a CPU, on small maps and under bf16.

    import torch
    from torchvision.models import efficientnet_v2_s
    from common.training.convolutions import with_fast_convolutions
    network = with_fast_convolutions(efficientnet_v2_s(), torch.device("cpu"))

Names and parameters stay the same, and results agree up to rounding. `python -m benchmarks step-64`
times a step with and without these forms.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

PADDED_SIDE_PX, LINEAR_SIDE_PX = 3, 4  # the largest maps on which each form was measured faster


class FastConv2d(nn.Conv2d):
    """A convolution with the parameters of `conv`; it chooses its form by the input's size."""

    def __init__(self, conv: nn.Conv2d):
        sizes = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
        options = (conv.dilation, conv.groups, conv.bias is not None, conv.padding_mode)
        super().__init__(*sizes, *options, device="meta")
        self.weight, self.bias = conv.weight, conv.bias
        self.train(conv.training)
        padded_3x3 = self.kernel_size == (3, 3) and self.padding == self.dilation == (1, 1)
        channelwise = self.groups == self.in_channels == self.out_channels
        self.is_depthwise = padded_3x3 and channelwise and self.padding_mode == "zeros"
        pointwise = self.kernel_size == self.stride == (1, 1) and self.padding == (0, 0)
        self.is_linear = pointwise and self.groups == 1
        special = self.groups > 1 or max(self.stride) > 1
        self.stays_in_fp32 = special and self.in_channels // self.groups < 32

    def forward(self, maps: Tensor) -> Tensor:
        """The output of `nn.Conv2d`; under autocast in fp32 where the bf16 gradient is slow.

        oneDNN has no fast bf16 kernel for depthwise or strided convolutions with few channels per
        group: in a step of EfficientNetV2-S on 64 images of 64 px the stem alone takes 514 ms in
        bf16 and 13 ms in fp32.
        """
        if not self.stays_in_fp32:
            return self._convolve(maps)
        with torch.autocast(maps.device.type, enabled=False):
            return self._convolve(maps.float())

    def _convolve(self, maps: Tensor) -> Tensor:
        side_px = max(maps.shape[2:])
        if self.is_linear and side_px <= LINEAR_SIDE_PX:  # less overhead, and a faster gradient
            pixels, weight = (values.permute(0, 2, 3, 1) for values in (maps, self.weight))
            return functional.linear(pixels, weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        if self.is_depthwise and side_px <= PADDED_SIDE_PX:
            return self._depthwise_of_small(maps, side_px)
        return super().forward(maps)

    def _depthwise_of_small(self, maps: Tensor, side_px: int) -> Tensor:
        """Convolve without oneDNN's padding, which slows down the weight's gradient."""
        if side_px > 1:
            maps = functional.pad(maps, (1, 1, 1, 1))
            return functional.conv2d(maps, self.weight, self.bias, self.stride, groups=self.groups)
        seen = maps * self.weight[:, :, 1, 1].view(1, -1, 1, 1)  # all other weights meet zeros
        return seen if self.bias is None else seen + self.bias.view(1, -1, 1, 1)


def with_fast_convolutions(network: nn.Module, device: torch.device) -> nn.Module:
    """Replace each plain convolution by a `FastConv2d` on a CPU; returns the same network."""
    if device.type != "cpu":
        return network
    for name, module in list(network.named_modules()):
        if type(module) is nn.Conv2d:
            network.set_submodule(name, FastConv2d(module))
    return network
