"""Imported first by each script: from then on Ctrl-C and SIGTERM end it in one line.

What is imported next takes seconds to load; `errors.guard` takes over when it begins.
"""

import multiprocessing
import os
import signal
import sys
from pathlib import Path

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _end(number: int, _frame) -> None:
    sys.stderr.write(f"{Path(sys.argv[0]).name}: stopped; nothing had begun\n")
    sys.stderr.flush()
    os._exit(128 + number)


# Not in tests and other programs, and not in the processes that a script starts.
_is_program = Path(sys.argv[0]).resolve().parent == Path(__file__).resolve().parents[1]
if _is_program and multiprocessing.parent_process() is None:
    for _number in STOP_SIGNALS:
        signal.signal(_number, _end)
