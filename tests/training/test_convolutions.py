import copy

import pytest
import torch
from torch import nn

from common.training.convolutions import FastConv2d, with_fast_convolutions
from common.training.precision import autocast

CPU = torch.device("cpu")


def conv(kind, stride, bias):
    torch.manual_seed(1)
    kernel, groups = {"depthwise": (3, 16), "pointwise": (1, 1), "dense": (3, 1)}[kind]
    outputs = 16 if kind == "depthwise" else 24
    return nn.Conv2d(16, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias)


@pytest.mark.parametrize("side_px", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["depthwise", "pointwise", "dense"])
def test_maps_and_gradients_are_those_of_the_plain_convolution(kind, stride, bias, side_px):
    plain = conv(kind, stride, bias)
    fast = FastConv2d(copy.deepcopy(plain))
    maps = torch.randn(3, 16, side_px, side_px).contiguous(memory_format=torch.channels_last)
    inputs = [maps.clone().requires_grad_() for _ in range(2)]
    outputs = [layer(x) for layer, x in zip((plain, fast), inputs, strict=True)]
    upstream = torch.randn_like(outputs[0])
    for output in outputs:
        output.backward(upstream)
    if kind == "dense" or (kind == "depthwise" and not bias):
        assert torch.equal(*outputs)
    pairs = [outputs, [x.grad for x in inputs]]
    pairs += zip(*([p.grad for p in layer.parameters()] for layer in (plain, fast)), strict=True)
    for wanted, got in pairs:
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def strided_network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 8, 1)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


def test_convolutions_keep_their_names_and_parameters():
    network = strided_network()
    parameters, state = dict(network.named_parameters()), network.state_dict()
    rng_state = torch.get_rng_state()
    assert with_fast_convolutions(network, CPU) is network
    assert torch.equal(torch.get_rng_state(), rng_state)
    assert [type(layer) for layer in (network[0], *network[3])] == 3 * [FastConv2d]
    assert list(network.state_dict()) == list(state)
    for name, parameter in network.named_parameters():
        assert parameter is parameters[name]


def test_those_that_are_slow_in_bf16_stay_in_fp32():
    wanted, network = strided_network().eval(), with_fast_convolutions(strided_network(), CPU)
    images = torch.rand(2, 3, 9, 9)
    with autocast("bf16", CPU):
        maps = network[0](images)
        assert network[3][0](maps).dtype == torch.float32
        assert network[3][1](maps).dtype == torch.bfloat16  # neither strided nor grouped
    assert torch.equal(maps, wanted[0](images))
