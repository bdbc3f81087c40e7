"""The activation f(x) = x^2 for x > 0, 0.2 x for x < 0, its variants, and their moments.

    import torch; from common.networks.activations import moments, power_moments, square_leaky
    print(moments(square_leaky(torch.randn(1_000_000))))
    print(power_moments((1, 2), (0.2, 1)))

The example prints two equal sets of moments of f for a normal input: measured, in closed form.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn


class _SquareLeaky(torch.autograd.Function):
    """Compute f(x), and u = -x, which is all that the backward pass needs.

    ATen's `elu_backward` on a result u computes g * p * (u + n) where u <= 0 and g * s elsewhere.
    With n = 0, one call on u = -x gives f, and another its gradient, without a mask.
    -x is an output, so that the backward pass can be differentiated again.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> tuple[Tensor, Tensor]:
        u = -x
        ctx.save_for_backward(u)
        ctx.set_materialize_grads(False)
        return torch.ops.aten.elu_backward(u, 0, -0.2, 1, True, u), u

    @staticmethod
    def backward(ctx, grad: Tensor | None, grad_u: Tensor | None) -> Tensor | None:
        (u,) = ctx.saved_tensors
        if grad is None:
            return None if grad_u is None else -grad_u
        grad_x = torch.ops.aten.elu_backward(grad, 0, 0.2, -2, True, u)
        return grad_x if grad_u is None else grad_x - grad_u


def square_leaky(x: Tensor) -> Tensor:
    """f(x) = x^2 for x > 0, 0.2 x for x < 0, elementwise; f'(0) is 0; NaN and infinities stay."""
    return _SquareLeaky.apply(x)[0]


class SquareLeaky(nn.Module):
    """`square_leaky` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return square_leaky(x)


def where_form(x: Tensor) -> Tensor:
    """f as it is usually written, the reference for `square_leaky`; here f'(0) is 0.2."""
    return torch.where(x > 0, x * x, 0.2 * x)


class WhereForm(nn.Module):
    """`where_form` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return where_form(x)


class PowerLeaky(nn.Module):
    """f_p(x) = x^p for x > 0, 0.2 x for x < 0, elementwise, with p >= 1; f_2 is f."""

    def __init__(self, power: float):
        super().__init__()
        self.power = power

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x.clamp(min=0).pow(self.power), 0.2 * x)


class ClampedSquareLeaky(nn.Module):
    """min(f(x), 6), bounded as ReLU6 is."""

    def forward(self, x: Tensor) -> Tensor:
        return square_leaky(x).clamp(max=6)


def derivative(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The derivative of an elementwise function at x, of x's shape and dtype."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


def moments(values: Tensor) -> dict[str, float]:
    """Mean, variance and kurtosis, E[(y - mean)^4] / variance^2 (3 if normal), of values y."""
    return _central_moments(*((values**k).mean().item() for k in (1, 2, 3, 4)))


def power_moments(
    positive: tuple[float, float], negative: tuple[float, int], deviation: float = 1
) -> dict[str, float]:
    """`moments` in closed form of y = a x^p for x > 0 and b x^q for x < 0, x ~ N(0, deviation^2).

    `positive` is (a, p), `negative` (b, q). By symmetry both parts of E[y^k] are taken over x > 0.
    """
    (a, p), (b, q) = positive, negative
    raw = [
        a**k * _half_moment(p * k, deviation)
        + (b * (-1) ** q) ** k * _half_moment(q * k, deviation)
        for k in (1, 2, 3, 4)
    ]
    return _central_moments(*raw)


def normal_moments(
    functions: Mapping[str, tuple], deviations: Sequence[float], samples: int, seed: int
) -> list[dict]:
    """Moments of functions of normal values, measured on samples and in closed form.

    `functions` is {name: (function, positive, negative)}, with the pairs of `power_moments`. There
    is a row for each deviation and function: function (its name), deviation, measured, closed_form.
    """
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(samples, dtype=torch.float64, generator=generator)
    return [
        {
            "function": name,
            "deviation": deviation,
            "measured": moments(function(deviation * normal)),
            "closed_form": power_moments(*powers, deviation),
        }
        for deviation in deviations
        for name, (function, *powers) in functions.items()
    ]


def _half_moment(power: float, deviation: float) -> float:
    """E[x^power; x > 0] for x ~ N(0, deviation^2): half the absolute moment."""
    gamma = math.gamma((power + 1) / 2) / math.sqrt(math.pi)
    return (deviation * math.sqrt(2)) ** power * gamma / 2


def _central_moments(first: float, second: float, third: float, fourth: float) -> dict[str, float]:
    variance = second - first**2
    about_mean = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
    return {"mean": first, "variance": variance, "kurtosis": about_mean / variance**2}
