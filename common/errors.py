"""What goes wrong, said in a line: the user's mistakes, stop signals, the guard around `main`."""

import contextlib
import errno
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from common import job
from common.start import STOP_SIGNALS, end

GO_ON = "the run is saved, the same command (without --fresh) goes on with it"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory")  # torch's RuntimeErrors
LOST_PROCESS = re.compile(r"[Cc]onnection (closed|reset)|Broken pipe|remote process exited")


class UserError(Exception):
    """Something the user can mend. The message is one line: what, where, and what to type next.

    The first process of a job tells it; `told_by_all` is for what may be wrong with one alone.
    """

    def __init__(self, message: str, told_by_all: bool = False):
        super().__init__(job.printable(message))
        self.told_by_all = told_by_all


class Stopped(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or its like, by its `number`; the message says what is kept."""

    def __init__(self, number: int, kept: str = ""):
        super().__init__(kept)
        self.number = number


def guard(main: Callable[[], None]) -> int:
    """Run `main`, so that a mistake of the user's ends in a line on stderr. Returns the exit code.

    0: all went well. 1: another process of the job was lost. 2: a mistake, a full disk, a place
    that can't be read or written. 130: Ctrl-C. 138: SIGUSR1, Slurm's warning. 141: whoever read the
    output has closed it. 143: SIGTERM. A second signal ends the process at once.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names may hold what the terminal has not
            stream.reconfigure(errors="backslashreplace")
    try:
        with _stopping():
            main()
    except KeyboardInterrupt as stop:
        kept = str(stop) or "results of finished parts are kept"
        if job.is_first():
            _print_line(f"stopped; {kept}")
        return 128 + getattr(stop, "number", signal.SIGINT)
    except (UserError, OSError, RuntimeError, MemoryError) as error:
        return _explain(error)
    return 0


def _explain(error: Exception) -> int:
    """Say a mistake in a line and return the exit code; any other error is raised again."""
    if isinstance(error, UserError):
        if job.is_first() or error.told_by_all:
            _print_line(f"error: {error}")
        return 2
    if isinstance(error, BrokenPipeError):  # whoever read our output, such as `head`, saw enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    disk_full = isinstance(error, OSError) and error.errno in DISK_FULL
    if disk_full or (isinstance(error, OSError) and error.filename is not None):
        remedy = "free space" if disk_full else "see to it and its permissions"
        _print_line(f"error: {error}; {remedy}, or choose another place")
        return 2
    if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error)):
        words = str(error).splitlines()[0] if str(error) else "out of memory"
        _print_line(f"error: {words}; take a smaller --batch-size, --image-size or data set")
        return 2
    if job.size() > 1 and LOST_PROCESS.search(str(error)):
        _print_line(f"stopped; another process of the job has ended ({str(error).splitlines()[0]})")
        return 1
    raise error


def _print_line(message: str) -> None:
    print(f"{Path(sys.argv[0]).name}: {job.printable(message)}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    """Raise `Stopped` at the first signal; the second ends the process."""

    def stop(number: int, _frame) -> None:
        stop_at_once()
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():  # all is done: `end` would say that nothing began
            signal.signal(number, signal.SIG_DFL if handler is end else handler)


def stop_at_once() -> None:
    """From now on a stop signal ends the process at once."""
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, _frame: os._exit(128 + number))
