import math
from collections import Counter

import pytest
import torch
from torch import nn

from common.networks import activations, timing
from common.networks.activations import (
    ClampedSquareLeaky,
    PowerLeaky,
    WhereForm,
    square_leaky,
    where_form,
)
from common.networks.timing import PeakMemory, compare_costs

POWERS = {"cube": (lambda x: x**3, (1, 3), (1, 3)), "half": (lambda x: 0.5 * x, (0.5, 1), (0.5, 1))}


def test_the_derivative_is_autograds_and_leaves_x_alone():
    x = torch.tensor([-1.0, 0.5, 2.0])
    assert activations.derivative(torch.square, x).tolist() == [-2, 1, 4]
    assert not x.requires_grad


def test_moments_are_those_of_their_definition():
    values = torch.tensor([0.0, 1.0, 1.0, 4.0], dtype=torch.float64)
    about_mean = values - 1.5
    variance = about_mean.square().mean()
    wanted = {"mean": 1.5, "variance": variance.item()}
    wanted["kurtosis"] = (about_mean.pow(4).mean() / variance**2).item()
    assert activations.moments(values) == pytest.approx(wanted)


def test_what_is_measured_comes_near_the_closed_form_and_depends_on_the_seed_alone():
    rows = activations.normal_moments(POWERS, (1.0, 2.0), 200_000, seed=0)
    assert [(row["function"], row["deviation"]) for row in rows] == [
        (name, deviation) for deviation in (1.0, 2.0) for name in POWERS
    ]
    for row in rows:
        exact = row["closed_form"]["variance"]
        assert row["measured"]["variance"] == pytest.approx(exact, rel=0.05)
    assert rows == activations.normal_moments(POWERS, (1.0, 2.0), 200_000, seed=0)


def test_shapes_are_those_of_the_modules_of_a_kind():
    layers = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.ReLU(), nn.ReLU())
    shapes = timing.output_shapes(nn.Sequential(*layers), "ReLU", (3, 10, 12))
    assert shapes == Counter({(4, 8, 10): 1, (4, 4, 5): 2})
    rows = timing.costs_by_shape({"ReLU": torch.relu}, shapes, 2, 1, torch.device("cpu"))
    assert [(row["shape"], row["times"]) for row in rows] == [((4, 8, 10), 1), ((4, 4, 5), 2)]
    assert rows[0]["bytes"] == {"ReLU": 2 * 4 * 2 * 320}


def test_the_ratio_of_costs_weighs_rows_by_how_often_they_occur():
    rows = [
        {"times": 1, "seconds": {"f": 2.0, "g": 1.0}},
        {"times": 3, "seconds": {"f": 1.0, "g": 3.0}},
    ]
    assert timing.cost_ratio(rows, "seconds", "f", "g") == 0.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_value_and_gradient_equal_the_where_form(dtype):
    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(2, 5, 7, 3, generator=generator)).to(dtype)
    x[0, 0, 0] = torch.tensor([0.0, -0.0, 1.0])
    x = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(square_leaky(x), where_form(x))
    assert square_leaky(x).is_contiguous(memory_format=torch.channels_last)
    away = x != 0
    slopes = torch.where(x > 0, 2 * x, torch.tensor(0.2, dtype=dtype))
    assert torch.equal(activations.derivative(square_leaky, x)[away], slopes[away])


def test_first_and_second_derivative_are_right_to_gradcheck():
    x = torch.tensor([-2.0, -0.5, 0.3, 1.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(square_leaky, x)
    assert torch.autograd.gradgradcheck(square_leaky, x)


def test_nan_infinities_and_nothing_pass_through():
    x = torch.tensor([math.nan, math.inf, -math.inf])
    assert square_leaky(x).isnan().tolist() == [True, False, False]
    assert square_leaky(x)[1:].tolist() == [math.inf, -math.inf]
    empty = torch.empty(0, 3, requires_grad=True)
    square_leaky(empty).sum().backward()
    assert empty.grad.shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_it_keeps_the_dtype_that_it_gets(dtype):
    x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(square_leaky(x), where_form(x))
        assert square_leaky(x).dtype == activations.derivative(square_leaky, x).dtype == dtype


def test_under_compile_value_and_gradient_are_the_same():
    x = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(square_leaky, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), square_leaky(x))
    slopes = activations.derivative(square_leaky, x)
    assert torch.equal(activations.derivative(compiled, x), slopes)


def test_the_clamp_bounds_f():
    clamped = ClampedSquareLeaky()(torch.tensor([-5.0, 2.0, 100.0]))
    assert clamped.tolist() == [-1, 4, 6]


def test_the_power_2_is_f_and_the_power_1_leaky_relu():
    x = torch.linspace(-3, 3, 61)
    torch.testing.assert_close(PowerLeaky(2)(x), where_form(x))
    torch.testing.assert_close(PowerLeaky(1)(x), torch.nn.functional.leaky_relu(x, 0.2))
    x = torch.tensor([-2.0, 0.0, 1.5], dtype=torch.float64)
    slopes = activations.derivative(PowerLeaky(1.5), x)
    torch.testing.assert_close(slopes, torch.tensor([0.2, 0.2, 1.5 * 1.5**0.5]).double())


def test_at_zero_the_forms_differ_in_their_derivative_alone():
    x = torch.zeros(2)
    assert activations.derivative(square_leaky, x).tolist() == [0, 0]
    assert activations.derivative(WhereForm(), x).tolist() == pytest.approx([0.2, 0.2])


def test_f_is_monotone_so_that_a_max_pool_before_it_is_one_after_it():
    maps = 2 * torch.randn(2, 5, 9, 9, generator=torch.Generator().manual_seed(0))
    pool = torch.nn.MaxPool2d(3, stride=2, padding=1)
    assert torch.equal(pool(square_leaky(maps)), square_leaky(pool(maps)))


# -------------------------------------------------------------------------------------------- costs


def test_peak_memory_counts_what_is_held_at_once():
    x = torch.zeros(1000)
    with PeakMemory() as memory:
        a = x + 1  # stays in memory
        for _ in range(3):
            b = a * 2
            del b
        a.add_(1)  # allocates nothing
    assert memory.peak == 8000
    del a
    assert memory.held == 0


def test_a_storage_that_views_share_counts_once():
    x = torch.zeros(1000)
    with PeakMemory() as memory:
        a = x + 1
        views = a.view(10, 100), a[:500], x.view(100, 10)
    assert memory.peak == 4000
    assert len(views) == 3


def test_costs_of_relu_and_its_where_form():
    calls = []

    def where(x):
        calls.append(x.requires_grad)
        return torch.where(x > 0, x, 0)

    x = torch.randn(16, 64)
    costs = compare_costs({"ReLU": torch.relu, "where": where}, x, repeats=3)
    assert costs.keys() == {"seconds", "bytes"}
    assert costs["bytes"]["ReLU"] == 2 * 4 * x.numel()  # the result and the gradient
    assert costs["bytes"]["where"] > costs["bytes"]["ReLU"]
    assert min(costs["seconds"].values()) > 0
    assert calls == [True] * (2 + 3 + 1)  # warm-up, timing, memory
    assert not x.requires_grad
