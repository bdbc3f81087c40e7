"""Work in threads: results in order, a window of them, and an end as soon as there is a reason."""

import os
import signal
import sys
import threading
import time

import pytest

from common.data.packed import WINDOW, in_parallel
from common.errors import guard


def double(number):
    if number == 13:
        raise ValueError("thirteen")
    return 2 * number


def test_results_are_in_the_order_of_the_items():
    items = [*range(12, -1, -1), *range(14, 300)]
    assert list(in_parallel(double, items, "doubling")) == [2 * number for number in items]
    assert list(in_parallel(double, [], "doubling")) == []


def test_no_more_than_a_window_of_results_is_kept():
    begun = []
    results = in_parallel(begun.append, range(10 * WINDOW), "working")
    next(results)
    time.sleep(0.1)
    assert len(begun) <= WINDOW
    results.close()


def test_an_error_of_the_work_is_raised_and_the_rest_given_up():
    begun, threads = [], threading.active_count()

    def work(number):
        begun.append(number)
        return double(number)

    with pytest.raises(ValueError, match="thirteen"):
        list(in_parallel(work, range(1000), "doubling"))
    assert len(begun) <= 13 + WINDOW
    assert threading.active_count() == threads


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_ends_it_in_one_line_without_the_items_left(tmp_path, number):
    def work():
        for _ in in_parallel(lambda _: time.sleep(0.2), range(100_000), "working"):
            os.write(ready, b"works")

    reader, ready = os.pipe()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            with open(tmp_path / "stderr", "w") as sys.stderr:
                code = guard(work)
        finally:
            os._exit(code)
    os.read(reader, 5)
    start = time.monotonic()
    os.kill(child, number)
    _, status = os.waitpid(child, 0)
    assert time.monotonic() - start < 2
    assert os.waitstatus_to_exitcode(status) == 128 + number
    told = (tmp_path / "stderr").read_text()
    assert told.count("\n") == 1, told
    assert "stopped; " in told
