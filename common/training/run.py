"""A training in progress: the state that its steps change, its files, and resuming from them."""

import io
import json
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.ops import StochasticDepth

from common import files
from common.errors import UserError
from common.job import is_first, say
from common.training import parallel
from common.training.recipe import Recipe

PLAIN = ("epoch", "step", "sums", "history")  # what a checkpoint has besides tensors


class Run:
    """A network in training, with all the state that a step changes and a checkpoint holds.

    `teacher` is None, or the `common.studies.teacher.Teacher` whose features the network learns.
    """

    def __init__(
        self, network: nn.Module, recipe: Recipe, device: torch.device, gpus: int = 0, teacher=None
    ):
        self.recipe, self.device, self.teacher = recipe, device, teacher
        self.network = network.to(device, memory_format=torch.channels_last)
        # The module trained: the network, or with a teacher the network and its guesses.
        self.trained = teacher.taught(self.network).to(device) if teacher else self.network
        compiled = torch.compile(self.trained) if recipe.compile else self.trained
        self.forward = parallel.wrap(compiled, device, gpus)
        self.average = None
        if recipe.ema_decay:
            average = _warm_average(recipe.ema_decay)
            self.average = AveragedModel(self.network, multi_avg_fn=average)
        self.optimizer = _make_optimizer(self.trained, recipe)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        kinds = (nn.Dropout, StochasticDepth)
        modules = [*self.network.modules(), *(self.average.modules() if self.average else ())]
        self.dropouts = [(module, module.p) for module in modules if isinstance(module, kinds)]
        self.epoch = self.step = 0
        self.sums = no_sums()
        self.history: list[dict] = []

    @property
    def evaluated(self) -> nn.Module:
        """The network to evaluate: the averaged one if there is one."""
        return self.average.module if self.average else self.network

    def _parts(self) -> dict[str, object]:
        """The objects with a state of their own, by their names in a checkpoint."""
        parts = {"network": self.network, "optimizer": self.optimizer, "scaler": self.scaler}
        if self.average:
            parts["average"] = self.average
        return {**parts, "guesses": self.trained.guesses} if self.teacher else parts

    def state_dict(self) -> dict:
        """The run's state, as tensors and plain values alone."""
        states = {name: part.state_dict() for name, part in self._parts().items()}
        return states | {name: getattr(self, name) for name in PLAIN}

    def load_state_dict(self, state: dict) -> None:
        """Restore a `state_dict` of a run with the same recipe and network."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        for name in PLAIN:
            setattr(self, name, state[name])


def no_sums() -> dict:
    """The sums that the steps since an evaluation add to, before the first one."""
    return {"loss": 0.0, "top1": 0, "images": 0, "seconds": 0.0}


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory so far in MiB: allocated on a GPU, or resident in this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _warm_average(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor], None]:
    """An exponential moving average with decay min(decay, (1 + n) / (10 + n)) after n steps.

    A constant decay would keep the initial weights for long. The averaged network's batch-norm
    statistics are recomputed (`loop.recompute_batch_norms`).
    """

    def update(averaged: list[Tensor], current: list[Tensor], steps: Tensor) -> None:
        now = min(decay, (1 + int(steps)) / (10 + int(steps)))
        get_ema_multi_avg_fn(now)(averaged, current, steps)

    return update


def _make_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim >= 2]
    # Norms and biases get no decay: it would regularise nothing (He et al. 2019, section 3).
    vectors = [parameter for parameter in trained if parameter.ndim < 2]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    options = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, nesterov=True, **options)
    return torch.optim.AdamW(groups, **options, fused=True)


# ------------------------------------------------------------------------------- the files of a run


class Saver:
    """The files of a run in its folder: last.pt, best.pt and metrics.jsonl.

    The first process of a job writes them. `described` has what identifies the run besides its
    recipe (network, data).
    """

    def __init__(self, run: Run, folder: Path, described: dict, every_seconds: float = 300):
        self.run, self.folder = run, folder
        self.identity = {**run.recipe.as_dict(), **described}
        self.every_seconds, self.saved_at = every_seconds, time.monotonic()

    def now(self) -> None:
        """Save the run's whole state in last.pt."""
        if is_first():
            state = {**self.run.state_dict(), "about": self.identity}
            save_checkpoint(self.folder / "last.pt", state)
        self.saved_at = time.monotonic()

    def if_due(self) -> None:
        """Call `now` if the last call is at least `every_seconds` ago."""
        if time.monotonic() - self.saved_at >= self.every_seconds:
            self.now()

    def epoch(self) -> None:
        """Save after an evaluation: last.pt comes last, after the best weights it refers to.

        After the last epoch last.pt is deleted, since nothing is left to resume.
        """
        run = self.run
        best = max(run.history, key=lambda row: row["val_top1"])  # the first of equals
        if is_first():
            lines = [json.dumps(files.finite(row)) + "\n" for row in run.history]
            files.save(self.folder / "metrics.jsonl", "".join(lines))
            if best is run.history[-1]:
                # Without times, so that equal trainings make equal files.
                chosen = {"epoch": best["epoch"], "val_top1": best["val_top1"]}
                weights = {"network": run.evaluated.state_dict(), "about": self.identity, **chosen}
                save_checkpoint(self.folder / "best.pt", weights)
        if run.epoch < run.recipe.epochs:
            self.now()
        elif is_first():
            (self.folder / "last.pt").unlink(missing_ok=True)

    def resume(self, stopped: dict) -> None:
        """Restore the run in the folder from what `load_stopped` has read."""
        run, path = self.run, self.folder / ("last.pt" if "network" in stopped else "best.pt")
        self.check(path, stopped["about"])
        if "network" in stopped:
            run.load_state_dict(stopped)
        else:
            run.epoch, run.history = stopped["epoch"], stopped["history"]
        stopped.clear()  # or the optimiser's copy would stay in memory during the run
        done = run.epoch >= run.recipe.epochs
        at = "complete" if done else f"resuming at epoch {run.epoch + 1}, step {run.step + 1}"
        say(f"{path}: {at}; --fresh trains anew")
        threads, now = (run.history or [{}])[-1].get("threads"), torch.get_num_threads()
        if not done and run.device.type == "cpu" and threads not in (None, now):
            say(f"{path}: begun with {threads} threads, now {now}: results differ by rounding")

    def check(self, path: Path, saved: dict) -> None:
        """Refuse a checkpoint that was saved with another identity."""
        wanted = self.identity
        differences = [
            f"{key} {saved.get(key)} (now {wanted.get(key)})"
            for key in sorted(saved.keys() | wanted.keys())
            if saved.get(key) != wanted.get(key)
        ]
        if differences:
            raise UserError(
                f"{path} belongs to another run: {', '.join(differences)}; give its flags to"
                " resume it, another --out, or --fresh to replace it"
            )


def save_checkpoint(path: Path, state: dict) -> None:
    """`torch.save` in one step: after a kill or on a full disk the previous file stays.

    Equal states make equal files; `torch.save` to a path would write the file's name into it.
    """
    files.save(path, partial(torch.save, state))


def load_checkpoint(path: Path) -> dict:
    """Load a checkpoint of `save_checkpoint` on the CPU."""
    return torch.load(io.BytesIO(_load(path)), map_location="cpu", weights_only=True)


def _load(path: Path) -> bytes:
    try:
        return files.load(path)
    except (FileNotFoundError, UserError) as error:
        raise UserError(f"{error}; --fresh trains anew") from None


def load_stopped(folder: Path) -> dict | None:
    """A run's last checkpoint, or the "about", "epoch" and "history" of a complete run.

    None if the folder holds neither.
    """
    if (folder / "last.pt").exists():
        return load_checkpoint(folder / "last.pt")
    if not (folder / "best.pt").exists():
        return None
    about = load_checkpoint(folder / "best.pt")["about"]
    history = [json.loads(line) for line in _load(folder / "metrics.jsonl").splitlines()]
    if not history or history[-1]["epoch"] != about["epochs"]:
        return None  # somebody has removed its last.pt
    return {"about": about, "epoch": about["epochs"], "history": history}
