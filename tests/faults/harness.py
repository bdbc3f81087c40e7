"""Scripts in processes of their own, and what they leave compared with uninterrupted runs."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from common.reporting.results import ROOT
from tests.faults import equal, tiny

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
LIMIT_S = 300  # of a call that nothing is done to
FEW_STEPS = ("--steps", 2, "--epochs", 1, "--checkpoint-seconds", 0)
CALLS = {
    "1.1": ("problem1_perceptual", "1.1", *tiny.PHOTOS),
    "2.1": ("problem2_flowers", "2.1", *tiny.TRAINED),
    "2.2": ("problem2_flowers", "2.2", *tiny.TRAINED),
    "3.1": ("problem3_resnet36", "3.1", *tiny.FOLDERS),
    "3.1 3.4": ("problem3_resnet36", "3.1", "3.4", *tiny.FOLDERS, *FEW_STEPS),
}


def start(call: tuple, folder: Path, ranks: int = 1, **options) -> subprocess.Popen:
    """Start a script in a folder, or with torchrun's help so many of it."""
    if not (folder / "photos").exists():
        tiny.write_photos(folder / "photos")
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", ranks, "-m")
    words = [sys.executable, "-m", *(torchrun if ranks > 1 else ()), "tests.faults.script", *call]
    env = {**os.environ, **ENVIRONMENT, **options.pop("env", {})}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*map(str, words)], cwd=folder, env=env, **pipes, **options)


def start_training(call: tuple, folder: Path, step_seconds: float, ranks: int = 1):
    """Start a script whose steps take longer; returns its process when the first one has begun."""
    process = start(call, folder, ranks, env={"STEP_SECONDS": str(step_seconds)})
    until = time.monotonic() + LIMIT_S
    while not (folder / "training").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.01)
    return process


def end(process: subprocess.Popen) -> tuple[int, str]:
    """The exit code of a process, and what it said on stderr, when it has ended."""
    try:
        _, said = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
    assert "Traceback" not in said, said
    return process.returncode, said


def refuses(process: subprocess.Popen, *named: str) -> None:
    """Ask for exit 2 and one line of error, which holds one of the names."""
    code, said = end(process)
    assert code == 2, said
    errors = [line for line in said.splitlines() if ": error: " in line]
    assert len(errors) == 1, said
    assert any(name in errors[0] for name in named), said


def goes_on(call: tuple, folder: Path, wanted: dict, ranks: int = 1) -> None:
    """Ask that the same command ends as an uninterrupted one, and leaves nothing behind."""
    code, said = end(start(call, folder, ranks))
    assert code == 0, said
    equal.ask(wanted, equal.digest(folder / "out"))
    left = [path for path in folder.rglob(".*") if path.name != ".lock"]
    assert left == []


def copy(base: Path, folder: Path) -> None:
    """What an uninterrupted run has left, in another folder."""
    for name in ("out", "cache"):
        shutil.copytree(base / name, folder / name)
