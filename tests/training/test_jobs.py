import os
import signal
import threading
import time
from functools import partial

import pytest
import torch

from common import errors
from common.errors import UserError
from common.training.parallel import side_by_side
from common.training.watch import NotFinite


def answer(name, folder, seconds=0.0):
    (folder / f"{name} began").touch()
    time.sleep(seconds)
    (folder / f"{name} ended").touch()
    return {"name": name, "threads": torch.get_num_threads()}


def wait_for(path):
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.02)


def fail(error):
    raise error


def test_each_training_is_done_once_after_the_one_that_it_needs(tmp_path):
    trainings = {name: partial(answer, name, tmp_path) for name in ("b", "a", "c")}
    results = dict(side_by_side(trainings, {"b": "a"}, 2))
    assert sorted(results) == ["a", "b", "c"]
    assert list(results).index("b") > list(results).index("a")
    assert all(result["name"] == name for name, result in results.items())
    assert {result["threads"] for result in results.values()} == {1}


def test_a_value_that_is_not_finite_is_told_and_ends_nothing_else(tmp_path):
    bad = NotFinite("loss nan", "conv1", "output")
    trainings = {"bad": partial(fail, bad), "good": partial(answer, "good", tmp_path)}
    results = dict(side_by_side(trainings, {}, 2))
    assert results["good"]["name"] == "good"
    told = results["bad"]
    assert (str(told), told.module, told.direction) == ("loss nan", "conv1", "output")


@pytest.mark.parametrize(
    ("failing", "words"),
    [
        (partial(fail, UserError("full")), "full"),
        (partial(os._exit, 9), "bad: its process has ended"),
    ],
)
def test_a_failure_stops_all_and_is_one_line(tmp_path, failing, words):
    trainings = {"bad": failing, "slow": partial(answer, "slow", tmp_path, 60)}
    start = time.monotonic()
    with pytest.raises(UserError, match=words):
        dict(side_by_side(trainings, {}, 2))
    assert time.monotonic() - start < 30
    assert not (tmp_path / "slow ended").exists()


def train(name, folder):
    from tests.training import test_loop as tiny

    step = tiny.loop.train_step

    def slow_step(*args):
        step(*args)
        (folder / f"{name} began").touch()
        time.sleep(0.05)

    tiny.loop.train_step = slow_step
    tiny.train(folder / name, tiny.replace(tiny.RECIPE, epochs=500))
    return {}


def test_ctrl_c_saves_all_and_is_one_line(tmp_path, capsys):
    def press_ctrl_c():
        for name in "ab":
            wait_for(tmp_path / f"{name} began")
        os.kill(os.getpid(), signal.SIGINT)

    trainings = {name: partial(train, name, tmp_path) for name in "ab"}
    threading.Thread(target=press_ctrl_c, daemon=True).start()
    assert errors.guard(lambda: dict(side_by_side(trainings, {}, 2))) == 130
    assert capsys.readouterr().err.count("\n") == 1
    for name in "ab":
        assert (tmp_path / name / "last.pt").exists()
