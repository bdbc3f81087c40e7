"""f(x) = x^2 for x > 0, 0.2 x for x < 0: Problem 3's activation, in one pass and little memory.

    import torch; from common.networks.square_leaky import square_leaky
    x = torch.tensor([-1.0, 0.0, 3.0])
    print(square_leaky(x))

Its relatives here: as it is usually written, with another power, and with a bound.
"""

import torch
from torch import Tensor, nn


class _SquareLeaky(torch.autograd.Function):
    """The activation, and -x, which is all that its backward pass needs.

    ATen's `elu_backward` on a result u computes g * p * (u + n) where u <= 0 and g * s * u' where
    not: with n = 0 both f and its derivative are one pass of it over u = -x, without a mask.
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
    """f(x) = x^2 for x > 0, 0.2 x for x < 0, elementwise; f'(0) is 0, NaN and infinities pass."""
    return _SquareLeaky.apply(x)[0]


class SquareLeaky(nn.Module):
    """The activation f as a module: `square_leaky` of what comes in."""

    def forward(self, x: Tensor) -> Tensor:
        """f(x), the same shape and dtype as x."""
        return square_leaky(x)


def where_form(x: Tensor) -> Tensor:
    """f as it is usually written, which `square_leaky` is measured against; f'(0) is 0.2."""
    return torch.where(x > 0, x * x, 0.2 * x)


class WhereForm(nn.Module):
    """The activation as a module, as it is usually written."""

    def forward(self, x: Tensor) -> Tensor:
        """`where_form` of x."""
        return where_form(x)


class PowerLeaky(nn.Module):
    """f_p(x) = x^p for x > 0, 0.2 x for x < 0, elementwise, p of 1 or more: f for p = 2."""

    def __init__(self, power: float):
        super().__init__()
        self.power = power

    def forward(self, x: Tensor) -> Tensor:
        """f_p(x), the same shape and dtype as x."""
        return torch.where(x > 0, x.clamp(min=0).pow(self.power), 0.2 * x)


class ClampedSquareLeaky(nn.Module):
    """Another function than f: f with an upper bound."""

    def __init__(self, bound: float = 6):  # as ReLU6
        super().__init__()
        self.bound = bound

    def forward(self, x: Tensor) -> Tensor:
        """min(f(x), bound), the same shape and dtype as x."""
        return square_leaky(x).clamp(max=self.bound)
