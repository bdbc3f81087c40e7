"""Imported first by each script: from then on Ctrl-C and SIGTERM end it in one line.

What is imported next takes seconds to load; `errors.guard` takes over when it begins.
"""

import multiprocessing
import os
import signal
import sys
from pathlib import Path

# Closed by `2>&-`: else the first file that is opened would get what is meant for the terminal.
for _name in ("stdout", "stderr"):
    if getattr(sys, _name) is None:
        setattr(sys, _name, open(os.devnull, "w"))  # noqa: SIM115

STOP_SIGNALS = [signal.SIGINT, signal.SIGTERM]
if hasattr(signal, "SIGUSR1"):  # Slurm's warning that time is nearly up; Windows has it not
    STOP_SIGNALS.append(signal.SIGUSR1)
# A terminal that is closed; nohup has it ignored, and Windows has it not.
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
    STOP_SIGNALS.append(signal.SIGHUP)
# Threads wait for each other after every operation. Spinning for long they are slow beside another
# busy process (0.3 of the speed; so 0.6), sleeping at once they are slow alone.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1500")
# Else a process that its job has left prints C++ stacks beside our line.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")


def end(number: int, _frame) -> None:
    """Handle a stop signal before `guard` has begun."""
    if multiprocessing.parent_process() is None:  # the parent speaks for those that it starts
        sys.stderr.write(f"{Path(sys.argv[0]).name}: stopped; nothing had begun\n")
        sys.stderr.flush()
    os._exit(128 + number)


if Path(sys.argv[0]).resolve().parent == Path(__file__).resolve().parents[1]:  # not in tests
    for _number in STOP_SIGNALS:
        signal.signal(_number, end)
