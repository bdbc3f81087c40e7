"""VGG-16's convolutions with taps: where its layers are, and one pass of many images.

    import torch; from common.networks import vgg, weights
    network = vgg.VGG16Features(weights.random_vgg16(seed=0), layers=["relu1_2", "relu5_3"])
    print({name: map_.shape for name, map_ in network(torch.rand(3, 64, 64)).items()})

Images are float (3, H, W) in [0, 1]; layers have torchsummary's number or a name, relu5_3.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from common.data.images import IMAGENET_MEAN, IMAGENET_STD
from common.errors import UserError
from common.networks.weights import Weights

LPIPS_TAPS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")


@dataclass(frozen=True)
class Layer:
    """Place of a layer: torchsummary's number (from 1) and its receptive field in pixels."""

    number: int
    receptive_field_px: int


def _layers() -> dict[str, Layer]:
    """All convolutions and ReLUs by name, "conv1_1" to "relu5_3"."""
    layers, number, block, place, field_px, stride_px = {}, 0, 1, 0, 1, 1
    for channels in cfgs["D"]:
        if channels == "M":  # a max pool
            number, block, place = number + 1, block + 1, 0
            field_px, stride_px = field_px + stride_px, stride_px * 2
        else:
            place, field_px = place + 1, field_px + 2 * stride_px
            layers[f"conv{block}_{place}"] = Layer(number + 1, field_px)
            layers[f"relu{block}_{place}"] = Layer(number + 2, field_px)
            number += 2
    return layers


LAYERS = _layers()


def layer_name(text: str) -> str:
    """A name of LAYERS from either way of naming: "relu5_3" or torchsummary's "30".

    Raises:
        UserError: neither a convolution nor a ReLU of VGG-16's features.
    """
    by_number = {str(layer.number): name for name, layer in LAYERS.items()}
    name = by_number.get(text, text)
    if name not in LAYERS:
        raise UserError(
            f"{text}: no such layer; take conv1_1, relu1_1 ... conv5_3, relu5_3 or torchsummary's"
            " number of one of these (1 to 30; pools are none)"
        )
    return name


def by_depth(names: Iterable[str]) -> list[str]:
    """Names of LAYERS, each once, the shallowest first."""
    return sorted(set(names), key=lambda name: LAYERS[name].number)


class VGG16Features(nn.Module):
    """VGG-16's convolutions, cut behind each tapped layer and ended at the deepest.

    Images are (3, H, W) in [0, 1]: ImageNet's normalisation is inside. It equals LPIPS' own
    scaling of images in [-1, 1], so one pass serves both. Maps are channels_last, of `dtype`.
    """

    def __init__(self, weights: Weights, layers: list[str], dtype: torch.dtype = torch.float32):
        """`layers` are those whose maps are wanted; LPIPS' taps are added where heads are."""
        super().__init__()
        heads = zip(LPIPS_TAPS, weights.lpips_heads, strict=True) if weights.lpips_heads else ()
        self.layers, self.lpips_heads = by_depth(layers), dict(heads)
        self.taps = by_depth([*self.layers, *self.lpips_heads])
        self.dtype = dtype
        self.segments, self.pools = nn.ModuleList(), nn.ModuleList()
        self._cut(weights.features)
        self.to(dtype=dtype, memory_format=torch.channels_last)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1))

    def _cut(self, features: dict[str, Tensor]) -> None:
        """A segment up to each tap, and the pool behind it, which the next segment begins with."""
        layers = make_layers(cfgs["D"])
        layers.load_state_dict(features)
        start = 0
        for tap in self.taps:
            end = LAYERS[tap].number
            self.segments.append(layers[start:end])
            pooled = isinstance(layers[end], nn.MaxPool2d)
            self.pools.append(layers[end] if pooled else nn.Identity())
            start = end + 1 if pooled else end
            if isinstance(layers[end], nn.ReLU):
                layers[end].inplace = False  # it would overwrite the tapped convolution's map

    def normalise(self, images: Tensor) -> Tensor:
        """An image (3, H, W) or (N, 3, H, W), on any device, as the first segment's input."""
        images = (images.to(self.mean.device) - self.mean) / self.std
        images = images if images.ndim == 4 else images[None]
        return images.to(self.dtype).contiguous(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The (N, C, h, w) maps of all taps, by name, of images as `normalise` takes them."""
        state, maps = self.normalise(images), {}
        for tap, segment, pool in zip(self.taps, self.segments, self.pools, strict=True):
            maps[tap] = segment(state)
            state = pool(maps[tap])
        return maps


def lock_step(
    network: VGG16Features,
    images: Mapping[Hashable, Tensor],
    pairs: Mapping[Hashable, tuple[Hashable, Hashable]],
    progress: Callable[[], object] = lambda: None,
) -> Iterator[tuple[Hashable, str, Tensor, Tensor]]:
    """Yield (key, tap, map, map) of every pair of images at every tap, with one pass an image.

    `images` maps names to (3, H, W) images of one size, `pairs` maps a key to two of the names.
    The images go segment by segment in lock step, in the order given, and a map is dropped once
    its last pair is out: put the images of many pairs first. What waits for the next segment
    waits behind the pool, at a quarter of the size. `progress` is called once an image and tap.
    """
    states = dict.fromkeys(images)
    for tap, segment, pool in zip(network.taps, network.segments, network.pools, strict=True):
        maps, due = {}, Counter(name for pair in pairs.values() for name in pair)
        for name, image in images.items():
            # Around the passes alone: as a decorator it would keep the last pair's maps alive.
            with torch.inference_mode():
                state = network.normalise(image) if states[name] is None else states[name]
                maps[name] = segment(state)
                states[name] = None if tap == network.taps[-1] else pool(maps[name])
            for key, (a, b) in pairs.items():
                if name in (a, b) and a in maps and b in maps:
                    yield key, tap, maps[a], maps[b]
                    due.subtract((a, b))
            maps = {kept: maps[kept] for kept in maps if due[kept] > 0}
            progress()
