"""What goes wrong, said in a line: the user's mistakes, and the guard around each `main`."""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from common import job

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """Something the user can mend. The message is one line: what, where, and what to type next."""


def guard(main: Callable[[], None]) -> int:
    """Run `main`, so that a mistake of the user's ends in a line on stderr. Returns the exit code.

    0: all went well. 2: a mistake, a full disk, a place that can't be written. 130: Ctrl-C. 141:
    whoever read the output has closed it.
    """
    script = Path(sys.argv[0]).name
    try:
        main()
    except UserError as error:
        # Before the processes of a job have joined, all of them meet the same mistake.
        if job.is_first() or torch.distributed.is_initialized():
            print(f"{script}: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno not in (*DISK_FULL, errno.EACCES, errno.EROFS):
            raise
        remedy = "free space" if error.errno in DISK_FULL else "see to its permissions"
        print(f"{script}: error: {error}; {remedy} or choose another place", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        kept = str(stop) or "results of finished parts are kept"
        print(f"{script}: stopped; {kept}", file=sys.stderr)
        return 130
    return 0
