"""The cost of functions of a tensor: seconds and peak bytes of a forward and backward pass.

    import torch; from common.networks.timing import compare_costs
    forms = {"ReLU": torch.relu, "where": lambda x: torch.where(x > 0, x, 0)}
    print(compare_costs(forms, torch.randn(8, 64, 32, 32), repeats=5))

The functions take turns, so that a slow moment of the machine affects all of them alike.
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


def compare_costs(forms: Mapping[str, Function], x: Tensor, repeats: int) -> dict[str, dict]:
    """Measure the forward and backward pass of several forms of a function on the same input.

    Returns {"seconds": {form: median}, "bytes": {form: the most bytes that its tensors held at
    once, without x and the incoming gradient}}.
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
    """Count the output shapes (C, H, W) of modules of the class `kind`, for one input image."""
    rows = summary_table(network, input_size).rows
    return Counter(tuple(shape[1:]) for name, shape, _ in rows if name.split("-")[0] == kind)


def costs_by_shape(
    forms: Mapping[str, Function],
    shapes: Mapping[tuple[int, ...], int],
    images: int,
    repeats: int,
    device: torch.device,
) -> list[dict]:
    """Costs of forms of an activation on `images` images of each shape, in fp32, channels_last.

    A dict per shape: shape, times (its value in `shapes`), seconds and bytes of `compare_costs`.
    """
    rows = []
    for shape, times in shapes.items():
        x = torch.randn(images, *shape, device=device).contiguous(memory_format=torch.channels_last)
        rows.append({"shape": shape, "times": times, **compare_costs(forms, x, repeats)})
    return rows


def cost_ratio(rows: list[dict], quantity: str, form: str, other: str) -> float:
    """A form's cost over another's: its total "seconds" or "bytes", each row counted `times`."""
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
    """Measure `peak`, the most bytes that tensors made inside it held at once, on any device."""

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
