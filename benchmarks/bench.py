"""What a benchmark is, the one function that times them, and the roofline.

The roofline is the most that the machine can do, and the work of a training step.

A benchmark is a generator that makes the functions to time, yields them once, and cleans up:

    @bench("name", "what it measures", {"a peer": 2.0})
    def make(machine: Machine) -> Iterator[Ways]:
        yield Ways(ours=function, peers={"a peer": another})
"""

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from common.training.precision import PRECISIONS, Precision

OURS, PEAK = "ours", "the machine's peak"
NO_BF16 = "bf16 does not gain here"
Way = Callable[[], object]
Wanted = float | Mapping[str, float] | None
CONVOLUTIONS = ((64, 112), (256, 56), (512, 28))  # channels and side of maps in VGG-16
RUNS = 5  # of each operation; the fastest counts


@dataclass(frozen=True)
class Machine:
    """The machine to measure: its device, and the precision in which training is fastest."""

    device: torch.device
    precision: Precision
    quick: bool = False

    @property
    def kind(self) -> str:
        """ "bf16" if it speeds up a training step, else the processor's vector instructions."""
        has_bf16 = self.precision.name == "bf16"
        return "bf16" if has_bf16 else torch.backends.cpu.get_cpu_capability()

    def size(self, full: int, quick: int) -> int:
        """The size to measure: `quick` with --quick, otherwise `full`."""
        return quick if self.quick else full

    @cached_property
    def peaks(self) -> dict[str, float]:
        """The highest rates measured on this machine, per second.

        "PRECISION matrix product" and "PRECISION convolution" (3x3, channels_last, the best of
        three sizes) in floating-point operations, "memory copy" in bytes, read plus written.
        """
        peaks, side, numbers = {}, self.size(2048, 256), 2 ** self.size(26, 20)
        for precision in dict.fromkeys(["fp32", self.precision.name]):
            options = {"device": self.device, "dtype": PRECISIONS[precision]}
            a, b = torch.rand(2, side, side, **options)
            product = _least_seconds(lambda: a @ b)  # noqa: B023
            peaks[f"{precision} matrix product"] = 2 * side**3 / product
            sizes = CONVOLUTIONS[-1 if self.quick else 0 :]
            peaks[f"{precision} convolution"] = max(_convolution(*size, options) for size in sizes)
        source = torch.ones(numbers, device=self.device)
        target = torch.zeros_like(source)
        peaks["memory copy"] = 2 * 4 * numbers / _least_seconds(lambda: target.copy_(source))
        return peaks


@dataclass
class Ways:
    """Functions without arguments that do the same work: ours, and one for each peer.

    A function's number is the float that it returns, or else its time in seconds. A peer may be a
    number instead: a limit in seconds. `not_measured[peer]` says why a peer has no function. `work`
    is the least work of one call of ours, in floating-point operations or bytes; `peak` is the key
    in `Machine.peaks` of the rate to compare it with. `about` holds further numbers to save.
    """

    ours: Way
    peers: dict[str, Way | float] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)
    work: float = 0
    peak: str = ""
    warm_ups: int = 1
    unit: str = "s"
    about: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Bench:
    """A benchmark; `wanted[peer]` is the least ratio wanted of the peer's number to ours.

    It is a number, or numbers by `Machine.kind`, or None if no ratio is wanted. For PEAK it is the
    least share of the measured peak.
    """

    name: str
    title: str
    wanted: Mapping[str, Wanted]
    make: Callable[[Machine], contextlib.AbstractContextManager[Ways | str]]
    repeats: int


BENCHES: dict[str, Bench] = {}


def bench(name: str, title: str, wanted: Mapping[str, Wanted], repeats: int = 5):
    """Register the decorated generator, which yields `Ways` or the reason for measuring nothing."""

    def register(make: Callable[[Machine], Iterator[Ways | str]]):
        BENCHES[name] = Bench(name, title, wanted, contextlib.contextmanager(make), repeats)
        return make

    return register


def in_turn(ways: Mapping[str, Way], repeats: int, warm_ups: int = 1) -> dict[str, list[float]]:
    """Each way's number in every round; the order of the ways is reversed every second round.

    So a drift of the machine affects all ways alike, and a steady drift cancels. The first
    `warm_ups` rounds are not kept.
    """
    numbers: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(warm_ups + repeats):
        for name in list(ways) if turn % 2 == 0 else reversed(ways):
            start = time.perf_counter()
            number = ways[name]()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
            if turn >= warm_ups:
                numbers[name].append(number if isinstance(number, float) else seconds)
    return numbers


def busy_cores() -> float:
    """How many cores other processes keep busy, measured for a second while this one sleeps."""
    import psutil  # listed in benchmarks/requirements.txt

    return psutil.cpu_percent(interval=1) / 100 * os.cpu_count()


def repeated(function: Callable[[], object], times: int) -> Callable[[], None]:
    """A function that makes so many calls of `function`, for calls too short to be timed alone."""

    def call() -> None:
        for _ in range(times):
            function()

    return call


def measure(benchmark: Bench, machine: Machine) -> dict:
    """Run a benchmark and compare its ways; returns its record.

    Keys: title, unit, busy (`busy_cores` at the start), took_seconds, numbers (of each way, one per
    round), about, and rows, one dict per comparison: against, wanted (None: nothing), and either
    ratio with its low and high over the rounds, or why_not.
    """
    start, busy = time.perf_counter(), busy_cores()
    record = {"title": benchmark.title, "unit": "s", "busy": busy, "numbers": {}, "about": {}}
    with benchmark.make(machine) as ways:
        if isinstance(ways, str):
            rows = [{"against": peer, "why_not": ways} for peer in benchmark.wanted]
        else:
            timed = {peer: way for peer, way in ways.peers.items() if callable(way)}
            repeats = 1 if machine.quick else benchmark.repeats
            numbers = in_turn({OURS: ways.ours, **timed}, repeats, ways.warm_ups)
            rows = [_compare(peer, numbers, ways, machine) for peer in benchmark.wanted]
            record |= {"unit": ways.unit, "numbers": numbers, "about": ways.about}
    for row, wanted in zip(rows, benchmark.wanted.values(), strict=True):
        row["wanted"] = wanted.get(machine.kind) if isinstance(wanted, Mapping) else wanted
    return record | {"rows": rows, "took_seconds": time.perf_counter() - start}


def _compare(peer: str, numbers: dict[str, list[float]], ways: Ways, machine: Machine) -> dict:
    row, ours = {"against": peer}, numbers[OURS]
    if peer == PEAK:
        limit = ways.work / machine.peaks[ways.peak]
        return {**row, "peak": ways.peak, **_ratio([limit] * len(ours), ours)}
    if peer not in ways.peers:
        return {**row, "why_not": ways.not_measured[peer]}
    return row | _ratio(numbers.get(peer, [ways.peers[peer]] * len(ours)), ours)


def _ratio(theirs: list[float], ours: list[float]) -> dict[str, float]:
    """The median, lowest and highest of the ratios, each taken within one round."""
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    return {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


# ------------------------------------------------------------------------------------ the roofline


def _convolution(channels: int, side_px: int, options: dict) -> float:
    """Floating-point operations per second of a 3x3 convolution on a batch of four."""
    maps = torch.rand(4, channels, side_px, side_px, **options)
    maps = maps.contiguous(memory_format=torch.channels_last)
    convolve = nn.Conv2d(channels, channels, 3, padding=1, bias=False, **options)
    convolve = convolve.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        seconds = _least_seconds(lambda: convolve(maps))
    return 2 * maps.numel() * channels * 9 / seconds


def _least_seconds(function: Callable[[], torch.Tensor]) -> float:
    seconds = []
    for _ in range(1 + RUNS):
        start = time.perf_counter()
        if function().device.type != "cpu":
            torch.accelerator.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def conv_backward_flops(gradient, maps, weight, *options, **_outputs) -> int:
    """Operations of a convolution's backward pass: as many as forward for each wanted gradient.

    The gradients are the maps' and the weight's. PyTorch's own count (2.14) ignores groups in the
    weight's gradient: a step of EfficientNetV2-S would have 4.6 times its operations.
    """
    transposed, wanted = options[4], options[-1]
    return sum(wanted[:2]) * conv_flop_count(maps, weight, gradient, transposed=transposed)


def flop_counter() -> FlopCounterMode:
    """A `with` block that counts floating-point operations; read them by `get_total_flops()`."""
    correction = {torch.ops.aten.convolution_backward: conv_backward_flops}
    return FlopCounterMode(display=False, custom_mapping=correction)


def forward_flops(network: nn.Module, *shape: int) -> int:
    """Floating-point operations of a forward pass on images of this shape; computes nothing."""
    with flop_counter() as counter, torch.no_grad():
        network.to("meta")(torch.empty(shape, device="meta"))
    return counter.get_total_flops()


def training_flops(build: Callable[[], nn.Module], images: int, side_px: int) -> int:
    """Floating-point operations of a forward and backward pass of the network from `build`."""
    with torch.device("meta"):
        network, batch = build(), torch.empty(images, 3, side_px, side_px)
    with flop_counter() as counter:
        network(batch).sum().backward()
    return counter.get_total_flops()
