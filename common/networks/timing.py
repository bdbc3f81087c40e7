"""What a function costs: seconds and peak bytes of forward and backward.

    import torch; from common.networks.timing import PeakMemory
    with PeakMemory() as memory: torch.rand(1000, 1000).exp()
    print(memory.peak)
"""

import time
from collections.abc import Callable
from weakref import WeakSet, finalize

import numpy as np
import torch
from torch import Tensor, is_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """The most bytes that tensors made inside it held at once, whatever the device."""

    def __init__(self):
        super().__init__()
        self.held = self.peak = 0
        self.seen = WeakSet()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        """Run an operation, and follow the storages that it made until they are freed."""
        made = operation(*args, **(kwargs or {}))
        old = {one.untyped_storage() for one in tree_leaves((args, kwargs)) if is_tensor(one)}
        for one in tree_leaves(made):
            if is_tensor(one) and (storage := one.untyped_storage()) not in self.seen | old:
                self.seen.add(storage)
                self.held += storage.nbytes()
                finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self.held)
        return made

    def _free(self, count: int) -> None:
        self.held -= count


def _seconds(form: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor) -> float:
    start = time.perf_counter()
    torch.autograd.grad(form(x), x, gradient)
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - start
