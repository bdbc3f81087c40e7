"""Hooks on every module's output and its gradient, and the search for the first bad value."""

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.job import say

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
WHOLE_NETWORK = "all parameters together"
DEAD_FROM_THE_START = "; its input must be smaller: a smaller --lr can't help"
EQUAL_LOGITS_WITHIN = 0.003  # equal logits for K classes give a first loss this close to ln K


class NotFinite(UserError):
    """A value is not finite, first in the `direction` ("output" or "gradient") of `module`."""

    def __init__(self, message: str, module: str, direction: str):
        super().__init__(message)
        self.module, self.direction = module, direction

    def __reduce__(self):
        """Make the error picklable, so that it can be sent to another process."""
        return NotFinite, (str(self), self.module, self.direction)


def dead_batch_norms(network: nn.Module) -> list[str]:
    """The names, in order, of the batch norms that have had an infinite variance in a channel.

    Such a channel is dead: its output is its bias, whatever its input. An infinite input gives a
    variance of NaN, which does not count here.
    """
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, BATCH_NORMS)
        and module.running_var is not None
        and torch.isposinf(module.running_var).any()
    ]


def dead_words(network: nn.Module) -> str:
    """The end of a message, on the network's first dead batch norm; empty without one."""
    if not (dead := dead_batch_norms(network)):
        return ""
    variances = network.get_submodule(dead[0]).running_var
    channels = f"{int(torch.isposinf(variances).sum())} of {len(variances)} channels"
    return f"; {dead[0]} is a dead layer: infinite variance, constant output in {channels}"


def warn_of_dead(network: nn.Module, loss: float, classes: int) -> None:
    """Warn if a batch norm is dead and the first step's loss is that of equal logits."""
    dead = dead_words(network)
    if dead and abs(loss - math.log(classes)) < EQUAL_LOGITS_WITHIN:
        start = f"warning: the first loss, {loss:.4f}, is that of equal logits over {classes}"
        say(f"{start} classes{dead}{DEAD_FROM_THE_START}", file=sys.stderr)


def first_non_finite(network: nn.Module, compute_loss: Callable[[], Tensor]) -> tuple[str, str]:
    """Find where a step's first non-finite value appears: (module, "output" or "gradient").

    `compute_loss` runs the network once and returns its loss.
    """
    bad: list[tuple[str, str]] = []

    def look(module: str, direction: str, values: Tensor) -> None:
        if not torch.isfinite(values).all():
            bad.append((module, direction))

    network.zero_grad()  # or the gradients of the failed step would be added to
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
    """Call `look(module, direction, values)` with every module's output and its gradient.

    `direction` is "output" or "gradient" (of the loss with respect to the output). Outputs come in
    the order of execution, a block's after those of its parts, so that what it computes outside
    modules is seen too; gradients come in the order of the backward pass.
    """
    with contextlib.ExitStack() as hooks:

        def see(name: str, _module, _inputs, output) -> None:
            if isinstance(output, Tensor):
                look(name, "output", output.detach())
                if output.requires_grad:
                    hooks.enter_context(output.register_hook(partial(look, name, "gradient")))

        for name, module in network.named_modules():
            if name:  # the network's own output is that of its last module
                hooks.enter_context(module.register_forward_hook(partial(see, name)))
        yield
