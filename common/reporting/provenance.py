"""Where a result came from: command, commit, versions and hardware."""

import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision

from common import job
from common.reporting.results import ROOT


def provenance(seed: int, call_seconds: float, **about) -> dict:
    """What is needed to reproduce a part's result, and where it was made.

    Keys: command, processes, seed, git_commit, threads, call_seconds (without trainings of
    earlier calls or, with --jobs, of earlier parts), environment, and those of `about`.
    """
    return {
        "command": command(),
        "processes": job.size(),
        "seed": seed,
        "git_commit": git_commit(),
        "threads": torch.get_num_threads(),
        **about,
        "call_seconds": call_seconds,
        "environment": environment(),
    }


def command() -> str:
    """The command line that this process runs, as a user types it."""
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
