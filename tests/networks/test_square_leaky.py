import math

import pytest
import torch

from common.networks import activations
from common.networks.activations import (
    ClampedSquareLeaky,
    PowerLeaky,
    WhereForm,
    square_leaky,
    where_form,
)


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
