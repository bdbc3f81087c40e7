"""What functions of a tensor cost: seconds and peak bytes of forward and backward, in turn.

    import torch; from common.networks.timing import compare_costs
    forms = {"ReLU": torch.relu, "where": lambda x: torch.where(x > 0, x, 0)}
    print(compare_costs(forms, torch.randn(8, 64, 32, 32), repeats=5))

The forms take turns, so that a slower moment of the machine hits all alike.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from weakref import WeakSet, finalize

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common.networks.summary import summary_table

WARM_UPS = 2
Function = Callable[[Tensor], Tensor]


def compare_costs(
    forms: Mapping[str, Function], x: Tensor, repeats: int
) -> dict[str, dict[str, float]]:
    """Measure the forward and backward pass of several forms of a function on the same input.

    {"seconds": {form: median}, "bytes": {form: most that its tensors held at once, x and the
    gradient that comes in left out}}.
    """
    x = x.detach().requires_grad_()
    gradient = torch.ones_like(x)
    passes = {
        name: lambda form=form: torch.autograd.grad(form(x), x, gradient)
        for name, form in forms.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(WARM_UPS + repeats):
        for name, both_ways in passes.items():
            seconds[name].append(_seconds(both_ways, x.device))
    peaks = {}
    for name, both_ways in passes.items():
        with PeakMemory() as memory:
            both_ways()
        peaks[name] = memory.peak
    medians = {name: statistics.median(times[WARM_UPS:]) for name, times in seconds.items()}
    return {"seconds": medians, "bytes": peaks}


def output_shapes(network: nn.Module, kind: str, input_size: tuple[int, int, int]) -> Counter:
    """How often modules of a class's name put out which shape for an image of an input's shape."""
    rows = summary_table(network, input_size).rows
    return Counter(tuple(shape[1:]) for name, shape, _ in rows if name.split("-")[0] == kind)


def costs_by_shape(
    forms: Mapping[str, Function],
    shapes: Mapping[tuple[int, ...], int],
    images: int,
    repeats: int,
    device: torch.device,
) -> list[dict]:
    """What forms of an activation cost on so many images of each shape, fp32, channels_last.

    A dict a shape: shape, times (its value in `shapes`), seconds and bytes as `compare_costs`.
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


def median_seconds(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The median seconds of a call on a device, after a warm-up."""
    seconds = [_seconds(call, device) for _ in range(WARM_UPS + repeats)]
    return statistics.median(seconds[WARM_UPS:])


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - start


class PeakMemory(TorchDispatchMode):
    """`peak`: the most bytes that tensors made inside it held at once, whatever the device."""

    def __init__(self):
        super().__init__()
        self.held = self.peak = 0
        self.seen = WeakSet()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        """Follow the storages that an operation made until they are freed."""
        result = operation(*args, **(kwargs or {}))
        for storage in _storages(result) - _storages((args, kwargs)):
            if storage not in self.seen:
                self.seen.add(storage)
                self.held += storage.nbytes()
                finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self.held)
        return result

    def _free(self, count: int) -> None:
        self.held -= count


def _storages(nest) -> set[torch.UntypedStorage]:
    return {leaf.untyped_storage() for leaf in tree_leaves(nest) if isinstance(leaf, Tensor)}
