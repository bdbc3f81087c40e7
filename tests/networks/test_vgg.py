import math
from dataclasses import replace

import pytest
import torch
from torchvision.models.vgg import cfgs, make_layers

from common.errors import UserError
from common.networks.vgg import LAYERS, VGG16Features, layer_name, pools_of, valid_cells
from tests.conftest import image


def plain_maps(weights, one_image):
    """All maps of torchvision's VGG-16, without hooks and without in-place layers."""
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


def test_a_pass_goes_no_deeper_than_asked(random_weights):
    without_lpips = replace(random_weights, lpips_heads=None)
    network = VGG16Features(without_lpips, ["relu1_2", "relu2_2"])
    convolutions = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(convolutions) == 4


@torch.inference_mode()
@pytest.mark.parametrize("layer", ["relu2_2", "pool2", "relu3_1"])
def test_valid_cells_are_those_that_a_larger_crop_has_too(random_weights, layer):
    large = image(0, 96, 96)
    network = VGG16Features(replace(random_weights, lpips_heads=None), [layer])
    whole, crop = network(large)[layer], network(large[:, 16:80, 16:80])[layer]
    cells, offset = valid_cells(layer, 64), 16 // LAYERS[layer].stride_px
    inside = slice(cells.start + offset, cells.stop + offset)
    same = (whole[..., offset : offset + crop.shape[-1], inside] - crop[..., cells]).abs()
    assert same[..., cells, :].max() < 1e-5
    assert same[..., cells.start - 1, :].max() > 1e-5
    assert same[..., cells.stop, :].max() > 1e-5


def test_a_crop_as_small_as_the_receptive_field_has_at_most_one_valid_cell():
    for side_px in range(180, 212):
        cells = valid_cells("relu5_3", side_px)
        assert 0 <= cells.stop - cells.start <= 1 + side_px // 212
    assert valid_cells("relu5_3", 384) == slice(6, 18)


def test_pools_stand_between_the_layers_before_and_behind_them():
    assert pools_of(["relu3_1", "pool2", "relu2_2", "relu5_3"]) == {"pool2": ("relu2_2", "relu3_1")}
    assert pools_of(["relu1_2", "pool2", "relu3_1"]) == {}


def test_the_reports_layers_and_their_receptive_fields():
    names = [layer_name(number) for number in ("4", "9", "10", "12", "30")]
    assert names == ["relu1_2", "relu2_2", "pool2", "relu3_1", "relu5_3"]
    assert [LAYERS[name].receptive_field_px for name in names] == [5, 14, 16, 24, 196]
    assert layer_name("conv5_3") == layer_name("29")
    for text in ("32", "0", "relu6_1", "conv3_4", "fc6"):
        with pytest.raises(UserError, match="no such layer"):
            layer_name(text)


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
