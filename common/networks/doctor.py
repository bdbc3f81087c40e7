"""The doctor: which module's values leave the range of a precision, forecast and followed.

    import torch; from common.networks.doctor import forecast
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    print(forecast(network, torch.rand(4, 3, 16, 16)))

A row is what the doctor notes of one tensor: {"step", from 1; "module"; "direction", "output" or
"gradient"; and the keys of `statistics`}.
"""

import contextlib
import csv
import io
import math
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.data.packed import Packed
from common.job import progress
from common.networks.dead import constant_share
from common.training.loop import first_steps
from common.training.precision import PRECISIONS, for_float64
from common.training.recipe import Recipe
from common.training.run import Run
from common.training.watch import NotFinite, dead_batch_norms, watched

# The largest finite value of each precision, the narrowest first.
RANGES = {name: torch.finfo(PRECISIONS[name]).max for name in ("fp16", "bf16", "fp32")}


def statistics(values: Tensor) -> dict[str, float]:
    """Summarise a tensor: {"peak", "mean", "variance", "non_finite", "norm", "constant"}.

    The largest absolute value, the mean, the variance, the share of values that are not finite, the
    Euclidean norm, and `constant_share`. They are computed in float64, so that the squares of large
    values do not overflow; where a value is NaN all but the peak and the shares are.
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


def bare_name(module: str) -> str:
    """A module's name in the bare network, without that of `Normalized` around it."""
    return module.removeprefix("network.")


@torch.no_grad()
def forecast(network: nn.Module, images: Tensor) -> dict[str, dict[str, float]]:
    """Probe a network with one batch in training mode: {module: {"peak", "std", ...}}.

    Of the outputs of each module also "constant", `constant_share`, and "dead", whether it is a
    batch norm whose variance is not finite.

    `images` are what the network takes, float (N, 3, H, W), on its device; the pass is in fp32.
    Modules are in the order of execution. A peak is infinite where not all of an output is finite.
    The network is left as it was: the averages that batch norm keeps are put back.
    """
    was_training = network.training
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    outputs: dict[str, dict[str, float]] = {}

    def look(module: str, _direction: str, values: Tensor) -> None:
        summary, name = statistics(values), bare_name(module)
        peak = math.inf if summary["non_finite"] else summary["peak"]
        if name in outputs:  # torchvision's blocks use one ReLU twice
            peak = max(peak, outputs[name]["peak"])
        outputs[name] = {"peak": peak, "std": math.sqrt(summary["variance"])}
        outputs[name] |= {"constant": summary["constant"], "dead": False}

    with watched(network.train(), look):
        network(images)
    for module in dead_batch_norms(network):
        outputs[bare_name(module)]["dead"] = True
    for name, buffer in network.named_buffers():
        buffer.copy_(buffers[name])
    network.train(was_training)
    return outputs


def summarise(outputs: Mapping[str, Mapping[str, float]], blocks: re.Pattern) -> dict:
    """What a `forecast` comes to, as plain values.

    Keys: peak, the largest; module, that puts it out; beyond_fp16, the first module beyond fp16's
    range, or None; dead_from, the first dead batch norm, or None; blocks, the outputs of modules
    whose whole names match the pattern.
    """
    peaks = {module: output["peak"] for module, output in outputs.items()}
    largest = max(peaks, key=peaks.get)
    beyond = [module for module, peak in peaks.items() if peak > RANGES["fp16"]]
    return {
        "peak": peaks[largest],
        "module": largest,
        "beyond_fp16": beyond[0] if beyond else None,
        "dead_from": next((module for module in outputs if outputs[module]["dead"]), None),
        "blocks": {module: outputs[module] for module in outputs if blocks.fullmatch(module)},
    }


@dataclass(frozen=True)
class Followed:
    """The first steps of a training, and what the doctor saw of them if it watched.

    losses: of the steps taken. divergence: {"step", "module", "direction"} of the first value that
    is not finite, None where there was none. dead: {"step", "module"} of the first batch norm whose
    variance was not finite, or None. rows: of steps 1, 2, 4, 8, ... and of the last one.
    beyond: `first_beyond` of all steps. seconds: of all steps together.
    """

    losses: list[float]
    divergence: dict | None
    dead: dict | None
    rows: list[dict]
    beyond: dict[str, dict]
    seconds: float

    @property
    def last_step(self) -> int:
        """Number of the last step, the one that diverged included."""
        return len(self.losses) + (1 if self.divergence else 0)

    def result(self, last_steps: int) -> dict:
        """What came of the training, as plain values.

        Keys: diverged_at_step and divergence, None where all was finite; dead; first_loss, and
        last_loss as the mean of the last `last_steps`, None without a step; steps (finite ones);
        seconds.
        """
        last = self.losses[-last_steps:]
        return {
            "diverged_at_step": self.divergence["step"] if self.divergence else None,
            "divergence": self.divergence,
            "dead": self.dead,
            "first_loss": self.losses[0] if last else None,
            "last_loss": sum(last) / len(last) if last else None,
            "steps": len(self.losses),
            "seconds": self.seconds,
        }


class Doctor:
    """What hooks record of a training: the rows of the step under way, and those that are kept."""

    def __init__(self):
        self.step = 1
        self.step_rows: dict[tuple[str, str], dict] = {}
        self.rows: list[dict] = []
        self.beyond: dict[str, dict] = {}

    def look(self, module: str, direction: str, values: Tensor) -> None:
        """Note a tensor; this is what `watched` calls."""
        place = {"step": self.step, "module": bare_name(module), "direction": direction}
        # The step that diverges is run twice, the second time to find out where.
        self.step_rows[module, direction] = {**place, **statistics(values)}

    def end_step(self, network: nn.Module, last: bool) -> None:
        """Note the gradients of the parameters, and keep the step's rows where they are wanted."""
        for name, parameter in network.named_parameters():
            if parameter.grad is not None:
                self.look(name, "gradient", parameter.grad)
        for precision, place in first_beyond(self.step_rows.values()).items():
            self.beyond.setdefault(precision, place)
        if last or self.step.bit_count() == 1:  # a power of two
            self.rows += self.step_rows.values()
        self.step, self.step_rows = self.step + 1, {}


def follow(
    network: nn.Module,
    train: Packed,
    recipe: Recipe,
    device: torch.device,
    steps: int,
    watch: bool = False,
) -> Followed:
    """Train a network for so many steps, or until a loss or gradient is not finite.

    The steps are those of `training.loop.fit`. With `watch` the doctor looks at what every module
    puts out and at the gradients of that and of all parameters, which takes longer; without it
    `rows` and `beyond` are empty.
    """
    run, doctor = Run(network, recipe, device), Doctor()
    losses, divergence, dead, start = [], None, None, time.perf_counter()

    def look_for_dead(step: int) -> dict | None:
        names = dead_batch_norms(run.network)
        return {"step": step, "module": bare_name(names[0])} if names else None

    with watched(run.network, doctor.look) if watch else contextlib.nullcontext():
        try:
            taken = first_steps(run, train, steps)
            for loss in progress(taken, total=steps, leave=False):
                losses.append(loss)
                dead = dead or look_for_dead(len(losses))
                if watch:
                    doctor.end_step(run.network, last=len(losses) == steps)
        except NotFinite as error:
            if watch:
                doctor.end_step(run.network, last=True)
            place = {"module": bare_name(error.module), "direction": error.direction}
            divergence = {"step": len(losses) + 1, **place}
            dead = dead or look_for_dead(len(losses) + 1)
    seconds = time.perf_counter() - start
    return Followed(losses, divergence, dead, doctor.rows, doctor.beyond, seconds)


def first_beyond(rows: Iterable[dict]) -> dict[str, dict]:
    """Find where values first leave each range: {precision: {"step", "module", "direction"}}.

    `rows` are in the order of time. A precision whose range no value leaves has no entry.
    """
    beyond: dict[str, dict] = {}
    for row in rows:
        for precision, largest in RANGES.items():
            if precision not in beyond and (row["non_finite"] or row["peak"] > largest):
                beyond[precision] = {key: row[key] for key in ("step", "module", "direction")}
    return beyond


def peaks(rows: Iterable[dict], step: int, modules: list[str]) -> list[float]:
    """Largest absolute outputs of some modules in a step, infinite where not all is finite."""
    outputs = {
        row["module"]: math.inf if row["non_finite"] else row["peak"]
        for row in rows
        if row["step"] == step and row["direction"] == "output"
    }
    return [outputs[module] for module in modules]


def csv_text(rows: list[dict]) -> str:
    """Rows as CSV under a header, numbers with five digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = {key: f"{value:.5g}" for key, value in row.items() if isinstance(value, float)}
        writer.writerow(row | cells)
    return text.getvalue()
