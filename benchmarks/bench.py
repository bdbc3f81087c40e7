"""What a benchmark is, and the one function that times: ours and its peers, in turn.

A benchmark is a generator that makes what is timed, yields it once, and clears up:

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

from common.training.precision import Precision

OURS, PEAK = "ours", "the machine's peak"
NO_BF16 = "bf16 does not gain here"
Way = Callable[[], object]
Wanted = float | Mapping[str, float] | None


@dataclass(frozen=True)
class Machine:
    """What is measured on: its device, and the precision in which a training step is fastest."""

    device: torch.device
    precision: Precision
    quick: bool = False

    @property
    def kind(self) -> str:
        """ "bf16" where a training step gains by it, else the processor's vector instructions."""
        has_bf16 = self.precision.name == "bf16"
        return "bf16" if has_bf16 else torch.backends.cpu.get_cpu_capability()

    def size(self, full: int, quick: int) -> int:
        """The size of what is measured, or that of --quick."""
        return quick if self.quick else full

    @cached_property
    def peaks(self) -> dict[str, float]:
        """See `machine.measure_peaks`."""
        from benchmarks.machine import measure_peaks

        precisions = dict.fromkeys(["fp32", self.precision.name])
        return measure_peaks(self.device, precisions, self.quick)


@dataclass
class Ways:
    """Functions that do the same work, without arguments: ours, and that of each peer.

    A function's number is the float that it returns, or else its seconds. A peer may be a number
    instead, a limit in seconds. `not_measured`: why a peer has no function. `work` is what a call
    of ours does at least, in floating-point operations or bytes, and `peak` the key of
    `Machine.peaks` that it is held against. `about`: further numbers that are kept.
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
    """A benchmark: `wanted` is how many times its peer's number is to be ours, at least.

    By peer a number, or numbers by `Machine.kind`, or None where nothing is wanted; for PEAK it is
    the least share of the measured peak.
    """

    name: str
    title: str
    wanted: Mapping[str, Wanted]
    make: Callable[[Machine], contextlib.AbstractContextManager[Ways | str]]
    repeats: int


BENCHES: dict[str, Bench] = {}


def bench(name: str, title: str, wanted: Mapping[str, Wanted], repeats: int = 5):
    """Register the generator below as a benchmark; it yields `Ways`, or why nothing is measured."""

    def register(make: Callable[[Machine], Iterator[Ways | str]]):
        BENCHES[name] = Bench(name, title, wanted, contextlib.contextmanager(make), repeats)
        return make

    return register


def in_turn(ways: Mapping[str, Way], repeats: int, warm_ups: int = 1) -> dict[str, list[float]]:
    """Each way's number in every round, the ways in turn: there, back, there, ...

    So drift of the machine hits all alike, and a steady one cancels. The first rounds, which warm
    up, are not kept.
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
    """How many cores others keep busy, in a second for which this process sleeps."""
    import psutil  # of benchmarks/requirements.txt

    return psutil.cpu_percent(interval=1) / 100 * os.cpu_count()


def repeated(function: Callable[[], object], times: int) -> Callable[[], None]:
    """A function that is called so many times, where one call is too quick to be timed."""

    def call() -> None:
        for _ in range(times):
            function()

    return call


def measure(benchmark: Bench, machine: Machine) -> dict:
    """Make, time and compare: the record of a benchmark.

    Keys: title, unit, busy (`busy_cores` before it), took_seconds, numbers (of each way, a number a
    round), about, and rows, a dict a comparison: against, wanted (None: nothing), and ratio with
    its low and high over rounds, or why_not.
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
    for row in rows:
        wanted = benchmark.wanted[row["against"]]
        row["wanted"] = wanted.get(machine.kind) if isinstance(wanted, Mapping) else wanted
    return record | {"rows": rows, "took_seconds": time.perf_counter() - start}


def _compare(peer: str, numbers: dict[str, list[float]], ways: Ways, machine: Machine) -> dict:
    ours = numbers[OURS]
    if peer == PEAK:
        other = [ways.work / machine.peaks[ways.peak]] * len(ours)
        return {"against": peer, "peak": ways.peak, **_ratio(other, ours)}
    if peer in numbers:
        return {"against": peer, **_ratio(numbers[peer], ours)}
    if peer in ways.peers:
        return {"against": peer, **_ratio([ways.peers[peer]] * len(ours), ours)}
    return {"against": peer, "why_not": ways.not_measured[peer]}


def _ratio(theirs: list[float], ours: list[float]) -> dict[str, float]:
    """The median over rounds of the ratio within a round, and the lowest and highest."""
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    return {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
