import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from common.training import loop, precision
from common.training.precision import (
    Float32Conv2d,
    autocast,
    choose_precision,
    with_fp32_convolutions,
)
from common.training.run import Run
from tests.training import test_loop as tiny

CPU = torch.device("cpu")


@pytest.fixture
def measured(monkeypatch):
    """Pretend that bf16 takes so many times the seconds of fp32; counts the measurements."""
    calls = []

    def pretend(bf16_seconds):
        def convolution_seconds(precisions, device):
            calls.append(device)
            return dict(zip(precisions, (1.0, bf16_seconds), strict=True))

        monkeypatch.setattr(precision, "convolution_seconds", convolution_seconds)
        precision._fastest.cache_clear()
        return calls

    yield pretend
    precision._fastest.cache_clear()


@pytest.mark.parametrize(
    ("bf16_seconds", "name", "gain"),
    [(2.0, "fp32", "0.50"), (0.5, "bf16", "2.00"), (0.95, "fp32", "1.05")],
)
def test_auto_chooses_what_is_measured_to_be_faster(measured, capsys, bf16_seconds, name, gain):
    calls = measured(bf16_seconds)
    chosen = choose_precision("auto", CPU)
    assert chosen.name == name
    assert chosen.why == f"a convolution in bf16 is {gain} times as fast as in fp32"
    assert capsys.readouterr().out == f"precision: {name}, {chosen.why}\n"
    assert choose_precision("auto", CPU) == chosen
    assert len(calls) == 1  # once a process


def test_a_precision_that_is_asked_for_is_not_measured(measured, capsys):
    calls = measured(0.5)
    assert choose_precision("fp32", CPU) == precision.Precision("fp32", "asked for")
    assert not calls
    assert not capsys.readouterr().out


def test_the_measurement_is_short_and_leaves_no_trace():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    precision.convolution_seconds(("fp32", "bf16"), CPU)  # loads what any first backward pass does
    start = time.perf_counter()
    seconds = precision.convolution_seconds(("fp32", "bf16"), CPU)
    assert time.perf_counter() - start < 0.5
    assert all(0 < taken < 1 for taken in seconds.values())
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


# --------------------------------------------------------------- convolutions that are slow in bf16


def strided_network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 8, 1)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


def test_slow_convolutions_stay_in_fp32_under_their_names_and_parameters():
    network = strided_network()
    parameters, state = dict(network.named_parameters()), network.state_dict()
    rng_state = torch.get_rng_state()
    assert with_fp32_convolutions(network, "bf16", CPU) is network
    assert torch.equal(torch.get_rng_state(), rng_state)
    assert [type(network[0]), type(network[3][0])] == [Float32Conv2d, Float32Conv2d]
    assert type(network[3][1]) is nn.Conv2d  # neither strided nor grouped
    assert list(network.state_dict()) == list(state)
    for name, parameter in network.named_parameters():
        assert parameter is parameters[name]


def test_slow_convolutions_compute_what_fp32_does():
    wanted, network = strided_network().eval(), strided_network().eval()
    with_fp32_convolutions(network, "bf16", CPU)
    images = torch.rand(2, 3, 9, 9)
    assert torch.equal(network(images), wanted(images))
    with autocast("bf16", CPU):
        maps, maps_in_bf16 = network[0](images), wanted[0](images)
    assert torch.equal(maps, wanted[0](images))
    assert maps_in_bf16.dtype == torch.bfloat16


@pytest.mark.parametrize(("name", "device"), [("fp32", "cpu"), ("fp16", "cpu"), ("bf16", "cuda")])
def test_elsewhere_no_convolution_is_changed(name, device):
    network = strided_network()
    before = list(network.modules())
    assert with_fp32_convolutions(network, name, torch.device(device)) is network
    assert list(network.modules()) == before


def test_a_run_leaves_the_modules_of_its_network_alone():
    network = strided_network()
    before = list(network.modules())
    recipe = replace(tiny.RECIPE, precision="bf16", image_size_px=9)
    loop.train_step(Run(network, recipe, CPU), tiny.packed(), torch.arange(4), 1)
    assert list(network.modules()) == before
    assert not any(isinstance(module, Float32Conv2d) for module in network.modules())
