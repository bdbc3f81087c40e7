"""Why a training diverges: its first steps, watched by the doctor or taken without checks."""

import contextlib
import csv
import io
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from common import files, job
from common.data.packed import Packed
from common.networks.doctor import RANGES, bad_batch_norms, bare_name, tensor_statistics
from common.training import parallel
from common.training.convolutions import with_fast_convolutions
from common.training.loop import endless_steps
from common.training.recipe import Recipe
from common.training.run import Run
from common.training.runs import Setup
from common.training.watch import NotFinite, dead_batch_norms, non_finite_gradients, watched

REPORT_RECIPE = {  # after He et al. 2016 (with Nesterov), as the report prints none
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "schedule": "constant",
    "weight_decay": 1e-4,
    "warmup_epochs": 0,
    "label_smoothing": 0,
    "ema_decay": 0,
    "clip_norm": 0,
    "precision": "fp32",
    "compile": False,
}
PLACE = ("step", "module", "direction")


@dataclass(frozen=True)
class ResultCache:
    """A folder that keeps results of minutes each, so that a stopped study can be resumed.

    described: plain values that all results depend on. fresh: measure again what is already kept.
    """

    folder: Path
    described: Mapping
    fresh: bool = False

    def get(self, name: str, described: Mapping, measure: Callable[[], dict]) -> dict:
        """Read the result of this name and description, or keep and return that of `measure()`.

        Results are plain values; numbers may be infinite or NaN.
        """
        described = {**self.described, **described}
        words = re.sub(r"[^A-Za-z0-9.]+", "_", name).strip("_")
        path = self.folder / f"{words}-{files.digest_of(described)[:8]}.json"

        def read() -> dict | None:  # one process of a job reads for all; all measure together
            there = path.exists() and not self.fresh
            return files.load_json(path)["measured"] if there else None

        if (found := parallel.broadcast(read)) is not None:
            job.say(f"read from {path}; --fresh measures anew")
            return found
        text = json.dumps({"about": described, "measured": measure()}, indent=1)
        if job.is_first():
            files.make_folder(self.folder)
            with files.locked(self.folder, "saves a measurement"):
                files.save(path, text)
        parallel.wait()
        return json.loads(text)["measured"]  # the same values as a later call reads


@dataclass(frozen=True)
class Followed:
    """The first steps of a training, and what the doctor saw if it watched.

    losses: of the steps taken. divergence: {"step", "module", "direction"} of the first value that
    is not finite, or None. dead: {"step", "module"} of the first batch norm with an infinite
    variance, or None. rows: a dict per tensor in steps 1, 2, 4, 8, ... and the last one: {"step",
    from 1; "module"; "direction", "output" or "gradient"; and the keys of `tensor_statistics`}.
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
        """The outcome of the training, as plain values.

        Keys: diverged_at_step and divergence, None if all values were finite; dead; first_loss and
        last_loss, the mean over the last `last_steps`, None without a finite step; steps, the
        number of finite ones; seconds.
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

    def peaks(self, step: int, modules: Iterable[str]) -> list[float]:
        """The largest absolute output of each module in a step; infinite if one is not finite."""
        outputs = {
            row["module"]: math.inf if row["non_finite"] else row["peak"]
            for row in self.rows
            if row["step"] == step and row["direction"] == "output"
        }
        return [outputs[module] for module in modules]

    def csv_text(self) -> str:
        """The rows as CSV under a header, numbers with five digits."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            cells = {key: f"{value:.5g}" for key, value in row.items() if isinstance(value, float)}
            writer.writerow(row | cells)
        return text.getvalue()


class Record:
    """The rows that hooks record in a training: those of the current step, and those kept."""

    def __init__(self):
        self.step = 1
        self.step_rows: dict[tuple[str, str], dict] = {}
        self.rows: list[dict] = []
        self.beyond: dict[str, dict] = {}

    def look(self, module: str, direction: str, values: Tensor) -> None:
        """Record the statistics of a tensor; `watched` calls this."""
        place = {"step": self.step, "module": bare_name(module), "direction": direction}
        # The step that diverges is run twice, the second time to find out where.
        self.step_rows[module, direction] = {**place, **tensor_statistics(values)}

    def end_step(self, network: nn.Module, last: bool) -> None:
        """Record the parameters' gradients; keep the step's rows if it is the last or a 2^k-th."""
        for name, parameter in network.named_parameters():
            if parameter.grad is not None:
                self.look(name, "gradient", parameter.grad)
        self.beyond = first_beyond(self.step_rows.values()) | self.beyond
        if last or self.step.bit_count() == 1:  # a power of two
            self.rows += self.step_rows.values()
        self.step, self.step_rows = self.step + 1, {}


def first_beyond(rows: Iterable[dict]) -> dict[str, dict]:
    """Find where values first leave each range: {precision: {"step", "module", "direction"}}.

    `rows` are in the order of time. A precision whose range no value leaves has no entry.
    """
    beyond: dict[str, dict] = {}
    for row in rows:
        for precision, largest in RANGES.items():
            if row["non_finite"] or row["peak"] > largest:
                beyond.setdefault(precision, {key: row[key] for key in PLACE})
    return beyond


def follow_steps(run: Run, train: Packed, steps: int, watch: bool = False) -> Followed:
    """Take `steps` steps as `training.loop.fit` does; end when a loss or gradient is not finite.

    Without `watch` the result's rows and beyond are empty.
    """
    record, losses, divergence, dead = Record(), [], None, None
    trained, start = endless_steps(run, train), time.perf_counter()
    with watched(run.network, record.look) if watch else contextlib.nullcontext():
        for step in job.progress(range(1, steps + 1), leave=False):
            try:
                losses.append(next(trained))
            except NotFinite as error:
                place = (step, bare_name(error.module), error.direction)
                divergence = dict(zip(PLACE, place, strict=True))
            if dead is None and (names := dead_batch_norms(run.network)):
                dead = {"step": step, "module": bare_name(names[0])}
            if watch:
                record.end_step(run.network, last=divergence is not None or step == steps)
            if divergence:
                break
    seconds = time.perf_counter() - start
    return Followed(losses, divergence, dead, record.rows, record.beyond, seconds)


def unchecked_steps(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    autopsy: bool = False,
) -> dict:
    """Take one step per batch without any checks; end after a loss that is not finite.

    Returns:
        losses, of each step; non_finite_gradients, the names of the parameters with such gradients
        in step 1; tensors, the number of parameter tensors; infinite_from, the first batch norm
        with a channel of infinite variance in step 1, or None; seconds, per step. With `autopsy`
        also "autopsy", the first of `bad_batch_norms` in step 1, or None.
    """
    losses, of_first_step = [], {}
    start = time.perf_counter()
    for images, labels in batches:
        optimizer.zero_grad()
        looks = autopsy and not losses
        with bad_batch_norms(network) if looks else contextlib.nullcontext([]) as bad:
            loss = functional.cross_entropy(network.train()(images).float(), labels)
            losses.append(loss.item())
            loss.backward()
        if len(losses) == 1:
            of_first_step["non_finite_gradients"] = non_finite_gradients(network)
            of_first_step["infinite_from"] = next(iter(dead_batch_norms(network)), None)
        if looks:
            of_first_step["autopsy"] = bad[0] if bad else None
        if not math.isfinite(losses[-1]):
            break
        optimizer.step()
    return {
        "losses": losses,
        **of_first_step,
        "tensors": len(list(network.parameters())),
        "seconds": (time.perf_counter() - start) / len(losses),
    }


def first_images(setup: Setup) -> Tensor:
    """A batch of training images drawn by the seed, not augmented, for forecasts."""
    args, train = setup.args, setup.packed["train"]
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(args.seed))
    return train.squares(order[: args.batch_size], args.image_size, setup.device)[0]


def follow(
    setup: Setup, name: str, build: Callable, recipe: Recipe, watch: bool = False, **described
) -> Followed:
    """Train `build()` for --steps or until a loss or gradient is not finite, and print how it went.

    The result is kept under `name`, so that a stopped call can be resumed. `described` has what the
    training depends on besides the recipe, --width and the seed. With `watch` the doctor looks at
    every module, which takes longer.
    """
    args = setup.args

    def measure() -> dict:
        run = Run(with_fast_convolutions(build(), setup.device), recipe, setup.device)
        return asdict(follow_steps(run, setup.packed["train"], args.steps, watch))

    described |= {
        "data": {split: part.source.fingerprint() for split, part in setup.packed.items()},
        "device": setup.device.type,
        "seed": args.seed,
        "width": args.width,
        "processes": job.size(),  # batch norm sees each process's images apart
        "image_size_px": args.image_size,
        "classes": setup.classes,
    }
    training = {"name": name, "recipe": recipe.as_dict(), "steps": args.steps, "watch": watch}
    kept = ResultCache(setup.folder / "kept", described, args.fresh)
    followed = Followed(**kept.get(name, training, measure))
    outcome = f"diverges in step {followed.last_step}" if followed.divergence else "finite"
    dead = f", dead from {followed.dead['module']} on" if followed.dead else ""
    job.say(f"{name}: {outcome}{dead}, {followed.seconds:.0f} s")
    return followed
