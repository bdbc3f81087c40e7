"""Errors in one line: the user's mistakes, stop signals, and the guard around `main`."""

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

GO_ON = "the run is saved; the same command (without --fresh) resumes it"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory")  # torch's RuntimeErrors


class UserError(Exception):
    """An error that the user can fix, in one line: what, where, and what to type next."""

    def __init__(self, message: str):
        super().__init__(job.printable(message))


class Stopped(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or a similar signal, with its `number`; the message says what is kept."""

    def __init__(self, number: int, kept: str = ""):
        super().__init__(kept)
        self.number = number


def guard(main: Callable[[], None]) -> int:
    """Run `main`, report expected errors in one line on stderr, and return the exit code.

    0: success. 2: a user's mistake, a full disk or memory, no compiler, or no access to a file.
    128 + n: signal n, such as 130 for Ctrl-C; a second signal ends the process at once. 141: the
    reader of the output has closed it. A job's first process reports what all processes share.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # the terminal may lack a name's characters
            stream.reconfigure(errors="backslashreplace")
    try:
        with stop_signals(_stop):
            main()
    except KeyboardInterrupt as stop:
        if job.is_first():
            _print_line(f"stopped; {str(stop) or 'results of finished parts are kept'}")
        return 128 + getattr(stop, "number", signal.SIGINT)
    except UserError as error:
        if job.is_first():
            _print_line(f"error: {error}")
        return 2
    except BrokenPipeError:  # the reader of our output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (OSError, RuntimeError, MemoryError) as error:
        remedy = _remedy(error)
        if remedy is None:
            raise
        words = str(error).splitlines()[0] if str(error) else "out of memory"
        _print_line(f"error: {words}; {remedy}")
        return 2
    return 0


def _remedy(error: Exception) -> str | None:
    """Advice for an error of the system; None for an error of this program."""
    if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error)):
        return "choose smaller images (--image-size, --curve-size), smaller batches or less data"
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return "install a C++ compiler, free space for its output, or leave out --compile"
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return "free disk space, or choose another folder"
    if isinstance(error, OSError) and error.filename is not None:
        return "check this path and its permissions, or choose another"
    return None


def _print_line(message: str) -> None:
    print(f"{Path(sys.argv[0]).name}: {job.printable(message)}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def stop_signals(handler: Callable) -> Iterator[None]:
    """Handle stop signals with `handler(number, frame)` while the block runs."""
    before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():  # not `end`: it would say that nothing had begun
            signal.signal(number, signal.SIG_DFL if old is end else old)


def _stop(number: int, _frame) -> None:
    stop_at_once()
    raise Stopped(number)


def stop_at_once() -> None:
    """From now on a stop signal ends the process at once."""
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, _frame: os._exit(128 + number))
