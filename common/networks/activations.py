"""What an activation does: its derivative, the moments that it gives a normal input, its cost.

    import torch; from common.networks.activations import moments, power_moments
    print(moments(torch.randn(10_000).relu()))
    print(power_moments((1, 1), (0, 1)))

The two agree: a ReLU's moments measured, and in closed form.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from common.networks.timing import compare_costs
from common.training.watch import watched

Function = Callable[[Tensor], Tensor]


def derivative(function: Function, x: Tensor) -> Tensor:
    """The derivative of an elementwise function at x, of x's shape and dtype."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


def moments(values: Tensor) -> dict[str, float]:
    """Mean, variance and kurtosis E[(y - mean)^4] / variance^2 of values, 3 for normal ones."""
    return _central_moments(*((values**k).mean().item() for k in (1, 2, 3, 4)))


def power_moments(
    positive: tuple[float, int], negative: tuple[float, int], deviation: float = 1
) -> dict[str, float]:
    """`moments` in closed form of y = a x^p for x > 0 and b x^q for x < 0, x ~ N(0, deviation^2).

    `positive` is (a, p), `negative` (b, q). By the symmetry of x E[y^k] is the sum of
    a^k E[x^pk; x > 0] and (b (-1)^q)^k E[x^qk; x > 0].
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

    `functions` maps names to (function, positive, negative), the powers as in `power_moments`. A
    row a deviation and function: function (its name), deviation, measured and closed_form.
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


def _half_moment(power: int, deviation: float) -> float:
    """E[x^power; x > 0] for x ~ N(0, deviation^2): half the absolute moment."""
    gamma = math.gamma((power + 1) / 2) / math.sqrt(math.pi)
    return (deviation * math.sqrt(2)) ** power * gamma / 2


def _central_moments(first: float, second: float, third: float, fourth: float) -> dict[str, float]:
    variance = second - first**2
    about_mean = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
    return {"mean": first, "variance": variance, "kurtosis": about_mean / variance**2}


def output_shapes(
    build: Callable[[], nn.Module], kind: type[nn.Module], input_size: tuple[int, ...]
) -> Counter:
    """How often modules of a kind put out which shape, images (1, *input_size) coming in.

    Shapes are those of one image, such as (channels, height, width).
    """
    shapes = Counter()
    with torch.device("meta"):
        network, images = build(), torch.empty(1, *input_size)
    names = {name for name, module in network.named_modules() if isinstance(module, kind)}

    def look(module: str, _direction: str, values: Tensor) -> None:
        if module in names:
            shapes[tuple(values.shape[1:])] += 1

    with watched(network, look):
        network(images)
    return shapes


def costs_by_shape(
    forms: Mapping[str, Function],
    shapes: Mapping[tuple[int, ...], int],
    images: int,
    repeats: int,
    device: torch.device,
) -> list[dict]:
    """What forms of an activation cost on so many images of each shape, fp32, channels_last.

    A row a shape: shape, times (its value in `shapes`), seconds and bytes as `compare_costs`.
    """
    rows = []
    for shape, times in shapes.items():
        x = torch.randn(images, *shape, device=device)
        x = x.contiguous(memory_format=torch.channels_last)
        rows.append({"shape": shape, "times": times, **compare_costs(forms, x, repeats)})
    return rows


def cost_ratio(rows: list[dict], quantity: str, form: str, other: str) -> float:
    """What a form costs over what another does: "seconds" or "bytes" of all rows together."""
    this, that = (sum(row["times"] * row[quantity][name] for row in rows) for name in (form, other))
    return this / that
