"""Work in threads: results in order, a window of them, and an end as soon as there is a reason."""

import threading

import pytest

from common.data.packed import WINDOW, in_parallel


def double(number):
    if number == 13:
        raise ValueError("thirteen")
    return 2 * number


def test_results_are_in_the_order_of_the_items():
    items = [*range(12, -1, -1), *range(14, 300)]
    assert list(in_parallel(double, items, "doubling")) == [2 * number for number in items]
    assert list(in_parallel(double, [], "doubling")) == []


def test_an_error_of_the_work_is_raised_and_the_rest_given_up():
    begun, threads = [], threading.active_count()

    def work(number):
        begun.append(number)
        return double(number)

    with pytest.raises(ValueError, match="thirteen"):
        list(in_parallel(work, range(1000), "doubling"))
    assert len(begun) <= 13 + WINDOW
    assert threading.active_count() == threads


def test_ctrl_c_ends_it_without_the_items_left():
    begun, threads = [], threading.active_count()
    results = in_parallel(begun.append, range(100_000), "working")
    next(results)
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt)
    assert len(begun) <= WINDOW
    assert threading.active_count() == threads
