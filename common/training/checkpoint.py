"""Checkpoints: saved in one step, read back as tensors and plain values alone, gone on with."""

import contextlib
import io
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from common import files
from common.errors import UserError
from common.job import is_first, say
from common.training.run import Run, check_finite


class Saver:
    """Writes a run's files, on the first process of a job: last.pt, best.pt and metrics.jsonl."""

    def __init__(self, run: Run, folder: Path, identity: dict, every_seconds: float):
        self.run, self.folder, self.identity = run, folder, identity
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
        """Save after an epoch: the best weights first, so that last.pt never promises lost ones.

        After the last epoch nothing is left to go on with, and last.pt goes.
        """
        run = self.run
        if is_first():
            if run.best is run.history[-1]:
                # Without times, so that equal trainings make equal files.
                chosen = {"epoch": run.best["epoch"], "val_top1": run.best["val_top1"]}
                weights = {"network": run.evaluated.state_dict(), "about": self.identity, **chosen}
                save_checkpoint(self.folder / "best.pt", weights)
            self.log()
        if run.epoch < run.recipe.epochs:
            self.now()
        elif is_first():
            (self.folder / "last.pt").unlink(missing_ok=True)

    def log(self) -> None:
        """Write metrics.jsonl, a line an epoch."""
        lines = [json.dumps(files.finite(row)) + "\n" for row in self.run.history]
        files.save(self.folder / "metrics.jsonl", "".join(lines))


def save_checkpoint(path: Path, state: dict) -> None:
    """`torch.save` in one step: a killed run or a full disk leaves the file before.

    Equal states make equal files: PyTorch would put the name of a file into its content.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    files.save(path, buffer.getbuffer())


def load_checkpoint(path: Path, device: torch.device) -> dict:
    """A checkpoint of `save_checkpoint`, checked.

    Raises:
        UserError: it is missing, damaged, or can't be read as tensors and plain values.
    """
    try:
        buffer = io.BytesIO(files.load(path))
        with warnings.catch_warnings(action="ignore"):  # of other formats, which then are refused
            return dict(torch.load(buffer, map_location=device, weights_only=True))
    except UserError:
        raise
    except Exception as error:  # a hostile file can raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not a checkpoint that can be read safely ({reason})") from None


@contextlib.contextmanager
def _to_train_anew(path: Path) -> Iterator[None]:
    """Say of whatever is wrong with a run's file how to do without."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}; --fresh trains anew") from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: not a checkpoint of such a run ({type(error).__name__}: {reason}); --fresh"
            " trains anew"
        ) from None


def load_best(network: nn.Module, folder: Path, identity: dict, device: torch.device) -> None:
    """Load the weights of a run's best epoch.

    Raises:
        UserError: they can't be read, or are those of another run.
    """
    path = folder / "best.pt"
    with _to_train_anew(path):
        best = load_checkpoint(path, device)
        if best["about"] != identity:
            raise UserError(f"{path} is of another run than last.pt beside it")
        network.load_state_dict(best["network"])
        check_finite(network)


def load_stopped(folder: Path, device: torch.device) -> dict | None:
    """The last checkpoint of a run, or of one that is complete its "about", "epoch" and "history".

    None where the folder holds neither.

    Raises:
        UserError: as `load_checkpoint`; the message says how to do without.
    """
    last, best = folder / "last.pt", folder / "best.pt"
    if not last.exists() and not best.exists():
        return None
    path = last if last.exists() else best
    with _to_train_anew(path):
        state = load_checkpoint(path, device)
        if not isinstance(state["about"], dict):
            raise TypeError("about")
        if path == last:
            return state
        try:
            lines = files.load(folder / "metrics.jsonl").decode().splitlines()
        except FileNotFoundError as error:
            raise UserError(f"{error.filename}: missing") from None
        if len(lines) != state["about"]["epochs"]:
            return None  # somebody has removed its last.pt
        return {
            "about": state["about"],
            "epoch": len(lines),
            "history": [json.loads(line) for line in lines],
        }


def resume(run: Run, folder: Path, identity: dict, state: dict | None = None) -> None:
    """Go on with the run that a folder holds, where there is one.

    `state` is what `load_stopped` has read of it already.

    Raises:
        UserError: it can't be read, or is of a run with another identity.
    """
    state = state or load_stopped(folder, run.device)
    if state is None:
        return
    path, saved = folder / ("last.pt" if "network" in state else "best.pt"), state["about"]
    differences = [
        f"{key} {saved.get(key)} (now {identity.get(key)})"
        for key in sorted(saved.keys() | identity.keys())
        if saved.get(key) != identity.get(key)
    ]
    if differences:
        raise UserError(
            f"{path} is of another run: {', '.join(differences)}; give its flags to go on with it,"
            " another --out, or --fresh to replace it"
        )
    with _to_train_anew(path):
        if "network" in state:
            run.load_state_dict(state)
        else:
            run.epoch, run.history = state["epoch"], state["history"]
        run.check()
    state.clear()  # the optimiser's copy would stay in memory as long as the run
    done = run.epoch >= run.recipe.epochs
    at = "complete" if done else f"going on at epoch {run.epoch + 1}, step {run.step + 1}"
    say(f"{path}: {at}; --fresh trains anew")
