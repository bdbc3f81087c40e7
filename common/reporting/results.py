"""results.json: what each part found, which files it wrote, and where both came from."""

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision

from common import files, job
from common.errors import UserError

MOVE_AWAY = "move it away with the tables and figures beside it, and run again"
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Findings:
    """What a part found, and the files that show it, by their names in the folder.

    result: plain values for results.json. tables: texts to print and save. texts: texts or bytes to
    save only; a manifest.csv among them is read again later, so SHA256SUMS records it.
    figures: functions that draw a figure into a given path.
    """

    result: dict
    tables: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str | bytes] = field(default_factory=dict)
    figures: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)


def open_folder(folder: Path, parts: Sequence[str] = ()) -> Path:
    """A problem's results folder for these parts, made if it is missing.

    Without a results.json, files that are named like a part's are a UserError before any work.
    """
    files.make_folder(folder)
    read(folder)
    if not (folder / "results.json").exists():
        _refuse(folder, [path.name for part in parts for path in folder.glob(f"{part}_*.*")])
    return folder


def _refuse(folder: Path, names: Iterable[str]) -> None:
    if names := sorted(names):
        raise UserError(
            f"{folder}: {', '.join(names)} in the way, which results.json does not record as"
            " written by this part; move these away, or choose another --out"
        )


def read(folder: Path) -> dict:
    """{"files": {part: names}, "parts": {part: result}} of a folder; empty without results.json."""
    path = folder / "results.json"
    if not path.exists():
        return {"files": {}, "parts": {}}
    try:
        stored = files.load_json(path)
    except UserError as error:
        raise UserError(f"{error}; {MOVE_AWAY}") from None
    # A part that runs again removes the files listed here: none may lie outside the folder.
    if any(Path(name).name != name for names in stored["files"].values() for name in names):
        raise UserError(f"{path} is not a results file of this project; {MOVE_AWAY}")
    return stored


def publish(folder: Path, part: str, findings: Findings, provenance: dict) -> None:
    """Print and write what a part found; only the first process of a job does this.

    This replaces the part's entry in results.json and the files that the entry lists. Any other
    file in the way is a UserError. A second call at the same time waits for the first.
    """
    if not job.is_first():
        return
    for text in findings.tables.values():
        job.say(text)
    names = sorted([*findings.tables, *findings.texts, *findings.figures])
    with files.locked(folder, "writes results"):
        stored = read(folder)
        before = set(stored["files"].get(part, []))
        _refuse(folder, [name for name in set(names) - before if os.path.lexists(folder / name)])
        # Record the names first: after a kill while writing, the next run may replace the files.
        stored["files"][part] = sorted(before.union(names))
        _store(folder, stored)
        _write(folder, findings)
        for name in sorted(before.difference(names)):
            (folder / name).unlink(missing_ok=True)
            job.say(f"removed {folder / name}, of the part's run before")
        stored["files"][part] = names
        stored["parts"][part] = {**findings.result, "provenance": provenance}
        _store(folder, stored)
    job.say(f"-> {folder / 'results.json'} [{part}] in {provenance['call_seconds']:.1f} s")


def _write(folder: Path, findings: Findings) -> None:
    for name, text in {**findings.tables, **findings.texts}.items():
        content = text.encode("utf-8", "backslashreplace") if isinstance(text, str) else text
        if name.endswith("manifest.csv"):
            files.save(folder / name, content)
            continue
        with files.atomic(folder / name) as temporary:
            temporary.write_bytes(content)
    for name, draw in findings.figures.items():
        with files.atomic(folder / name) as temporary:
            draw(temporary)


def _store(folder: Path, stored: dict) -> None:
    stored = {key: dict(sorted(entries.items())) for key, entries in stored.items()}
    files.save_json(folder / "results.json", stored)


# ------------------------------------------------------------------------------------- provenance


def provenance(seed: int, call_seconds: float, **about) -> dict:
    """What is needed to reproduce a part's result, and where it was made.

    Keys: command, processes, seed, git_commit, threads, call_seconds (without trainings that the
    call took over from earlier ones), environment, and those of `about`.
    """
    return {
        "command": _command(),
        "processes": job.size(),
        "seed": seed,
        "git_commit": git_commit(),
        "threads": torch.get_num_threads(),
        **about,
        "call_seconds": call_seconds,
        "environment": environment(),
    }


def _command() -> str:
    script = [Path(sys.argv[0]).name, *sys.argv[1:]]
    spec = sys.modules["__main__"].__spec__
    if spec is not None and spec.origin == sys.argv[0]:  # python -m
        script = ["-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]]
    if job.size() > 1:
        return shlex.join(["torchrun", "--nproc-per-node", str(job.size()), *script])
    return shlex.join(["python", *script])


def git_commit() -> str | None:
    """Commit of this checkout, with `+changes` where tracked files differ; None outside git.

    Changes in outputs/ do not count: a run that replaces published results makes them itself.
    """
    git = ["git", "-C", str(ROOT)]
    status = [*git, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)outputs"]
    how = {"capture_output": True, "text": True, "check": True}
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], **how).stdout.strip()  # noqa: S603
        changes = subprocess.run(status, **how).stdout  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + "+changes" * bool(changes)


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
    information = Path("/proc/cpuinfo")  # Linux only; lines are "name : value"
    if information.exists():
        about = dict(re.findall(r"^(.*?)\s*: (.*)$", information.read_text(), re.MULTILINE))
        if name := about.get("model name"):
            model = f"{name} (family {about.get('cpu family')}, model {about.get('model')})"
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}"
