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
    """Something the user can mend. The message is one line: what, where, and what to type next."""

    def __init__(self, message: str):
        super().__init__(job.printable(message))


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, by its `number`; the message says what is kept."""

    def __init__(self, number: int, kept: str = ""):
        super().__init__(kept)
        self.number = number


def guard(main: Callable[[], None]) -> int:
    """Run `main`, so that a mistake of the user's ends in a line on stderr. Returns the exit code.

    0: all went well. 1: another process of the job was lost. 2: a mistake, a full disk, a place
    that can't be read or written. 130: Ctrl-C. 141: whoever read the output has closed it. 143:
    SIGTERM. A second signal ends the process at once.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names may hold what the terminal has not
            stream.reconfigure(errors="backslashreplace")
    try:
        with _stopping():
            _check_environment()
            main()
    except KeyboardInterrupt as stop:
        kept = str(stop) or "results of finished parts are kept"
        if job.is_first() if job.joined else job.tells_error():
            _print_line(f"stopped; {kept}")
        return 128 + getattr(stop, "number", signal.SIGINT)
    except (UserError, OSError, RuntimeError, MemoryError) as error:
        return _explain(error)
    return 0


def _explain(error: Exception) -> int:
    """Say a mistake in a line and return the exit code; any other error is raised again."""
    if isinstance(error, UserError):
        return _tell(f"error: {error}", 2)
    if isinstance(error, BrokenPipeError):  # whoever read our output, such as `head`, saw enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    disk_full = isinstance(error, OSError) and error.errno in DISK_FULL
    if disk_full or (isinstance(error, OSError) and error.filename is not None):
        remedy = "free space" if disk_full else "see to it and its permissions"
        return _tell(f"error: {error}; {remedy}, or choose another place", 2)
    if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error)):
        words = str(error).splitlines()[0] if str(error) else "out of memory"
        return _tell(f"error: {words}; take a smaller --batch-size, --image-size or data set", 2)
    if job.size() > 1 and LOST_PROCESS.search(str(error)):
        # gloo's messages begin with a place in its source, and end with advice.
        reason = re.sub(r"^\[[^]]*\] ", "", str(error).splitlines()[0]).split(". ")[0]
        return _tell(f"stopped; another process of the job has ended ({reason})", 1, True)
    raise error


def _tell(message: str, code: int, otherwise: bool = False) -> int:
    if job.tells_error(otherwise):
        _print_line(message)
    return code


def _print_line(message: str) -> None:
    print(f"{Path(sys.argv[0]).name}: {job.printable(message)}", file=sys.stderr, flush=True)


def _check_environment() -> None:
    if fault := job.fault():
        raise UserError(fault)
    if names := job.partly_set():
        _print_line(
            f"runs as one process: {names} set, but not all of {', '.join(job.VARIABLES)};"
            " for a job start it with torchrun"
        )


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
