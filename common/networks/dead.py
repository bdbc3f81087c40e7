"""Dead layers: where a forward pass stops to depend on the image, and what training makes of it.

    import torch; from common.networks.dead import backward_terms
    x, gradient = 1e20 * torch.randn(8, 4, 6, 6), 1e19 * torch.randn(8, 4, 6, 6)
    print(backward_terms(x, gradient))

A batch norm whose variance leaves the range of fp32 puts out its bias alone: it is dead, and so is
what follows. Nothing here stops at a value that is not finite, as `training.loop` does: what a loop
without that check would do is what is looked at.
"""

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.training.precision import for_float64
from common.training.watch import BATCH_NORMS, dead_batch_norms, non_finite_gradients, watched

FP32_MAX = torch.finfo(torch.float32).max


def constant_share(values: Tensor) -> float:
    """The share of channels (dimension 1) that are the same for all images and places.

    Of a tensor of one dimension 1 where all its values are equal, else 0.
    """
    if values.ndim < 2:
        values = values.reshape(-1, 1)
    others = [0, *range(2, values.ndim)]
    return (values.amax(others) == values.amin(others)).cpu().double().mean().item()


def peak_at_the_border(squarings: int) -> float:
    """The peak that, squared so often and then once more for a variance, is fp32's largest.

    A variance sums squares of what has a peak of p^(2^squarings): of a batch norm that took that in
    itself it would be infinite from p = 2^(128 / 2^(squarings + 1)) on, 256 for three. The weights
    in between make it an estimate.
    """
    return FP32_MAX ** (1 / 2 ** (squarings + 1))


@torch.no_grad()
def first_pass(network: nn.Module, images: Tensor, labels: Tensor, blocks: re.Pattern) -> dict:
    """Pass a batch (N, C, H, W) through a new network in training mode, without gradients.

    Returns:
        first_loss, its mean cross-entropy; peaks, {module: largest |output|} of the modules whose
        whole names match the pattern, infinite where not all of it is finite; infinite_from, the
        first batch norm with a channel of infinite variance, or None; dead_from, the same where all
        channels of the last batch norm are the same for all images and places (it would blow up any
        difference); dead_share, the share of such channels of all batch norms together.
    """
    norms = {name for name, module in network.named_modules() if isinstance(module, BATCH_NORMS)}
    peaks, channels, constant, last = {}, 0, 0.0, 0.0

    def look(module: str, _direction: str, values: Tensor) -> None:
        nonlocal channels, constant, last
        if blocks.fullmatch(module):
            peak = max(-values.min().item(), values.max().item())
            peaks[module] = peak if math.isfinite(peak) else math.inf
        if module in norms:
            last = constant_share(values)
            channels += values.shape[1]
            constant += values.shape[1] * last

    with watched(network.train(), look):
        loss = functional.cross_entropy(network(images).float(), labels).item()
    infinite = next(iter(dead_batch_norms(network)), None)
    return {
        "first_loss": loss,
        "peaks": peaks,
        "infinite_from": infinite,
        "dead_from": infinite if last == 1 else None,
        "dead_share": constant / channels,
    }


def unchecked_steps(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    autopsy: bool = False,
) -> dict:
    """Take a step a batch as a loop does that checks nothing; it ends after a loss that is NaN.

    Returns:
        losses, of each step; non_finite_gradients, the names of the parameters with such gradients
        in step 1; tensors, the number of parameters; infinite_from, the first batch norm with a
        channel of infinite variance in step 1, or None; seconds of a step. With `autopsy` also
        "autopsy", the first of `bad_batch_norms` in step 1, or None.
    """
    losses, bad, dead, found = [], [], [], []
    start = time.perf_counter()
    for images, labels in batches:
        optimizer.zero_grad()
        looking = autopsy and not losses
        with bad_batch_norms(network) if looking else contextlib.nullcontext(found) as found:
            loss = functional.cross_entropy(network.train()(images).float(), labels)
            losses.append(loss.item())
            loss.backward()
        if len(losses) == 1:
            dead, bad = dead_batch_norms(network), non_finite_gradients(network)
        if not math.isfinite(losses[-1]):
            break
        optimizer.step()
    return {
        "losses": losses,
        "non_finite_gradients": bad,
        "tensors": len(list(network.parameters())),
        "infinite_from": dead[0] if dead else None,
        "seconds": (time.perf_counter() - start) / len(losses),
        **({"autopsy": found[0] if found else None} if autopsy else {}),
    }


@contextlib.contextmanager
def bad_batch_norms(network: nn.Module) -> Iterator[list[dict]]:
    """Find the first batch norm of a backward pass that makes finite gradients into others.

    The pass is made in the block. Yields a list that gets `backward_terms` of what came in there,
    and "module", its name; it stays empty where there is none.
    """
    found, handles = [], []

    def make_hook(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            values = inputs[0].detach()

            def look(gradient: Tensor) -> None:
                if found or not torch.isfinite(gradient).all():
                    return
                terms = backward_terms(values, gradient, module.weight.detach(), module.eps)
                if not terms["finite_in_fp32"]:
                    found.append({"module": name, **terms})

            output.register_hook(look)

        return hook

    for name, module in network.named_modules():
        if isinstance(module, BATCH_NORMS):
            handles.append(module.register_forward_hook(make_hook(name)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def backward_terms(
    values: Tensor, gradient: Tensor, weight: Tensor | None = None, eps: float = 1e-5
) -> dict:
    """Batch norm's backward pass in one channel: that of the largest |sum(g d)|, as below.

    With the deviations d = x - mean over the n images and places, the gradient of the input is
    weight s (g - mean(g) - d k) where s = 1 / sqrt(variance + eps) and k = sum(g d) s^2 / n
    (Ioffe & Szegedy 2015, section 3). Where the variance is infinite in fp32 s is 0, and where
    sum(g d) leaves it too, k is that times 0: NaN. In float64 nothing overflows.

    Returns:
        channel; peak_input, peak_gradient; variance_fp32, variance_fp64; sum_fp32, sum_fp64 (of
        g d); inverse_deviation_fp32; factor_fp32, factor_fp64 (k); output_peak_fp32; and whether
        PyTorch's own backward pass of these tensors is finite_in_fp32 and finite_in_fp64, a plain
        bool each.
    """
    values, gradient, kept = for_float64(values), for_float64(gradient), {}
    for name, dtype in (("fp32", torch.float32), ("fp64", torch.float64)):
        x, g = (t.to(dtype).transpose(0, 1).flatten(1) for t in (values, gradient))
        deviations = x - x.mean(1, keepdim=True)
        sums = (g * deviations).sum(1)
        variance = deviations.square().mean(1)
        inverse = torch.rsqrt(variance + eps)
        kept[name] = (sums, variance, inverse, sums * inverse.square() / x.shape[1])
        del x, g, deviations
    channel = int(kept["fp64"][0].abs().argmax())
    told = {"channel": channel, "peak_input": values.abs().max().item()}
    told["peak_gradient"] = gradient.abs().max().item()
    for name, terms in kept.items():
        names = ("sum", "variance", "inverse_deviation", "factor")
        told |= {f"{n}_{name}": t[channel].item() for n, t in zip(names, terms, strict=True)}
    for name, dtype in (("fp32", torch.float32), ("fp64", torch.float64)):
        x = values.detach().to(dtype, copy=True).requires_grad_()
        gamma = torch.ones(x.shape[1]) if weight is None else weight
        gamma, bias = gamma.to(x), torch.zeros(x.shape[1]).to(x)
        with torch.enable_grad():  # hooks of a backward pass are without
            y = functional.batch_norm(x, None, None, gamma, bias, training=True, eps=eps)
        (back,) = torch.autograd.grad(y, x, gradient.to(dtype))
        told[f"output_peak_{name}"] = y.abs().max().item()
        told[f"finite_in_{name}"] = bool(torch.isfinite(back).all())
    return told


class Float64BatchNorm2d(nn.BatchNorm2d):
    """A batch norm that computes in float64, whose range holds the squares of all fp32 values."""

    def forward(self, maps: Tensor) -> Tensor:
        """The maps of `nn.BatchNorm2d`, in their own dtype."""
        return super().forward(maps.double()).to(maps.dtype)


def with_float64_batch_norms(network: nn.Module) -> nn.Module:
    """The network, its 2d batch norms new `Float64BatchNorm2d` with default weights; changed."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                parent.register_module(name, Float64BatchNorm2d(child.num_features).double())
    return network
