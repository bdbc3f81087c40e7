"""Tiny networks of the same kinds, and tiny data, so that a script runs in a second or two."""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torchvision
from matplotlib.figure import Figure
from PIL import Image
from torch import nn
from torchvision.models import EfficientNet
from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig
from torchvision.models.resnet import BasicBlock, ResNet

FIGURE_DPI = 30
LAYER = "features.2"  # whose map at 32 px has several places
FLOWERS = (
    *("--data", "synthetic", "--classes", 3, "--images-per-class", 4, "--image-size", 32),
    *("--batch-size", 6, "--precision", "fp32", "--cache", "cache", "--out", "out"),
)
TRAINED = (*FLOWERS, "--epochs", 2, "--checkpoint-seconds", 0)
FOLDERS = (
    *("--data", "synthetic", "--classes", 3, "--per-class", 6, "--image-size", 32, "--width", 0.13),
    *("--batch-size", 6, "--precision", "fp32", "--cache", "cache", "--out", "out"),
    *("--lr", 1e-5),  # a larger one may end so narrow a network with f in NaN
)
PHOTOS = (
    *("--images", "photos", "--weights", "random", "--layers", "relu1_2", "--no-lpips"),
    *("--curve-size", 32, "--noise-seeds", 1, "--max-references", 2),
    *("--out", "out"),
)


def small_stages(*_) -> tuple[list, int]:
    """Three stages and a last convolution, in place of EfficientNetV2-S' six."""
    stages = [
        FusedMBConvConfig(1, 3, 1, 8, 8, 1),
        FusedMBConvConfig(2, 3, 2, 8, 16, 1),
        MBConvConfig(2, 3, 2, 16, 24, 1),
    ]
    return stages, 32


def small_efficientnet(num_classes: int = 1000, **_) -> EfficientNet:
    """An EfficientNetV2 of small stages."""
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


def replace_networks() -> None:
    """Put small networks in the place of torchvision's large ones, and make figures small."""
    save_figure = Figure.savefig
    Figure.savefig = lambda *args, **options: save_figure(*args, **{**options, "dpi": FIGURE_DPI})
    models = torchvision.models
    small = {
        "efficientnet_v2_s": (models.efficientnet_v2_s, small_efficientnet),
        "resnet34": (models.resnet34, SmallResNet),
        "_efficientnet_conf": (models.efficientnet._efficientnet_conf, small_stages),
    }
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith(("problem", "common.")):
            for name, (large, replacement) in small.items():
                if module.__dict__.get(name) is large:
                    setattr(module, name, replacement)


def picture(seed: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A smooth random picture, uint8 (height, width, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def write_photos(folder: Path, count: int = 3) -> Path:
    """Photos for Problem 1, as PNG files photo0.png, ..."""
    folder.mkdir(parents=True)
    for seed in range(count):
        Image.fromarray(picture(seed)).save(folder / f"photo{seed}.png")
    return folder
