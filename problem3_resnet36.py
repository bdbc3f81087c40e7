"""Problem 3: does a 36-layer ResNet learn with the activation x^2 / 0.2x; why did it diverge?"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

RESIDUALS = ("branch", "sum")
STAGE_BLOCKS = (3, 3, 3, 2)
STAGE_CHANNELS = (128, 256, 512, 1024)


# -------------------------------------------------------------------------- 3.3 the activation


class _SquareLeaky(torch.autograd.Function):
    """The activation, and -x, which is all that its backward pass needs.

    ATen's `elu_backward` on a result u computes g * p * (u + n) where u <= 0 and g * s * u' where
    not: with n = 0 both f and its derivative are one pass of it over u = -x, without a mask.
    -x is an output, so that the backward pass can be differentiated again.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> tuple[Tensor, Tensor]:
        u = -x
        ctx.save_for_backward(u)
        ctx.set_materialize_grads(False)
        return torch.ops.aten.elu_backward(u, 0, -0.2, 1, True, u), u

    @staticmethod
    def backward(ctx, grad: Tensor | None, grad_u: Tensor | None) -> Tensor | None:
        (u,) = ctx.saved_tensors
        if grad is None:
            return None if grad_u is None else -grad_u
        grad_x = torch.ops.aten.elu_backward(grad, 0, 0.2, -2, True, u)
        return grad_x if grad_u is None else grad_x - grad_u


def square_leaky(x: Tensor) -> Tensor:
    """f(x) = x^2 for x > 0, 0.2 x for x < 0, 0 at 0, elementwise; f'(0) is 0.

    Of any floating dtype and shape; NaN and infinities pass through.
    """
    return _SquareLeaky.apply(x)[0]


class SquareLeaky(nn.Module):
    """`square_leaky` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        """The same shape and dtype as x."""
        return square_leaky(x)


# ----------------------------------------------------------------------------- 3.2 the network


class ResidualBlock(nn.Module):
    """Three 3x3 convolutions with batch norm, and a 1x1 shortcut where the shape changes.

    `residual` says where the activation is: "branch", between batch norm and the next convolution
    alone; "sum", after the residual sum too, as in He et al. 2016 and the report.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        activation: Callable[[Tensor], Tensor],
        residual: str,
    ):
        super().__init__()
        self.activation, self.residual = activation, residual
        conv = functools.partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)
        self.conv1, self.bn1 = conv(inputs, outputs, stride=stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.conv3, self.bn3 = conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        branch = self.activation(self.bn1(self.conv1(x)))
        branch = self.activation(self.bn2(self.conv2(branch)))
        total = self.bn3(self.conv3(branch)) + self.shortcut(x)
        return self.activation(total) if self.residual == "sum" else total


class ResNet36(nn.Module):
    """The report's network: 36 weighted layers on the main path, `width` times as wide.

    `activation` is a function, so that torchsummary lists the rows that the report does.
    """

    def __init__(
        self,
        classes: int = 500,
        activation: Callable[[Tensor], Tensor] = square_leaky,
        residual: str = "branch",
        width: float = 1,
    ):
        super().__init__()
        if residual not in RESIDUALS:
            raise ValueError(f"residual {residual!r} is not one of {', '.join(RESIDUALS)}")
        self.activation = activation
        half, *channels = (max(1, round(width * c)) for c in (64, *STAGE_CHANNELS))
        self.conv1 = nn.Conv2d(3, half, 7, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, channels[0], 7, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels[0])
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs = channels[0]
        for stage, (outputs, blocks) in enumerate(zip(channels, STAGE_BLOCKS, strict=True)):
            strides = [1 if stage == 0 else 2] + [1] * (blocks - 1)
            layer = nn.Sequential()
            for stride in strides:
                layer.append(ResidualBlock(inputs, outputs, stride, activation, residual))
                inputs = outputs
            self.add_module(f"layer{stage + 1}", layer)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():  # as torchvision's ResNets
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, 3, H, W)."""
        x = self.activation(self.bn1(self.conv1(images)))
        x = self.maxpool(self.activation(self.bn2(self.conv2(x))))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return self.fc(self.avgpool(x).flatten(1))
