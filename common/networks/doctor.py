"""The doctor: which module's values leave the range of a precision, forecast and followed.

    import torch; from common.networks.doctor import forecast
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    forecast(network, torch.rand(4, 3, 16, 16))
"""

import contextlib
import csv
import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.training import loop
from common.training.precision import PRECISIONS
from common.training.watch import NotFinite, watched


RANGES = {name: torch.finfo(dtype).max for name, dtype in reversed(PRECISIONS.items())}


@torch.no_grad()
def forecast(network: nn.Module, images: Tensor) -> dict[str, dict[str, float]]:
    """Peak and standard deviation of each module's output for one batch, by a probing pass in fp32.

    `images` are float (N, 3, H, W) in [0, 1]. The peak is infinite where not all is finite. In
    training mode batch norm would keep the batch: its averages are put back.
    """
    found = {}
    before = {name: one.clone() for name, one in network.named_buffers()}

    def look(module: str, _direction: str, values: Tensor) -> None:
        about, name = statistics(values), short(module)
        peak = math.inf if about["non_finite"] else about["peak"]
        if name in found:  # torchvision's blocks use one ReLU twice
            peak = max(peak, found[name]["peak"])
        found[name] = {"peak": peak, "std": math.sqrt(about["variance"])}

    with training.watched(network.train(), look):
        network(images)
    for name, one in network.named_buffers():
        one.copy_(before[name])
    return found


def statistics(values: Tensor) -> dict[str, float]:
    """Largest |value|, mean, variance, share of non-finite values, and Euclidean norm.

    In float64 whatever the dtype, so that the squares of large values do not overflow; NaN where a
    value is NaN, the peak excepted.
    """
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
    }


class Doctor:
    """Watches what every module puts out and the gradients of that and of parameters, by step.

    `beyond[precision]` is where a value first left its range; `kept` are the rows of steps 1, 2,
    4, 8, ... and of the last one.
    """

    def __init__(self):
        self.step, self.now, self.kept = 1, {}, []
        self.beyond: dict[str, dict] = {}

    def look(self, module: str, direction: str, values: Tensor) -> None:
        """For `training.watched`."""
        where = {"step": self.step, "module": short(module), "direction": direction}
        row = {**where, **statistics(values)}
        self.now[module, direction] = row  # the step that diverges is run, and seen, twice
        for precision, limit in RANGES.items():
            if row["non_finite"] or row["peak"] > limit:
                self.beyond.setdefault(precision, where)

    def end_step(self, network: nn.Module, last: bool) -> None:
        """Look at the gradients of the parameters; keep the step's rows where they are wanted."""
        if self.now:
            for name, one in network.named_parameters():
                self.look(name, "gradient", one.grad)
        if last or self.step.bit_count() == 1:
            self.kept += self.now.values()
        self.step, self.now = self.step + 1, {}

    def peaks(self, step: int, modules: list[str]) -> list[float]:
        """Largest |output| of some modules in a step that was kept; inf where not all is finite."""
        rows = {
            row["module"]: math.inf if row["non_finite"] else row["peak"]
            for row in self.kept
            if row["step"] == step and row["direction"] == "output"
        }
        return [rows[module] for module in modules]

    def write(self, path: Path) -> None:
        """The kept rows as CSV."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.kept[0]), lineterminator="\n")
        writer.writeheader()
        for row in self.kept:
            floats = {key: f"{one:.5g}" for key, one in row.items() if isinstance(one, float)}
            writer.writerow(row | floats)
        with cli.atomic(path) as temporary:
            temporary.write_text(text.getvalue())


@dataclass(frozen=True)
class Followed:
    """The first steps of a training: their losses, and where it stopped being finite, if it did.

    `divergence` is {"step", "module", "direction"}, the step from 1.
    """

    losses: list[float]
    divergence: dict | None
    doctor: Doctor
    seconds: float


def follow(
    experiment: Experiment, name: str, network: nn.Module, recipe: Recipe, watch: bool = False
) -> Followed:
    """Train for --steps or until a value that counts is not finite; a line says how it went."""
    run = training.Run(network, recipe, experiment.device)
    doctor, losses, divergence = Doctor(), [], None
    steps, start = experiment.args.steps, time.perf_counter()
    look = training.watched(run.network, doctor.look) if watch else contextlib.nullcontext()
    taken = training.first_steps(run, experiment.packed["train"], steps)
    with look:
        try:
            for loss in cli.progress(taken, total=steps, leave=False):
                losses.append(loss)
                doctor.end_step(run.network, last=len(losses) == steps)
        except training.NotFinite as error:
            doctor.end_step(run.network, last=True)
            where = {"module": short(error.module), "direction": error.direction}
            divergence = {"step": len(losses) + 1, **where}
    found = Followed(losses, divergence, doctor, time.perf_counter() - start)
    told = f"diverges in step {divergence['step']}" if divergence else "finite"
    print(f"{name}: {told}, {found.seconds:.0f} s", flush=True)
    return found


def short(module: str) -> str:
    """A module's name in the bare network."""
    return module.removeprefix("network.")
