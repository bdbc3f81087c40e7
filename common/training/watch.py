"""What every module puts out and gets back: hooks, and the search for the first bad value."""

import contextlib
import math
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.job import say

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
WHOLE_NETWORK = "all parameters together"
DEAD_FROM_THE_START = "; what comes in must be smaller: a smaller rate can't help"
EQUAL_LOGITS_WITHIN = 0.003  # of ln K is the first loss of a network whose logits do not differ


class NotFinite(UserError):
    """A loss or gradient that is not finite: it began with the `direction` of `module`."""

    def __init__(self, message: str, module: str, direction: str):
        super().__init__(message)
        self.module, self.direction = module, direction

    def __reduce__(self):
        """Pickle it, so that it can be told to another process."""
        return NotFinite, (str(self), self.module, self.direction)


def dead_batch_norms(network: nn.Module) -> list[str]:
    """The batch norms that have met an infinite variance in a channel, by name, in order.

    Such a channel is its bias alone, whatever comes in: it is dead. Where an input is infinite the
    variance is NaN, which is not this.
    """
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, BATCH_NORMS)
        and module.running_var is not None
        and torch.isposinf(module.running_var).any()
    ]


def dead_words(network: nn.Module) -> str:
    """What a message says of a network's first dead batch norm, if it has one."""
    if not (dead := dead_batch_norms(network)):
        return ""
    variances = network.get_submodule(dead[0]).running_var
    channels = f"{int(torch.isposinf(variances).sum())} of {len(variances)} channels"
    return f"; {dead[0]} is a dead layer: infinite variance, constant output in {channels}"


def warn_of_dead(network: nn.Module, loss: float, classes: int) -> None:
    """Warn of a first step whose loss is that of equal logits since a batch norm is dead."""
    dead = dead_words(network)
    if dead and abs(loss - math.log(classes)) < EQUAL_LOGITS_WITHIN:
        start = f"warning: the first loss, {loss:.4f}, is that of equal logits over {classes}"
        say(f"{start} classes{dead}{DEAD_FROM_THE_START}", file=sys.stderr)


def first_non_finite(network: nn.Module, compute_loss: Callable[[], Tensor]) -> tuple[str, str]:
    """Where a step's first non-finite value appears: (module, "output" or "gradient").

    `compute_loss` runs the network once and returns its loss.
    """
    bad: list[tuple[str, str]] = []

    def look(module: str, direction: str, values: Tensor) -> None:
        if not torch.isfinite(values).all():
            bad.append((module, direction))

    network.zero_grad()  # of the step that failed: its gradients are not to be added to
    with watched(network, look):
        loss = compute_loss()
        if not bad and not torch.isfinite(loss):
            bad.append(("the loss", "output"))
        loss.backward()
    of_parameters = [*non_finite_gradients(network), WHOLE_NETWORK]
    return bad[0] if bad else (of_parameters[0], "gradient")


def non_finite_gradients(network: nn.Module) -> list[str]:
    """The names of the parameters whose gradients are not all finite, in order."""
    return [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all()
    ]


@contextlib.contextmanager
def watched(network: nn.Module, look: Callable[[str, str, Tensor], None]) -> Iterator[None]:
    """Call `look(module, direction, values)` for the output of every module, and its gradient.

    Outputs come in the order of execution (a block's after those of its parts, so that what a block
    computes outside modules is seen too), gradients of the loss with respect to outputs in that of
    the backward pass. `direction` is "output" or "gradient".
    """
    handles = []

    def make_hook(name: str):
        def hook(_module, _inputs, output):
            if not isinstance(output, Tensor):
                return
            look(name, "output", output.detach())
            if output.requires_grad:
                handles.append(
                    output.register_hook(lambda gradient: look(name, "gradient", gradient))
                )

        return hook

    handles += [
        module.register_forward_hook(make_hook(name))
        for name, module in network.named_modules()
        if name  # the network's own output is that of its last module
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
