"""Which precision is fastest on this device: measured, never read off a processor flag.

Some processors list bf16 instructions and are twice as fast in fp32, some are three times as fast
in bf16, some have no such instructions at all.
"""

import functools
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.job import say
from common.training import parallel

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
GAIN_MIN = 1.1  # a smaller one is within what repeated timings differ by
SECONDS_EACH = 0.08


@dataclass(frozen=True)
class Precision:
    """A precision and why it was chosen, in words for results.json."""

    name: str
    why: str


def choose_precision(asked: str, device: torch.device) -> Precision:
    """The precision of `--precision`: as asked for, or for "auto" the one measured to be fastest.

    The first process of a job decides for all: call it after `parallel.start`.
    """
    if asked != "auto":
        return Precision(asked, "asked for")
    chosen = Precision(*parallel.broadcast(lambda: _measured(device)))
    say(f"precision: {chosen.name}, {chosen.why}")
    return chosen


@functools.cache
def _measured(device: torch.device) -> tuple[str, str]:
    half = "bf16"
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        half = "fp16"
    gain = _convolution_seconds("fp32", device) / _convolution_seconds(half, device)
    name = half if gain >= GAIN_MIN else "fp32"
    return name, f"a convolution is {gain:.2f} times as fast in {half} as in fp32"


def _convolution_seconds(precision: str, device: torch.device) -> float:
    """The least seconds that one convolution takes forward and backward, after a warm-up."""
    conv = nn.Conv2d(64, 64, 3, padding=1).to(device, memory_format=torch.channels_last)
    images = torch.randn(8, 64, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    images.requires_grad_()

    def step() -> float:
        start = time.perf_counter()
        with autocast(precision, device):
            maps = conv(images)
        maps.float().sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    step()
    end = time.perf_counter() + SECONDS_EACH
    seconds = [step()]
    while time.perf_counter() < end:
        seconds.append(step())
    return min(seconds)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The autocast of a precision; it does nothing in fp32."""
    return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32")


class Float32Conv2d(nn.Conv2d):
    """A convolution that stays in fp32 under autocast."""

    def forward(self, maps: Tensor) -> Tensor:
        """The maps of `nn.Conv2d`, in float32."""
        with torch.autocast(maps.device.type, enabled=False):
            return super().forward(maps.float())


def with_fp32_convolutions(network: nn.Module, precision: str, device: torch.device) -> nn.Module:
    """The network, those of its convolutions in fp32 whose bf16 gradient is slow on a CPU.

    oneDNN has no fast kernel for depthwise and strided ones with few channels a group: in a step of
    EfficientNetV2-S on 64 images of 64 px the stem alone takes 514 ms in bf16, 13 ms in fp32. They
    become `Float32Conv2d` with the same names and parameters; elsewhere nothing is changed.
    """
    if device.type != "cpu" or precision != "bf16":
        return network
    for parent in list(network.modules()):
        for name, conv in list(parent.named_children()):
            if type(conv) is nn.Conv2d and _is_slow_in_bf16(conv):
                parent.register_module(name, _in_fp32(conv))
    return network


def _is_slow_in_bf16(conv: nn.Conv2d) -> bool:
    special = conv.groups > 1 or max(conv.stride) > 1
    return special and conv.in_channels // conv.groups < 32


def _in_fp32(conv: nn.Conv2d) -> Float32Conv2d:
    with torch.device("meta"):
        twin = Float32Conv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
        )
    twin.weight, twin.bias = conv.weight, conv.bias
    return twin.train(conv.training)
