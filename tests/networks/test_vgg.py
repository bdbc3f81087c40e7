import math
from dataclasses import replace

import pytest
import torch
from torchvision.models.vgg import cfgs, make_layers

from common.data.images import to_tensor
from common.errors import UserError
from common.networks.vgg import LAYERS, VGG16Features, layer_name, lock_step
from common.networks.weights import random_vgg16
from tests.conftest import picture


def image(seed, width=48, height=40):
    return to_tensor(picture(seed, width, height))


@pytest.fixture(scope="module")
def random_weights():
    return random_vgg16(seed=0)


def plain_maps(weights, one_image):
    """All maps of a hook-free torchvision VGG-16, none of its layers in place."""
    layers = make_layers(cfgs["D"])
    layers.load_state_dict(weights.features)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    state, maps = ((one_image - mean) / std)[None], []
    for layer in layers:
        if isinstance(layer, torch.nn.ReLU):
            layer.inplace = False
        maps.append(state := layer(state))
    return {name: maps[place.number - 1] for name, place in LAYERS.items()}


@torch.inference_mode()
def test_maps_of_all_26_layers_equal_plain_vgg16(random_weights):
    expected = plain_maps(random_weights, image(0))
    maps = VGG16Features(random_weights, list(LAYERS))(image(0))
    assert list(maps) == list(LAYERS)
    assert len(maps) == 26
    for name, values in maps.items():
        error = (values - expected[name]).norm() / expected[name].norm()
        assert error < 1e-5, name
    assert maps["conv5_3"].min() < 0  # the value before the ReLU
    assert maps["relu5_3"].min() == 0


def test_each_image_passes_once_and_no_deeper_than_asked(random_weights):
    without_lpips = replace(random_weights, lpips_heads=None)
    network = VGG16Features(without_lpips, ["relu1_2", "relu2_2"])
    calls = []
    for segment in network.segments:
        segment.register_forward_hook(lambda *_: calls.append(1))
    images = {name: image(seed) for seed, name in enumerate("abcd")}
    pairs = {(x, y): (x, y) for x in "abcd" for y in "abcd" if x < y}
    seen = [(key, tap) for key, tap, _, _ in lock_step(network, images, pairs)]
    assert len(calls) == 4 * 2
    assert sorted(seen) == sorted((pair, tap) for pair in pairs for tap in network.taps)
    convolutions = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(convolutions) == 4


def test_maps_are_dropped_after_their_last_pair(random_weights):
    network = VGG16Features(replace(random_weights, lpips_heads=None), ["relu1_2"])
    images = {i: image(i) for i in range(6)}
    pairs = {i: (0, i) for i in range(1, 6)}
    alive = torch.multiprocessing.reductions.StorageWeakRef
    refs = []
    for _, _, a, b in lock_step(network, images, pairs):
        refs += [alive(map_.untyped_storage()) for map_ in (a, b)]
        del a, b
        held = {ref.cdata for ref in refs if not ref.expired()}
        assert len(held) <= 2


@pytest.mark.parametrize("text", ["31", "5", "0", "relu6_1", "conv3_4", "fc6"])
def test_unknown_layer(text):
    with pytest.raises(UserError, match="no such layer"):
        layer_name(text)


def test_the_reports_layers_and_their_receptive_fields():
    names = [layer_name(number) for number in ("4", "9", "12", "30")]
    assert names == ["relu1_2", "relu2_2", "relu3_1", "relu5_3"]
    assert [LAYERS[name].receptive_field_px for name in names] == [5, 14, 24, 196]
    assert layer_name("conv5_3") == layer_name("29")


@torch.inference_mode()
def test_receptive_field_by_changing_one_pixel(random_weights):
    a = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0))
    b = a.clone()
    b[:, 48, 48] += 0.5
    network = VGG16Features(random_weights, ["relu1_2", "conv2_2"])
    for name, x, y in zip(network.layers, network(a).values(), network(b).values(), strict=False):
        changed = (x != y)[0].any(0).any(0).sum().item()
        stride = 96 // x.shape[-1]
        assert changed == math.ceil(LAYERS[name].receptive_field_px / stride), name
