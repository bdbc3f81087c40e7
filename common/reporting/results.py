"""results.json: what each part found, which files it wrote, and where both came from."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision

from common import files, job
from common.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Findings:
    """What a part found, and how it is told. Files are named by their names in the folder.

    result: plain values for results.json. tables: texts that are printed and kept. texts: texts
    that are kept alone. figures: functions that draw a figure into the path they are given.
    """

    result: dict
    tables: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)

    @property
    def file_names(self) -> list[str]:
        """All files that are to be written."""
        return sorted([*self.tables, *self.texts, *self.figures])


def open_folder(folder: Path) -> Path:
    """A problem's results folder, made where it is missing.

    Raises:
        UserError: it can't be written to, or holds a results.json that is not this project's.
    """
    files.make_folder(folder)
    read(folder)
    return folder


def read(folder: Path) -> dict:
    """{"files": {part: names}, "parts": {part: result}} of a folder; empty where there is none.

    Raises:
        UserError: results.json is not a results file of this project.
    """
    path = folder / "results.json"
    if not path.exists():
        return {"files": {}, "parts": {}}
    try:
        stored = json.loads(files.load(path))
        return {key: dict(stored[key]) for key in ("files", "parts")}
    except (ValueError, KeyError, TypeError, OSError):
        raise UserError(
            f"{path} is not a results file of this project; move it away and run again"
        ) from None


def publish(folder: Path, part: str, findings: Findings, provenance: dict) -> None:
    """Print and write what a part found, on the first process of a job alone.

    The part's entry in results.json is replaced, and so are the files that its run before has
    recorded there; others in the folder are left as they are.

    Raises:
        UserError: a file is in the way that no run has recorded.
    """
    if not job.is_first():
        return
    with files.locked(folder):
        before = _claim(folder, part, findings.file_names)
    for name, text in findings.tables.items():
        print(text)
        _write_text(folder / name, text)
    for name, text in findings.texts.items():
        _write_text(folder / name, text)
    for name, draw in findings.figures.items():
        with files.atomic(folder / name) as temporary:
            draw(temporary)
    for name in sorted(set(before) - set(findings.file_names)):
        (folder / name).unlink(missing_ok=True)
        print(f"removed {folder / name}: of the run before, which this one replaces")
    with files.locked(folder):
        stored = read(folder)
        stored["files"][part] = findings.file_names
        stored["parts"][part] = {**findings.result, "provenance": provenance}
        _store(folder, stored)
    seconds = provenance["call_seconds"]
    print(f"-> {folder / 'results.json'} [{part}] in {seconds:.1f} s", flush=True)


def _claim(folder: Path, part: str, names: list[str]) -> list[str]:
    """Record the files about to be written; returns those of the part's run before.

    Recorded first, so that a run that is killed in between does not stand in its own way.
    """
    stored = read(folder)
    recorded = {name for owned in stored["files"].values() for name in owned}
    for name in names:
        if name not in recorded and (folder / name).exists():
            raise UserError(
                f"{folder / name} is in the way and results.json does not record it as written by"
                " this program; move it away, or choose another --out"
            )
    before = stored["files"].get(part, [])
    stored["files"][part] = sorted({*before, *names})
    _store(folder, stored)
    return before


def _store(folder: Path, stored: dict) -> None:
    stored = {key: dict(sorted(entries.items())) for key, entries in stored.items()}
    files.save_json(folder / "results.json", stored)


def _write_text(path: Path, text: str) -> None:
    with files.atomic(path) as temporary:
        temporary.write_text(text)


# ------------------------------------------------------------------------------------- provenance


def provenance(seed: int, call_seconds: float, **about) -> dict:
    """What is needed to make a part's result again, and on what it was made.

    Keys: command, seed, git_commit, threads, call_seconds (of the call that made it, trainings that
    it took over from earlier calls left out), environment, and whatever `about` says.
    """
    return {
        "command": shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "seed": seed,
        "git_commit": git_commit(),
        "threads": torch.get_num_threads(),
        **about,
        "call_seconds": call_seconds,
        "environment": environment(),
    }


def git_commit() -> str | None:
    """Commit of this checkout, with `+changes` where tracked files differ; None outside git.

    Results do not count: a run that replaces published ones changes them itself.
    """

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        code = ("--untracked-files=no", "--", ".", ":(exclude)outputs")
        return commit + ("+changes" if git("status", "--porcelain", *code) else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def environment() -> dict:
    """Versions and hardware of this run."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def processor() -> str:
    """The processor's model, and the widest vector instructions that PyTorch uses on it."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    values = {key.strip(): value.strip() for key, value in fields.items()}
    if "model name" in values:
        place = f"family {values.get('cpu family')}, model {values.get('model')}"
        model = f"{values['model name']} ({place})"
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}"
