"""Which precision is fastest on this device: measured, never read off a processor flag.

Some processors list bf16 instructions and are twice as fast in fp32, some are twice as fast in
bf16, some have no such instructions at all.
"""

import functools
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.job import say
from common.training import parallel

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
GAIN_MIN = 1.1  # what repeated timings of one precision differ by
MEASURED_SECONDS = 0.1
# Images (N, C, H, W) that take a CPU milliseconds, so that many repeats are seen, and fill a GPU.
SHAPES = {"cpu": (4, 64, 16, 16), "cuda": (256, 64, 56, 56)}


@dataclass(frozen=True)
class Precision:
    """A precision and why it was chosen, in words for results.json."""

    name: str
    why: str


def choose_precision(asked: str, device: torch.device) -> Precision:
    """The precision of `--precision`: as asked for, or for "auto" the one measured to be fastest.

    Measured once a process. The first process of a job decides for all: call it after
    `parallel.start`.
    """
    if asked != "auto":
        return Precision(asked, "asked for")
    name, why = parallel.broadcast(lambda: _fastest(device))
    say(f"precision: {name}, {why}")
    return Precision(name, why)


def make_deterministic(device: torch.device) -> None:
    """Let PyTorch choose kernels that give the same bits again, and say what that costs here.

    On a CPU they do so anyway. Call it before the first matrix product on a GPU, where cuBLAS reads
    its variable.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    free = convolution_seconds(("fp32",), device)["fp32"]
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    ratio = convolution_seconds(("fp32",), device)["fp32"] / free
    say(f"--deterministic: a convolution takes {ratio:.2f} times as long as without")


@functools.cache
def _fastest(device: torch.device) -> tuple[str, str]:
    half = "bf16"
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        half = "fp16"
    seconds = convolution_seconds(("fp32", half), device)
    gain = seconds["fp32"] / seconds[half]
    name = half if gain >= GAIN_MIN else "fp32"
    return name, f"a convolution in {half} is {gain:.2f} times as fast as in fp32"


def convolution_seconds(precisions: Sequence[str], device: torch.device) -> dict[str, float]:
    """Least seconds that a 3x3 convolution takes forward and backward in each precision, in turn.

    On one CPU thread: with several, what a busy machine's scheduler does would be timed.
    """
    shape, seconds = SHAPES[device.type], dict.fromkeys(precisions, math.inf)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for precision in precisions:  # what is loaded at the first call takes longer than the rest
        _convolution_seconds(shape, PRECISIONS[precision], device)
    end = time.perf_counter() + MEASURED_SECONDS
    while time.perf_counter() < end:
        for precision in precisions:
            taken = _convolution_seconds(shape, PRECISIONS[precision], device)
            seconds[precision] = min(seconds[precision], taken)
    torch.set_num_threads(threads)
    return seconds


def _convolution_seconds(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> float:
    options = {"dtype": dtype, "device": device, "requires_grad": True}
    # Values do not matter, and must not disturb the streams of random numbers.
    images = torch.full(shape, 0.1, **options).to(memory_format=torch.channels_last)
    weight = torch.full((shape[1], shape[1], 3, 3), 0.1, **options)
    start = time.perf_counter()
    maps = functional.conv2d(images, weight, padding=1)
    torch.autograd.grad(maps, (images, weight), maps.detach())
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The autocast of a precision; it does nothing in fp32."""
    return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32")


class Float32Conv2d(nn.Conv2d):
    """A convolution, with the parameters of another, that stays in fp32 under autocast."""

    def __init__(self, conv: nn.Conv2d):
        sizes = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
        options = (conv.dilation, conv.groups, conv.bias is not None, conv.padding_mode)
        super().__init__(*sizes, *options, device="meta")
        self.weight, self.bias = conv.weight, conv.bias
        self.train(conv.training)

    def forward(self, maps: Tensor) -> Tensor:
        """The maps of `nn.Conv2d`, in float32."""
        with torch.autocast(maps.device.type, enabled=False):
            return super().forward(maps.float())


def with_fp32_convolutions(network: nn.Module, precision: str, device: torch.device) -> nn.Module:
    """The network, those of its convolutions in fp32 whose bf16 gradient is slow on a CPU.

    oneDNN has no fast kernel for depthwise and strided ones with few channels a group: in a step of
    EfficientNetV2-S on 64 images of 64 px the stem alone takes 514 ms in bf16, 13 ms in fp32. In
    the network itself they become `Float32Conv2d`, with the same names and the same parameters; in
    another precision or on another device nothing is changed.
    """
    if device.type != "cpu" or precision != "bf16":
        return network
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Conv2d and _is_slow_in_bf16(child):
                parent.register_module(name, Float32Conv2d(child))
    return network


def _is_slow_in_bf16(conv: nn.Conv2d) -> bool:
    special = conv.groups > 1 or max(conv.stride) > 1
    return special and conv.in_channels // conv.groups < 32
