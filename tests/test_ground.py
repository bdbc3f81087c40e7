import os
import re
import signal
import subprocess
import sys
import time

import pytest

from common import errors, job
from common.errors import UserError
from common.reporting import results


def test_the_first_process_alone_speaks(place, capsys):
    for rank in range(3):
        place(rank, 3)
        assert (job.rank(), job.size()) == (rank, 3)
        job.say(f"rank {rank}")
        assert list(job.progress(range(3), "counting")) == [0, 1, 2]
    said = capsys.readouterr()
    assert said.out == "rank 0\n"
    assert said.err == ""  # no terminal, no bar


def guarded(error, capsys):
    """Guard a main that raises: (exit code, stderr)."""

    def main():
        if error is not None:
            raise error

    code = errors.guard(main)
    return code, capsys.readouterr().err


# The kind of error that torch.compile raises, whose module takes seconds to load.
NO_COMPILER = type("BackendCompilerFailed", (RuntimeError,), {"__module__": "torch._dynamo.exc"})


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("--seed: no; try 1"), 2, "error: --seed: no; try 1"),
        (MemoryError(), 2, "error: out of memory; choose smaller images"),
        (RuntimeError("CUDA out of memory. Tried\nmore"), 2, "CUDA out of memory. Tried; choose"),
        (NO_COMPILER("backend='inductor' raised:\nmore"), 2, "leave out --compile"),
        (OSError(28, "No space left on device"), 2, "No space left on device; free disk space"),
        (PermissionError(13, "Permission denied", "a.txt"), 2, "'a.txt'; check this path"),
        (KeyboardInterrupt(), 130, "stopped; results of finished parts are kept"),
        (KeyboardInterrupt("the run is saved"), 130, "stopped; the run is saved"),
    ],
)
def test_what_goes_wrong_is_said_in_one_line(error, code, words, capsys):
    ended, said = guarded(error, capsys)
    assert ended == code
    assert re.fullmatch(r"[^\n]*: [^\n]*\n", said)
    assert words in said


def test_an_error_of_the_program_keeps_its_traceback(capsys):
    with pytest.raises(ZeroDivisionError):
        guarded(ZeroDivisionError(), capsys)
    with pytest.raises(OSError, match="of nothing"):
        guarded(OSError("of nothing"), capsys)
    with pytest.raises(RuntimeError, match="of one process"):
        guarded(RuntimeError("of one process"), capsys)


def test_a_closed_pipe_is_no_error(monkeypatch, capsys):
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    monkeypatch.setattr(os, "open", lambda *_: 1)
    monkeypatch.setattr("sys.stdout.fileno", lambda: 1, raising=False)
    assert guarded(BrokenPipeError(), capsys) == (141, "")


@pytest.mark.parametrize(
    ("error", "code"), [(UserError("no"), 2), (errors.Stopped(signal.SIGTERM, "saved"), 143)]
)
def test_what_all_processes_of_a_job_meet_the_first_tells(place, capsys, error, code):
    place(1, 2)
    assert guarded(error, capsys) == (code, "")
    place(0, 2)
    told, said = guarded(error, capsys)
    assert (told, said.count("\n")) == (code, 1)


def test_what_is_shown_has_no_control_characters():
    assert job.printable("猫 $5_vs_$6 \u00e9\u00a0|") == "猫 $5_vs_$6 \u00e9\u00a0|"
    assert job.printable("a\nb\x1b[31m\u202ec\udcff\x85") == r"a\nb\x1b[31m\u202ec\udcff\x85"
    assert str(UserError("a\nb.png: no")) == r"a\nb.png: no"


STOPPABLE = """
import sys, time
sys.argv[0] = {script!r}
sys.path.insert(0, {root!r})
import common.start
print("starting", flush=True)
time.sleep({loading})
from common.errors import guard
def main():
    print("running", flush=True)
    try:
        time.sleep(30)
    finally:
        time.sleep({cleaning})
sys.exit(guard(main))
"""


@pytest.mark.parametrize(
    ("number", "wait_for", "loading", "cleaning", "signals", "words"),
    [
        (signal.SIGINT, "starting", 30, 0, 1, "stopped; nothing had begun"),
        (signal.SIGTERM, "running", 0, 0, 1, "stopped; results of finished parts are kept"),
        (signal.SIGUSR1, "running", 0, 0, 1, "stopped; results of finished parts are kept"),
        (signal.SIGINT, "running", 0, 30, 2, ""),
    ],
)
def test_a_signal_ends_a_script_in_a_line(number, wait_for, loading, cleaning, signals, words):
    root = results.ROOT
    script = str(root / "problem1_perceptual.py")
    code = STOPPABLE.format(root=str(root), script=script, loading=loading, cleaning=cleaning)
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in child.stdout:
        if line == f"{wait_for}\n":
            break
    for _ in range(signals):
        time.sleep(0.2)
        child.send_signal(number)
    _, said = child.communicate(timeout=10)
    assert child.returncode == 128 + number
    assert said == (f"problem1_perceptual.py: {words}\n" if words else "")


def test_a_process_without_stderr_does_not_fail_of_it():
    """Show a progress bar and an error line after `2>&-` has closed stderr."""
    code = """
import sys
import common.start
from common.errors import UserError, guard
from common.job import progress
def main():
    list(progress(range(3), "counting"))
    raise UserError("no")
sys.exit(guard(main))
"""
    done = subprocess.run(
        ["sh", "-c", '"$0" -c "$1" 2>&-', sys.executable, code], cwd=results.ROOT, check=False
    )
    assert done.returncode == 2
