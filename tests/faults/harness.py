"""Run scripts in their own processes and compare their files with those of uninterrupted runs."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from common.reporting.results import ROOT
from tests.faults import tiny

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
LIMIT_S = 300  # of a call that is not disturbed
FEW_STEPS = ("--steps", 2, "--epochs", 1, "--checkpoint-seconds", 0)
CALLS = {
    "1.1": ("problem1_perceptual", "1.1", *tiny.PHOTOS),
    "2.1": ("problem2_flowers", "2.1", *tiny.TRAINED),
    "2.2": ("problem2_flowers", "2.2", *tiny.TRAINED),
    "3.1": ("problem3_resnet36", "3.1", *tiny.FOLDERS),
    "3.1 3.4": ("problem3_resnet36", "3.1", "3.4", *tiny.FOLDERS, *FEW_STEPS),
}
# Keys of times, of memory, of a result's origin, and of values that are computed from times.
TIMED = {
    *("provenance", "seconds", "training_seconds", "images_per_second", "peak_memory_mib"),
    *("weights", "weights_sha256"),
}


def start(call: tuple, folder: Path, ranks: int = 1, **options) -> subprocess.Popen:
    """Start a script in a folder, by torchrun if it has several ranks."""
    if not (folder / "photos").exists():
        tiny.write_photos(folder / "photos")
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", ranks, "-m")
    words = [sys.executable, "-m", *(torchrun if ranks > 1 else ()), "tests.faults.script", *call]
    env = {**os.environ, **ENVIRONMENT, **options.pop("env", {})}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*map(str, words)], cwd=folder, env=env, **pipes, **options)


def start_training(call: tuple, folder: Path, step_seconds: float, ranks: int = 1):
    """Start a script with slow steps; returns its process when the first step has begun."""
    process = start(call, folder, ranks, env={"STEP_SECONDS": str(step_seconds)})
    until = time.monotonic() + LIMIT_S
    while not (folder / "training").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.01)
    return process


def end(process: subprocess.Popen) -> tuple[int, str]:
    """Wait for a process to end: (exit code, stderr)."""
    try:
        _, said = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
    assert "Traceback" not in said, said
    return process.returncode, said


def refuses(process: subprocess.Popen, *named: str) -> None:
    """Check that a process ends in exit code 2 and one error line, which has one of the names."""
    code, said = end(process)
    assert code == 2, said
    errors = [line for line in said.splitlines() if ": error: " in line]
    assert len(errors) == 1, said
    assert any(name in errors[0] for name in named), said


def goes_on(call: tuple, folder: Path, wanted: dict, ranks: int = 1) -> None:
    """Check that the same command ends like an uninterrupted one, and leaves no hidden files."""
    code, said = end(start(call, folder, ranks))
    assert code == 0, said
    assert digest(folder / "out") == wanted
    left = [path for path in folder.rglob(".*") if path.name != ".lock"]
    assert left == []


def copy(base: Path, folder: Path) -> None:
    """Copy what an uninterrupted run has left into another folder."""
    for name in ("out", "cache"):
        shutil.copytree(base / name, folder / name)


def digest(folder: Path) -> dict[str, object]:
    """All values in a problem's folder that have to be equal, by file and key."""
    found: dict[str, object] = {}
    for path in folder.rglob("*.*"):
        name = str(path.relative_to(folder))
        if path.suffix == ".pt":
            state = torch.load(path, map_location="cpu", weights_only=True)
            found |= _tensors(state, f"{name} ")
        elif path.suffix == ".jsonl":
            found[name] = [_untimed(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".json":
            found[name] = _untimed(json.loads(path.read_text()))
    return found


def _tensors(value, name: str) -> dict[str, str]:
    if isinstance(value, Tensor):
        return {name: hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()}
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return {}
    found = {}
    for key, item in items:
        found |= _tensors(item, f"{name}.{key}")
    return found


def _untimed(value):
    if isinstance(value, dict):
        return {key: _untimed(item) for key, item in value.items() if key not in TIMED}
    return [_untimed(item) for item in value] if isinstance(value, list) else value
