"""VGG-16's layers and their geometry, and one pass that returns the maps of some layers (taps).

    import torch; from common.networks import vgg, weights
    network = vgg.VGG16Features(weights.random_vgg16(seed=0), layers=["relu1_2", "relu5_3"])
    print({name: map_.shape for name, map_ in network(torch.rand(3, 64, 64)).items()})

Images are float (3, H, W) in [0, 1]; layers have torchsummary's number or a name such as relu5_3.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.vgg import cfgs, make_layers

from common.errors import UserError
from common.networks.normalized import Normalized
from common.networks.weights import Weights

LPIPS_TAPS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")


@dataclass(frozen=True)
class Layer:
    """Geometry of a layer: torchsummary's number (from 1), receptive field and stride in pixels.

    `first_px` is the first pixel of the receptive field of cell 0; that of cell k starts at
    first_px + k * stride_px. Pixels outside the image are zeros of the padding.
    """

    number: int
    receptive_field_px: int
    stride_px: int
    first_px: int


def _layers() -> dict[str, Layer]:
    """All convolutions, ReLUs and pools by name, "conv1_1" to "pool5"."""
    layers, number, block, place, field_px, stride_px, first_px = {}, 0, 1, 0, 1, 1, 0
    for channels in cfgs["D"]:
        if channels == "M":  # a max pool, which has no padding
            field_px, stride_px, number = field_px + stride_px, stride_px * 2, number + 1
            layers[f"pool{block}"] = Layer(number, field_px, stride_px, first_px)
            block, place = block + 1, 0
        else:
            place, field_px, first_px = place + 1, field_px + 2 * stride_px, first_px - stride_px
            for step, kind in enumerate(("conv", "relu"), 1):
                of_kind = Layer(number + step, field_px, stride_px, first_px)
                layers[f"{kind}{block}_{place}"] = of_kind
            number += 2
    return layers


LAYERS = _layers()


def layer_name(text: str) -> str:
    """The name in LAYERS of a layer given by name ("relu5_3") or torchsummary's number ("30")."""
    by_number = {str(layer.number): name for name, layer in LAYERS.items()}
    name = by_number.get(text, text)
    if name not in LAYERS:
        raise UserError(
            f"layer {text}: no such layer; choose from conv1_1, relu1_1 ... relu5_3, pool1 ..."
            " pool5, or torchsummary's numbers of these (1 to 31)"
        )
    return name


def by_depth(names: Iterable[str]) -> list[str]:
    """Names of LAYERS, each once, the shallowest first."""
    return sorted(set(names), key=lambda name: LAYERS[name].number)


def pools_of(layers: Iterable[str]) -> dict[str, tuple[str, str]]:
    """{pool: (the ReLU before it, the next of `layers` after it)}, if `layers` has all three."""
    ordered, found = by_depth(layers), {}
    for before, pool, after in zip(ordered, ordered[1:], ordered[2:], strict=False):
        if pool.startswith("pool") and LAYERS[before].number == LAYERS[pool].number - 1:
            found[pool] = (before, after)
    return found


def valid_cells(tap: str, side_px: int) -> slice:
    """The rows (or columns) of a tap's map of a square image that see no padding."""
    layer = LAYERS[tap]
    first = -(layer.first_px // layer.stride_px)
    last = (side_px - layer.receptive_field_px - layer.first_px) // layer.stride_px
    return slice(first, max(first, last + 1))


class VGG16Features(Normalized):
    """VGG-16 up to the deepest tap: {tap: its maps (N, C, h, w)} of images in [0, 1].

    `layers` are those whose maps are wanted; LPIPS' taps are added if the weights have heads. The
    normalisation inside equals LPIPS' own scaling of images in [-1, 1], so one pass serves both.
    Maps are channels_last and of `dtype`.
    """

    def __init__(self, weights: Weights, layers: list[str], dtype: torch.dtype = torch.float32):
        super().__init__(make_layers(cfgs["D"]))
        self.network.load_state_dict(weights.features)
        heads = zip(LPIPS_TAPS, weights.lpips_heads, strict=True) if weights.lpips_heads else ()
        self.layers, self.lpips_heads = by_depth(layers), dict(heads)
        self.taps = by_depth([*self.layers, *self.lpips_heads])
        self.dtype = dtype
        for tap in self.taps:
            if tap.startswith("conv"):  # in place, the next ReLU would overwrite its map
                self.network[LAYERS[tap].number].inplace = False
        nodes = {str(LAYERS[tap].number - 1): tap for tap in self.taps}
        cut = create_feature_extractor(self.network, nodes)
        self.network = cut.to(dtype=dtype, memory_format=torch.channels_last)

    def normalise(self, images: Tensor) -> Tensor:
        """The first layer's input for an image (3, H, W) or images (N, 3, H, W), on any device."""
        images = super().normalise(images.to(self.mean.device))
        images = images if images.ndim == 4 else images[None]
        return images.to(self.dtype).contiguous(memory_format=torch.channels_last)
