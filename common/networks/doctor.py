"""The doctor: which module's values leave the range of a precision, and where a network is dead.

    import torch; from common.networks.doctor import forecast
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    print(forecast(network, torch.rand(4, 3, 16, 16)))

A batch norm whose variance leaves the range of fp32 puts out its bias alone: a dead layer. A
network is dead when no channel of its last batch norm depends on the image.
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
ALL_MODULES = re.compile(".*")
# A stem's peak that, squared three times and once more for a variance, is fp32's largest value:
# 256. The weights in between make it an estimate.
BORDER_PEAK = RANGES["fp32"] ** (1 / 2**4)


def tensor_statistics(values: Tensor) -> dict[str, float]:
    """Summarise a tensor: {"peak", "mean", "variance", "non_finite", "norm", "constant"}.

    peak is the largest absolute value, non_finite a share of values, norm Euclidean, constant as in
    `constant_share`; in float64, in which squares of fp32 values do not overflow.
    """
    values = for_float64(values)
    peak = max(-values.min().item(), values.max().item()) + 0.0  # of zeros not -0.0
    non_finite = 1 - values.isfinite().double().mean().item()
    if math.isnan(peak):
        peak = values.nan_to_num(0.0, math.inf, -math.inf).abs().max().item()
    mean = values.mean(dtype=torch.float64).item()
    norm = torch.linalg.vector_norm(values, dtype=torch.float64).item()
    variance = max(0.0, norm**2 / values.numel() - mean**2) if math.isfinite(norm) else math.nan
    return {
        "peak": peak,
        "mean": mean,
        "variance": variance,
        "non_finite": non_finite,
        "norm": norm,
        "constant": constant_share(values),
    }


def constant_share(values: Tensor) -> float:
    """The share of channels (dimension 1) that are the same for all images and places.

    Of a tensor of one dimension 1 where all its values are equal, else 0.
    """
    if values.ndim < 2:
        values = values.reshape(-1, 1)
    others = [0, *range(2, values.ndim)]
    return (values.amax(others) == values.amin(others)).cpu().double().mean().item()


def bare_name(module: str) -> str:
    """A module's name in the bare network inside `Normalized`."""
    return module.removeprefix("network.")


# ----------------------------------------------------------------------------- before any training


def forecast(network: nn.Module, images: Tensor, blocks: re.Pattern = ALL_MODULES) -> dict:
    """Probe a network with one batch in training mode, in fp32, and leave it as it was.

    Keys: peak, the largest |output|; module, that puts it out; beyond_fp16, the first module beyond
    fp16's range, or None; infinite_from, the first batch norm with a channel of infinite variance,
    or None; dead_from, the same where the network is dead; and blocks, {module: {"peak" (infinite
    where not all is finite), "std", "constant" (`constant_share`), "dead" (a batch norm with an
    infinite variance)}} of modules whose whole names match, in the order of execution.
    """
    outputs, _ = _probe(network, images)
    peaks = {module: output["peak"] for module, output in outputs.items()}
    largest = max(peaks, key=peaks.get)
    return {
        "peak": peaks[largest],
        "module": largest,
        "beyond_fp16": next((name for name in peaks if peaks[name] > RANGES["fp16"]), None),
        **_dead_layers(network, outputs),
        "blocks": {name: outputs[name] for name in outputs if blocks.fullmatch(name)},
    }


def first_pass(network: nn.Module, images: Tensor, labels: Tensor, blocks: re.Pattern) -> dict:
    """Pass a batch through a new network as `forecast` does.

    first_loss is its mean cross-entropy; peaks, {module: peak}, infinite_from and dead_from are as
    there; dead_share is the share of constant channels of all batch norms together.
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
    """Outputs by module as `forecast` has them, and logits."""
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
    norms = [name for name in outputs if name in _batch_norms(network)]
    infinite_from = next((name for name in norms if outputs[name]["dead"]), None)
    is_dead = infinite_from is not None and outputs[norms[-1]]["constant"] == 1
    return {"infinite_from": infinite_from, "dead_from": infinite_from if is_dead else None}


# ------------------------------------------------------------------------------ the backward pass


@contextlib.contextmanager
def bad_batch_norms(network: nn.Module) -> Iterator[list[dict]]:
    """Find the first batch norm of the block's backward pass to make finite gradients into others.

    Yields a list that gets its "module" and `backward_terms`, or stays empty.
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

    handles = [
        module.register_forward_hook(partial(watch, name))
        for name, module in network.named_modules()
        if isinstance(module, BATCH_NORMS)
    ]
    try:
        yield bad
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

    Keys: channel; peak_input; peak_gradient; and each with _fp32 and _fp64 behind: variance; sum,
    of g d; inverse_deviation; factor (k); output_peak; and finite_in, of PyTorch's backward pass.
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
        gamma = torch.ones(x.shape[1]) if weight is None else weight
        gamma, bias = gamma.to(x), torch.zeros(x.shape[1]).to(x)
        with torch.enable_grad():  # hooks of a backward pass are without
            y = functional.batch_norm(x, None, None, gamma, bias, training=True, eps=eps)
        (back,) = torch.autograd.grad(y, x, gradient.to(dtype))
        result[f"output_peak_{name}"] = y.abs().max().item()
        result[f"finite_in_{name}"] = bool(torch.isfinite(back).all())
    return result


class Float64BatchNorm2d(nn.BatchNorm2d):
    """A batch norm that computes in float64, whose range holds the squares of all fp32 values."""

    def forward(self, maps: Tensor) -> Tensor:
        """As `nn.BatchNorm2d`, in the maps' own dtype."""
        return super().forward(maps.double()).to(maps.dtype)


def with_float64_batch_norms(network: nn.Module) -> nn.Module:
    """The same network, a new `Float64BatchNorm2d` in the place of each 2d batch norm."""
    for name, module in list(network.named_modules()):
        if type(module) is nn.BatchNorm2d:
            network.set_submodule(name, Float64BatchNorm2d(module.num_features).double())
    return network
