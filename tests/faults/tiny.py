"""Tiny networks of the same kinds, and tiny data, so that a script runs in a second or two."""

from functools import partial
from pathlib import Path

from PIL import Image
from torch import nn
from torchvision.models import EfficientNet
from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig
from torchvision.models.resnet import BasicBlock, ResNet

LAYER = "features.2"  # its map at 32 px has several places
FLOWERS = (
    *("--data", "synthetic", "--classes", 3, "--images-per-class", 4, "--image-size", 32),
    *("--batch-size", 6, "--precision", "fp32", "--cache", "cache", "--out", "out"),
)
TRAINED = (*FLOWERS, "--epochs", 2, "--checkpoint-seconds", 0)
FOLDERS = (
    *("--data", "synthetic", "--classes", 3, "--per-class", 6, "--image-size", 32, "--width", 0.13),
    *("--batch-size", 6, "--precision", "fp32", "--cache", "cache", "--out", "out"),
    *("--lr", 1e-5),  # at a larger one, so narrow a network with f may get NaN
)
PHOTOS = (
    *("--images", "photos", "--weights", "random", "--layers", "relu1_2", "--no-lpips"),
    *("--curve-size", 32, "--noise-seeds", 1, "--max-references", 2),
    *("--out", "out"),
)


def small_stages(*_) -> tuple[list, int]:
    """Three stages and the channels of a last convolution; EfficientNetV2-S has six stages."""
    stages = [
        FusedMBConvConfig(1, 3, 1, 8, 8, 1),
        FusedMBConvConfig(2, 3, 2, 8, 16, 1),
        MBConvConfig(2, 3, 2, 16, 24, 1),
    ]
    return stages, 32


def small_efficientnet(num_classes: int = 1000, **_) -> EfficientNet:
    """An EfficientNetV2 with small stages."""
    stages, last = small_stages()
    norm = partial(nn.BatchNorm2d, eps=1e-3)
    return EfficientNet(
        stages, dropout=0.2, num_classes=num_classes, norm_layer=norm, last_channel=last
    )


class SmallResNet(ResNet):
    """A ResNet of four blocks, an eighth as wide after its stem.

    With 4 channels oneDNN writes beyond its memory on a processor with AVX2.
    """

    def __init__(self, num_classes: int = 1000, zero_init_residual: bool = False):
        super().__init__(
            BasicBlock, [1, 1, 1, 1], num_classes, zero_init_residual=zero_init_residual
        )
        self.fc = nn.Linear(512 // 8, num_classes)

    def _make_layer(self, block, planes: int, *args, **options):
        return super()._make_layer(block, planes // 8, *args, **options)


def use_small_networks(replace=setattr) -> None:
    """Replace torchvision's networks by small ones; `replace` may be monkeypatch's setattr."""
    import problem2_flowers
    import problem3_resnet36
    from common.networks import efficientnet, resnet36, widening

    for module in (efficientnet, problem2_flowers):
        replace(module, "efficientnet_v2_s", small_efficientnet)
    for module in (resnet36, problem3_resnet36):
        replace(module, "resnet34", SmallResNet)
    replace(widening, "_efficientnet_conf", small_stages)


def write_photos(folder: Path, count: int = 3) -> Path:
    """Photos for Problem 1, as PNG files photo0.png, ..."""
    from tests.conftest import picture  # not needed by the scripts themselves

    folder.mkdir(parents=True)
    for seed in range(count):
        Image.fromarray(picture(seed, 64, 48)).save(folder / f"photo{seed}.png")
    return folder
