"""Each script imports this first: from then on Ctrl-C and SIGTERM end it with one line.

The imports that follow take seconds; `errors.guard` takes over the signals when it begins.
"""

import importlib.util
import multiprocessing
import os
import signal
import sys
from pathlib import Path

# A stream closed by `2>&-` is None: the first file opened would get the text for the terminal.
for _name in ("stdout", "stderr"):
    if getattr(sys, _name) is None:
        setattr(sys, _name, open(os.devnull, "w"))  # noqa: SIM115

if importlib.util.find_spec("torch") is None:
    missing = f"{sys.executable} has no PyTorch; after make, type: . .venv/bin/activate"
    print(f"{Path(sys.argv[0]).name}: error: {missing}", file=sys.stderr)
    sys.exit(2)

# SIGUSR1 is Slurm's warning that time is nearly up.
STOP_SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores a closed terminal
    STOP_SIGNALS.append(signal.SIGHUP)
# Threads wait for each other after every operation. Beside another busy process a long spin leaves
# 0.3 of the speed, this short one 0.6; sleeping at once is slow where no other process is busy.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1500")
# Otherwise a process that the rest of its job has left prints C++ stacks beside our line.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")


def end(number: int, _frame) -> None:
    """Handle a stop signal before `guard` has begun."""
    if multiprocessing.parent_process() is None:  # a parent prints for the processes it starts
        sys.stderr.write(f"{Path(sys.argv[0]).name}: stopped; nothing had begun\n")
        sys.stderr.flush()
    os._exit(128 + number)


# Not in tests, nor in the server of `parallel.side_by_side`.
if Path(sys.argv[0]).resolve() in Path(__file__).resolve().parents[1].glob("*.py"):
    for _number in STOP_SIGNALS:
        signal.signal(_number, end)
