"""The roofline: what the machine can do at most, and what a training step asks of it."""

import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from common.training.precision import PRECISIONS

CONVOLUTIONS = ((64, 112), (256, 56), (512, 28))  # channels and side of maps, as VGG-16's
RUNS = 5  # of each, of which the fastest counts


def measure_peaks(device: torch.device, precisions: Iterable[str], quick: bool) -> dict[str, float]:
    """The most that this machine did in a second.

    Returns:
        "PRECISION matrix product" and "PRECISION convolution" (3x3, channels_last, the best of
        three sizes) in floating-point operations, "memory copy" in bytes, read and written.
    """
    peaks, side, numbers = {}, 256 if quick else 2048, 2 ** (20 if quick else 26)
    for precision in precisions:
        options = {"device": device, "dtype": PRECISIONS[precision]}
        a, b = torch.rand(2, side, side, **options)
        peaks[f"{precision} matrix product"] = 2 * side**3 / _least_seconds(lambda: a @ b)  # noqa: B023
        convolutions = [_convolution(*size, options) for size in CONVOLUTIONS[-1 if quick else 0 :]]
        peaks[f"{precision} convolution"] = max(convolutions)
    source = torch.ones(numbers, device=device)
    target = torch.zeros_like(source)
    peaks["memory copy"] = 2 * 4 * numbers / _least_seconds(lambda: target.copy_(source))
    return peaks


def _convolution(channels: int, side_px: int, options: dict) -> float:
    """Floating-point operations a second of a 3x3 convolution of four maps."""
    maps = torch.rand(4, channels, side_px, side_px, **options)
    maps = maps.contiguous(memory_format=torch.channels_last)
    convolve = nn.Conv2d(channels, channels, 3, padding=1, bias=False, **options)
    convolve = convolve.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        seconds = _least_seconds(lambda: convolve(maps))
    return 2 * maps.numel() * channels * 9 / seconds


def _least_seconds(function: Callable[[], Tensor]) -> float:
    seconds = []
    for _ in range(1 + RUNS):
        start = time.perf_counter()
        if function().device.type != "cpu":
            torch.accelerator.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def conv_backward_flops(gradient, maps, weight, *options, **_outputs) -> int:
    """Each gradient of a convolution, the maps' and the weight's, takes what the forward pass does.

    PyTorch's own count (2.14) takes every channel with every channel for the weight's gradient,
    whatever the groups: a step of EfficientNetV2-S would have 4.6 times its operations.
    """
    transposed, wanted = options[4], options[-1]
    return sum(wanted[:2]) * conv_flop_count(maps, weight, gradient, transposed=transposed)


def flop_counter() -> FlopCounterMode:
    """A `with` block that counts floating-point operations, `get_total_flops()`."""
    correction = {torch.ops.aten.convolution_backward: conv_backward_flops}
    return FlopCounterMode(display=False, custom_mapping=correction)


def forward_flops(network: nn.Module, *shape: int) -> int:
    """Floating-point operations of a forward pass of images of this shape; nothing is computed."""
    with flop_counter() as counter, torch.no_grad():
        network.to("meta")(torch.empty(shape, device="meta"))
    return counter.get_total_flops()


def training_flops(build: Callable[[], nn.Module], images: int, side_px: int) -> int:
    """Those of a forward and backward pass of the network that `build` makes."""
    with torch.device("meta"):
        network, batch = build(), torch.empty(images, 3, side_px, side_px)
    with flop_counter() as counter:
        network(batch).sum().backward()
    return counter.get_total_flops()
