"""Checkpoints: saved in one step, read back as tensors and plain values alone, gone on with."""

import io
import json
import time
from pathlib import Path

import torch

from common import files
from common.errors import UserError
from common.job import is_first, say
from common.training.run import Run


class Saver:
    """The files of a run in its folder: last.pt, best.pt and metrics.jsonl.

    Written on the first process of a job. `described` says what beside the recipe makes this run
    this one (network, data).
    """

    def __init__(self, run: Run, folder: Path, described: dict, every_seconds: float = 300):
        self.run, self.folder = run, folder
        self.identity = {**run.recipe.as_dict(), **described}
        self.every_seconds, self.saved_at = every_seconds, time.monotonic()

    def now(self) -> None:
        """Save the whole run."""
        if is_first():
            state = {**self.run.state_dict(), "about": self.identity}
            save_checkpoint(self.folder / "last.pt", state)
        self.saved_at = time.monotonic()

    def if_due(self) -> None:
        """Save the whole run where the last time is long enough ago."""
        if time.monotonic() - self.saved_at >= self.every_seconds:
            self.now()

    def epoch(self) -> None:
        """Save after an epoch: last.pt comes last, so that it never promises lost weights.

        After the last epoch nothing is left to go on with, and last.pt goes.
        """
        run = self.run
        self.log()
        if is_first() and run.best is run.history[-1]:
            # Without times, so that equal trainings make equal files.
            chosen = {"epoch": run.best["epoch"], "val_top1": run.best["val_top1"]}
            weights = {"network": run.evaluated.state_dict(), "about": self.identity, **chosen}
            save_checkpoint(self.folder / "best.pt", weights)
        if run.epoch < run.recipe.epochs:
            self.now()
        elif is_first():
            (self.folder / "last.pt").unlink(missing_ok=True)

    def log(self) -> None:
        """Write metrics.jsonl, a line an epoch."""
        if is_first():
            lines = [json.dumps(files.finite(row)) + "\n" for row in self.run.history]
            files.save(self.folder / "metrics.jsonl", "".join(lines))

    def resume(self, stopped: dict) -> None:
        """Go on with the run in the folder, as `load_stopped` has read it."""
        run, path = self.run, self.folder / ("last.pt" if "network" in stopped else "best.pt")
        self._check_identity(path, stopped["about"])
        if "network" in stopped:
            run.load_state_dict(stopped)
        else:
            run.epoch, run.history = stopped["epoch"], stopped["history"]
        stopped.clear()  # the optimiser's copy would stay in memory as long as the run
        self.log()
        done = run.epoch >= run.recipe.epochs
        at = "complete" if done else f"going on at epoch {run.epoch + 1}, step {run.step + 1}"
        say(f"{path}: {at}; --fresh trains anew")
        threads, now = (run.history or [{}])[-1].get("threads"), torch.get_num_threads()
        if not done and run.device.type == "cpu" and threads not in (None, now):
            say(f"{path}: begun with {threads} threads, now {now}: sums of another order")

    def load_best(self) -> None:
        """Load the weights of the run's best epoch into its network."""
        best = load_checkpoint(self.folder / "best.pt")
        self._check_identity(self.folder / "best.pt", best["about"])
        self.run.network.load_state_dict(best["network"])

    def _check_identity(self, path: Path, saved: dict) -> None:
        wanted = self.identity
        differences = [
            f"{key} {saved.get(key)} (now {wanted.get(key)})"
            for key in sorted(saved.keys() | wanted.keys())
            if saved.get(key) != wanted.get(key)
        ]
        if differences:
            raise UserError(
                f"{path} is of another run: {', '.join(differences)}; give its flags to go on with"
                " it, another --out, or --fresh to replace it"
            )


def save_checkpoint(path: Path, state: dict) -> None:
    """`torch.save` in one step: a killed run or a full disk leaves the file before.

    Equal states make equal files: PyTorch would put the name of a file into its content.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    files.save(path, buffer.getbuffer())


def load_checkpoint(path: Path) -> dict:
    """A checkpoint of `save_checkpoint`, which is the one that was saved, on the CPU."""
    return torch.load(io.BytesIO(_load(path)), map_location="cpu", weights_only=True)


def _load(path: Path) -> bytes:
    try:
        return files.load(path)
    except (FileNotFoundError, UserError) as error:
        raise UserError(f"{error}; --fresh trains anew") from None


def load_stopped(folder: Path) -> dict | None:
    """The last checkpoint of a run, or of one that is complete its "about", "epoch" and "history".

    None where the folder holds neither.
    """
    if (folder / "last.pt").exists():
        return load_checkpoint(folder / "last.pt")
    if not (folder / "best.pt").exists():
        return None
    about = load_checkpoint(folder / "best.pt")["about"]
    lines = _load(folder / "metrics.jsonl").decode().splitlines()
    if len(lines) != about["epochs"]:
        return None  # somebody has removed its last.pt
    return {"about": about, "epoch": len(lines), "history": [json.loads(line) for line in lines]}
