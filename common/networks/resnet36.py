"""ResNet-36, the report's network: 36 weighted layers, with any activation.

    import torch; from common.networks.resnet36 import ResNet36
    network = ResNet36(classes=10, activation=torch.nn.ReLU, width=0.25)
    print(network(torch.rand(2, 3, 64, 64)).shape)

Its arguments say where the activation stands and what the stem does.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models import resnet34

from common.networks.activations import ClampedSquareLeaky, PowerLeaky, SquareLeaky
from common.networks.normalized import Normalized, seeded

STAGE_BLOCKS, STAGE_CHANNELS = (3, 3, 3, 2), (128, 256, 512, 1024)
RESIDUALS = ("branch", "sum")  # where the activation is in a block
RELU_STEM = "relu,relu"
# The stem's two activations, f (the network's own) or ReLU, and any norm after each.
STEMS = (
    *("f,f", "f,f+bn", "f+bn,f+bn", "f,f+dn", "f+dn,f+dn"),
    *("f,relu", "relu,f", "relu,f+bn", RELU_STEM, "relu,relu+dn"),
)
Activation = Callable[[], nn.Module]
EXPONENTS = (1, 1.25, 1.5, 1.75, 2)
ACTIVATIONS = {"f": SquareLeaky, "ReLU": nn.ReLU, "clamped": ClampedSquareLeaky}
ACTIVATIONS |= {f"f_{power:g}": partial(PowerLeaky, power) for power in EXPONENTS}


class DivisiveNorm(nn.Module):
    """Divide each place's values by their root mean square over the channels.

    Divisive normalisation (Heeger 1992) divides squares by the pooled squares of their neighbours.
    This layer is RMSNorm (Zhang & Sennrich 2019) over the channels, without gains.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (N, C, H, W); a mean square of m at a place becomes m / (m + 0.001)."""
        power = maps.float().square().mean(1, keepdim=True)
        return maps * torch.rsqrt(power + 1e-3).to(maps.dtype)


def stem_activation(kind: str, channels: int, activation: Activation) -> nn.Module:
    """A stem activation, such as "f" or "relu+bn": +bn adds a batch norm, +dn a `DivisiveNorm`."""
    name, _, norm = kind.partition("+")
    module = nn.ReLU() if name == "relu" else activation()
    norms = {"bn": partial(nn.BatchNorm2d, channels), "dn": DivisiveNorm}
    return nn.Sequential(module, norms[norm]()) if norm else module


class ResidualBlock(nn.Module):
    """Three 3x3 convolutions with batch norm, and a 1x1 shortcut where the shape changes.

    `activation` stands between a batch norm and the next convolution. `after_sum` is None, or the
    activation after the residual sum, as in He et al. 2016 and, we assume, in the report.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        activation: Activation,
        after_sum: Activation | None,
    ):
        super().__init__()
        conv = partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)
        self.conv1, self.bn1 = conv(inputs, outputs, stride=stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.conv3, self.bn3 = conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.activation1, self.activation2 = activation(), activation()
        self.activation3 = after_sum() if after_sum else None
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        branch = self.activation1(self.bn1(self.conv1(x)))
        branch = self.activation2(self.bn2(self.conv2(branch)))
        total = self.bn3(self.conv3(branch)) + self.shortcut(x)
        return total if self.activation3 is None else self.activation3(total)


class ResNet36(nn.Module):
    """The report's network: 36 weighted layers on the main path, `width` times as wide.

    `activation` is called for each place, so that every activation is a named module. `residual`:
    it stands in each block's "branch" alone, or after the "sum" too; `branch_activation` and
    `sum_activation` replace it there. `stem`: one of STEMS. `zero_init_residual`: gamma of each
    branch's last batch norm starts at 0, as in torchvision. `gamma`: its start in batch norms right
    before an activation in stem or branch, unless that is ReLU. `init`: convolutions start as in
    torchvision's ResNets ("he", He et al. 2015) or by PyTorch's default ("pytorch").
    """

    def __init__(
        self,
        classes: int = 500,
        activation: Activation = SquareLeaky,
        residual: str = "branch",
        width: float = 1,
        zero_init_residual: bool = False,
        stem: str = "f,f",
        gamma: float = 1,
        init: str = "he",
        branch_activation: Activation | None = None,
        sum_activation: Activation | None = None,
    ):
        super().__init__()
        after_sum = (sum_activation or activation) if residual == "sum" else None
        of_block = (branch_activation or activation, after_sum)
        first, second = stem.split(",")
        half, *channels = (max(1, round(width * c)) for c in (64, *STAGE_CHANNELS))
        self.conv1 = nn.Conv2d(3, half, 7, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.activation1 = stem_activation(first, half, activation)
        self.conv2 = nn.Conv2d(half, channels[0], 7, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels[0])
        self.activation2 = stem_activation(second, channels[0], activation)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs = channels[0]
        for stage, (outputs, blocks) in enumerate(zip(channels, STAGE_BLOCKS, strict=True), 1):
            layer = nn.Sequential()
            for block in range(blocks):
                stride = 2 if stage > 1 and block == 0 else 1
                layer.append(ResidualBlock(inputs, outputs, stride, *of_block))
                inputs = outputs
            self.add_module(f"layer{stage}", layer)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)
        self._start(init, gamma, zero_init_residual)

    def _start(self, init: str, gamma: float, zero_init_residual: bool) -> None:
        for module in self.modules():
            if init == "he" and isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, (ResNet36, ResidualBlock)):
                places = (module.bn1, module.activation1), (module.bn2, module.activation2)
                for norm, activation in places:
                    if not any(isinstance(part, nn.ReLU) for part in activation.modules()):
                        nn.init.constant_(norm.weight, gamma)
            if zero_init_residual and isinstance(module, ResidualBlock):
                nn.init.zeros_(module.bn3.weight)

    def forward(self, images: Tensor) -> Tensor:
        x = self.activation1(self.bn1(self.conv1(images)))
        x = self.maxpool(self.activation2(self.bn2(self.conv2(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def new_network(build: Callable, arguments: Mapping, seed: int) -> tuple[Normalized, dict]:
    """Build a network for images in [0, 1] from a seed; return it and its identity, a dict.

    Arguments whose names end in "activation" are names in ACTIVATIONS.
    """
    named = {k: ACTIVATIONS[name] for k, name in arguments.items() if k.endswith("activation")}
    network = seeded(partial(build, **{**arguments, **named}), seed)
    return network, {"init": "scratch", **arguments}


def resnet34_with(activation: Activation, classes: int, seed: int) -> Normalized:
    """torchvision's ResNet-34 with each ReLU, also after sums, replaced by another activation."""
    network = seeded(partial(resnet34, num_classes=classes), seed)
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.ReLU):
            network.set_submodule(name, activation())
    return network
