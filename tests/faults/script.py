"""Run a script with tiny networks: `python -m tests.faults.script problem2_flowers 2.2 ...`.

Each training step takes STEP_SECONDS longer, and the first one leaves a file `training`.
"""

import importlib
import os
import sys
import time
from pathlib import Path

import common.start  # noqa: F401 what a script sets before it imports PyTorch

# isort: split
from matplotlib.figure import Figure

from common import errors
from common.reporting.results import ROOT
from common.training import loop
from tests.faults import tiny


def slow_steps(seconds: float) -> None:
    """Make every step take so many seconds longer."""
    take_step = loop.train_step

    def slow_step(*args, **options):
        Path("training").touch()
        time.sleep(seconds)
        return take_step(*args, **options)

    loop.train_step = slow_step


if __name__ == "__main__":
    name, *words = sys.argv[1:]
    script = importlib.import_module(name)
    sys.argv = [str(ROOT / f"{name}.py"), *words]
    tiny.use_small_networks()
    save_figure = Figure.savefig
    Figure.savefig = lambda *args, **options: save_figure(*args, **{**options, "dpi": 30})
    slow_steps(float(os.environ.get("STEP_SECONDS", 0)))
    sys.exit(errors.guard(script.main))
