"""The doctor finds modules whose values leave a precision's range, and where a network is dead.

    import torch; from common.networks.doctor import forecast
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    print(forecast(network, torch.rand(4, 3, 16, 16)))

A batch norm whose variance overflows fp32 outputs nothing but its bias: it is a dead layer. A
network is dead if, in addition, no channel of its last batch norm (of those with other gammas than
0) depends on the image. A skip path past that batch norm is not looked at.
"""

import contextlib
import copy
import math
import re
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.training.precision import PRECISIONS, for_float64
from common.training.watch import BATCH_NORMS, dead_batch_norms, watched

# The largest finite value of each precision, the narrowest first.
RANGES = {name: torch.finfo(PRECISIONS[name]).max for name in ("fp16", "bf16", "fp32")}
# A stem's peak of 256, squared three times and once more for a variance, is fp32's largest value.
# This border is an estimate, since weights in between also scale the values.
BORDER_PEAK = RANGES["fp32"] ** (1 / 2**4)


def tensor_statistics(values: Tensor) -> dict[str, float]:
    """Summarise a tensor: {"peak", "mean", "variance", "non_finite", "norm", "constant"}.

    peak is the largest absolute value, non_finite the share of such values, norm the Euclidean
    norm, constant the `constant_share`. In float64, where squares of fp32 values do not overflow.
    """
    values = for_float64(values)
    mean = values.mean(dtype=torch.float64).item()
    norm = torch.linalg.vector_norm(values, dtype=torch.float64).item()
    variance = max(0.0, norm**2 / values.numel() - mean**2) if math.isfinite(norm) else math.nan
    return {
        "peak": values.nan_to_num(0.0, math.inf, -math.inf).abs().max().item(),
        "mean": mean,
        "variance": variance,
        "non_finite": 1 - values.isfinite().double().mean().item(),
        "norm": norm,
        "constant": constant_share(values),
    }


def constant_share(values: Tensor) -> float:
    """The share of channels (dimension 1) with one value for all images and places.

    For a tensor of one dimension it is 1 if all values are equal, else 0.
    """
    if values.ndim < 2:
        values = values.reshape(-1, 1)
    others = [0, *range(2, values.ndim)]
    return (values.amax(others) == values.amin(others)).cpu().double().mean().item()


def bare_name(module: str) -> str:
    """A module's name in the bare network inside `Normalized`."""
    return module.removeprefix("network.")


# ----------------------------------------------------------------------------- before any training


def forecast(network: nn.Module, images: Tensor, blocks: re.Pattern | str = ".*") -> dict:
    """Probe a network with one batch, in training mode and fp32, and leave it unchanged.

    Keys: peak, the largest |output|; module, where it occurs; beyond_fp16, the first module beyond
    fp16's range, or None; infinite_from, the first batch norm with a channel of infinite variance,
    or None; dead_from, equal to infinite_from if the network is dead, else None; and blocks,
    {module: {"peak" (infinite if a value is not finite), "std", "constant" (`constant_share`),
    "dead" (a batch norm with infinite variance)}} of fully matching names, in order of execution.
    """
    outputs, _ = _probe(network, images)
    peaks = {module: output["peak"] for module, output in outputs.items()}
    largest = max(peaks, key=peaks.get)
    return {
        "peak": peaks[largest],
        "module": largest,
        "beyond_fp16": next((name for name in peaks if peaks[name] > RANGES["fp16"]), None),
        **_dead_layers(network, outputs),
        "blocks": {name: outputs[name] for name in outputs if re.fullmatch(blocks, name)},
    }


def first_pass(network: nn.Module, images: Tensor, labels: Tensor, blocks: re.Pattern) -> dict:
    """Pass one batch through a new network as `forecast` does, and also compute the loss.

    first_loss is the batch's mean cross-entropy. peaks ({module: peak}), infinite_from, dead_from
    are as in `forecast`. dead_share is the share of constant channels in all batch norms.
    """
    outputs, logits = _probe(network, images)
    channels = {name: norm.num_features for name, norm in _batch_norms(network).items()}
    constant = sum(count * outputs[name]["constant"] for name, count in channels.items())
    return {
        "first_loss": functional.cross_entropy(logits.float(), labels).item(),
        "peaks": {name: outputs[name]["peak"] for name in outputs if blocks.fullmatch(name)},
        **_dead_layers(network, outputs),
        "dead_share": constant / sum(channels.values()),
    }


@torch.no_grad()
def _probe(network: nn.Module, images: Tensor) -> tuple[dict[str, dict], Tensor]:
    """Summaries of each module's output, as in `forecast`'s blocks, and the logits."""
    network, outputs = copy.deepcopy(network).train(), {}

    def look(module: str, _direction: str, values: Tensor) -> None:
        summary, name = tensor_statistics(values), bare_name(module)
        peak = math.inf if summary["non_finite"] else summary["peak"]
        if name in outputs:  # torchvision's blocks use one ReLU twice
            peak = max(peak, outputs[name]["peak"])
        outputs[name] = {"peak": peak, "std": math.sqrt(summary["variance"])}
        outputs[name] |= {"constant": summary["constant"], "dead": False}

    with watched(network, look):
        logits = network(images)
    for module in dead_batch_norms(network):
        outputs[bare_name(module)]["dead"] = True
    return outputs, logits


def _batch_norms(network: nn.Module) -> dict[str, nn.Module]:
    modules = {bare_name(name): module for name, module in network.named_modules()}
    return {name: module for name, module in modules.items() if isinstance(module, BATCH_NORMS)}


def _dead_layers(network: nn.Module, outputs: dict[str, dict]) -> dict[str, str | None]:
    modules = _batch_norms(network)
    norms = [name for name in outputs if name in modules]
    infinite_from = next((name for name in norms if outputs[name]["dead"]), None)
    scaling = [name for name in norms if modules[name].weight is None or modules[name].weight.any()]
    is_dead = infinite_from is not None and outputs[(scaling or norms)[-1]]["constant"] == 1
    return {"infinite_from": infinite_from, "dead_from": infinite_from if is_dead else None}


# ------------------------------------------------------------------------------ the backward pass


@contextlib.contextmanager
def bad_batch_norms(network: nn.Module) -> Iterator[list[dict]]:
    """Find the first batch norm whose backward pass turns finite gradients into non-finite ones.

    Run both passes in the block; the yielded list gets "module" and `backward_terms`, or nothing.
    """
    bad = []

    def watch(name: str, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        values = inputs[0].detach()

        def look(gradient: Tensor) -> None:
            if bad or not torch.isfinite(gradient).all():
                return
            terms = backward_terms(values, gradient, module.weight.detach(), module.eps)
            if not terms["finite_in_fp32"]:
                bad.append({"module": name, **terms})

        output.register_hook(look)

    with contextlib.ExitStack() as hooks:
        for name, module in network.named_modules():
            if isinstance(module, BATCH_NORMS):
                hooks.enter_context(module.register_forward_hook(partial(watch, name)))
        yield bad


def backward_terms(
    values: Tensor, gradient: Tensor, weight: Tensor | None = None, eps: float = 1e-5
) -> dict:
    """Terms of a batch norm's backward pass, in the channel of the largest |sum(g d)|; see below.

    With the output's gradient g, and d = x - mean over the n images and places, the input's
    gradient is weight s (g - mean(g) - d k), where s = 1 / sqrt(variance + eps) and
    k = sum(g d) s^2 / n (Ioffe & Szegedy 2015, section 3). If the variance overflows fp32, s is 0;
    if sum(g d) overflows too, k is infinity times 0: NaN. In float64 nothing overflows.

    Keys: channel; peak_input; peak_gradient; and, with _fp32 and _fp64 appended: variance; sum (of
    g d); inverse_deviation (s); factor (k); output_peak; finite_in (is PyTorch's result finite?).
    """
    values, gradient, terms = for_float64(values), for_float64(gradient), {}
    dtypes = {"fp32": torch.float32, "fp64": torch.float64}
    for name, dtype in dtypes.items():
        x, g = (t.to(dtype).transpose(0, 1).flatten(1) for t in (values, gradient))
        deviations = x - x.mean(1, keepdim=True)
        sums = (g * deviations).sum(1)
        variance = deviations.square().mean(1)
        inverse = torch.rsqrt(variance + eps)
        terms |= {f"sum_{name}": sums, f"variance_{name}": variance}
        terms[f"inverse_deviation_{name}"] = inverse
        terms[f"factor_{name}"] = sums * inverse.square() / x.shape[1]
    channel = int(terms["sum_fp64"].abs().argmax())
    result = {"channel": channel, "peak_input": values.abs().max().item()}
    result["peak_gradient"] = gradient.abs().max().item()
    result |= {name: of_channels[channel].item() for name, of_channels in terms.items()}
    for name, dtype in dtypes.items():
        x = values.detach().to(dtype, copy=True).requires_grad_()
        gamma = None if weight is None else weight.to(x)
        with torch.enable_grad():  # a backward pass runs its hooks without gradients
            y = functional.batch_norm(x, None, None, gamma, training=True, eps=eps)
        (back,) = torch.autograd.grad(y, x, gradient.to(dtype))
        result[f"output_peak_{name}"] = y.abs().max().item()
        result[f"finite_in_{name}"] = bool(torch.isfinite(back).all())
    return result


class Float64BatchNorm2d(nn.BatchNorm2d):
    """A batch norm that computes in float64, whose range holds the squares of all fp32 values."""

    def forward(self, maps: Tensor) -> Tensor:
        """`nn.BatchNorm2d` of the maps, returned in their own dtype."""
        return super().forward(maps.double()).to(maps.dtype)


def with_float64_batch_norms(network: nn.Module) -> nn.Module:
    """Replace each 2d batch norm by a new `Float64BatchNorm2d`; return the network."""
    for name, module in list(network.named_modules()):
        if type(module) is nn.BatchNorm2d:
            network.set_submodule(name, Float64BatchNorm2d(module.num_features).double())
    return network
