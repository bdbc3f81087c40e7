import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from common.data import packed
from common.data.packed import in_parallel
from common.errors import UserError, guard


def double(number):
    if number == 13:
        raise ValueError("thirteen")
    return 2 * number


def process_id(_):
    return os.getpid()


def test_results_are_in_the_order_of_the_items():
    items = [*range(12, -1, -1), *range(14, 100)]
    assert list(in_parallel(double, items, "doubling")) == [2 * number for number in items]
    assert list(in_parallel(double, [], "doubling")) == []


def test_work_is_done_in_other_processes_that_end_with_it():
    workers = set(in_parallel(process_id, range(100), "asking"))
    assert os.getpid() not in workers
    assert multiprocessing.active_children() == []


def test_work_that_needs_a_large_argument_takes_it_along_once():
    table = np.arange(1000)
    assert list(in_parallel(table.__getitem__, range(40), "looking up")) == list(range(40))


def test_an_error_of_the_work_ends_it():
    with pytest.raises(ValueError, match="thirteen"):
        list(in_parallel(double, range(1000), "doubling"))
    assert multiprocessing.active_children() == []


def test_a_caller_that_has_enough_leaves_no_process_behind():
    results = in_parallel(double, range(14, 1000), "doubling")
    assert next(results) == 28
    results.close()
    assert multiprocessing.active_children() == []


def zeros_or_the_end(number):
    if number == 40:
        os.kill(os.getpid(), signal.SIGKILL)
    return np.zeros((256, 256, 3), np.uint8)


def test_a_worker_that_is_killed_is_named_in_one_line():
    start = time.monotonic()
    with pytest.raises(UserError, match=r"^a worker process was ended, out of memory\?"):
        list(in_parallel(zeros_or_the_end, range(2000), "working"))
    assert time.monotonic() - start < 10
    assert multiprocessing.active_children() == []


def slow(_):
    time.sleep(0.1)
    return os.getpid()


def start(tmp_path, ready):
    """A process in a session of its own, as a terminal's Ctrl-C goes to a group; returns its id.

    It writes to the pipe `ready` as its pool starts, and when the first result is there.
    """

    def work():
        os.write(ready, b"starts")
        for _ in in_parallel(slow, range(100_000), "working"):
            os.write(ready, b"works")

    process_id = os.fork()
    if process_id == 0:
        code = 99
        try:
            os.setsid()
            with open(tmp_path / "stderr", "w") as sys.stderr:
                code = guard(work)
        finally:
            os._exit(code)
    return process_id


def group_of(leader):
    """The living processes of a group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = stat.read_text().rsplit(")", 1)[1].split()[:3]
        except OSError:  # it has ended
            continue
        if int(group) == leader and state != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_until_gone(leader, seconds=3):
    until = time.monotonic() + seconds
    while group_of(leader) and time.monotonic() < until:
        time.sleep(0.02)
    assert group_of(leader) == []


def test_a_killed_parent_leaves_no_worker(tmp_path):
    reader, ready = os.pipe()
    leader = start(tmp_path, ready)
    while os.read(reader, 100).endswith(b"starts"):
        pass
    assert len(group_of(leader)) == 1 + os.cpu_count()
    os.kill(leader, signal.SIGKILL)
    os.waitpid(leader, 0)
    wait_until_gone(leader)


@pytest.mark.parametrize("send", [os.kill, os.killpg])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_while_the_pool_starts_is_neither_lost_nor_hangs(tmp_path, number, send):
    for tries in range(10):
        reader, ready = os.pipe()
        leader = start(tmp_path, ready)
        os.read(reader, 6)
        time.sleep(0.002 * tries)
        send(leader, number)
        wait_until_gone(leader, seconds=10)
        _, status = os.waitpid(leader, 0)
        assert os.waitstatus_to_exitcode(status) == 128 + number
        told = (tmp_path / "stderr").read_text()
        assert told.count("\n") == 1, told
        assert "stopped; " in told


def test_a_stop_signal_of_another_thread_is_held_too():
    """It comes by way of a thread that has it not blocked, and is told to the main thread."""
    heard, release = [], threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("heard"))
    other = threading.Thread(target=release.wait)
    other.start()
    try:
        with packed._signals_held():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
            assert heard == []
        assert heard == ["heard"]
        assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    finally:
        release.set()
        signal.signal(signal.SIGTERM, before)
