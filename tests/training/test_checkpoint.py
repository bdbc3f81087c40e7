"""Stopping and going on: runs that were killed, are complete, damaged, or another's."""

import errno
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common import files
from common.data.augment import Augmentation
from common.errors import UserError
from common.reporting import results
from common.training import checkpoint, loop
from common.training.checkpoint import save_checkpoint
from tests.training.test_loop import RECIPE, assert_same, state, train, train_an_epoch

SLOW = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.training import test_loop as t
from common.training import checkpoint, loop
step = loop.train_step
def slow_step(*args):
    step(*args)
    time.sleep(0.05)
    print("step", flush=True)
loop.train_step = slow_step
t.train(Path({folder!r}), t.replace(t.RECIPE, epochs=8), checkpoint_seconds=0)
"""


@pytest.mark.parametrize("killed_by", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_run_killed_in_mid_epoch_goes_on_to_the_same_weights(tmp_path, killed_by, monkeypatch):
    recipe = replace(RECIPE, epochs=8)
    code = SLOW.format(root=str(results.ROOT), folder=str(tmp_path / "killed"))
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    steps = 0
    for line in child.stdout:
        steps += line == "step\n"
        if steps == 8:  # the third epoch has three, the first of these is saved
            break
    time.sleep(0.01)
    child.send_signal(killed_by)
    child.wait(timeout=60)
    assert child.returncode != 0
    stopped = state(tmp_path / "killed")
    assert 0 < stopped["epoch"] < 8
    assert stopped["step"] > 0
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", lambda *_, **__: None)  # keep last.pt
        patched.setattr(checkpoint.Saver, "epoch", save_all(checkpoint.Saver.epoch))
        histories = [train(tmp_path / name, recipe)[1] for name in ("killed", "whole")]
    for name in ("last.pt", "best.pt"):
        assert_same(*(state(tmp_path / run, name)["network"] for run in ("killed", "whole")))
    timeless = [
        [{k: v for k, v in row.items() if "second" not in k and "memory" not in k} for row in rows]
        for rows in histories
    ]
    assert timeless[0] == timeless[1]
    optimizers = [state(tmp_path / run)["optimizer"]["state"] for run in ("killed", "whole")]
    for a, b in zip(*(one.values() for one in optimizers), strict=True):
        assert_same(a, b)


def save_all(epoch):
    """Let a Saver write last.pt after the last epoch too."""

    def and_now(saver):
        epoch(saver)
        saver.now()

    return and_now


def test_a_complete_run_is_not_trained_again(tmp_path, capsys, monkeypatch):
    first, history = train(tmp_path)
    monkeypatch.setattr(loop, "train_step", None)
    second, again = train(tmp_path)
    assert "complete; --fresh trains anew" in capsys.readouterr().out
    assert again == history
    assert_same(first.state_dict(), second.state_dict())


def test_fresh_trains_anew(tmp_path):
    train(tmp_path, replace(RECIPE, seed=5))
    train(tmp_path, fresh=True)
    assert state(tmp_path, "best.pt")["about"]["seed"] == 0


def test_a_fresh_run_that_is_killed_at_once_leaves_no_run_that_looks_complete(
    tmp_path, monkeypatch
):
    train(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_one_epoch", raise_interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, replace(RECIPE, learning_rate=0.5), fresh=True)
    with pytest.raises(UserError, match=r"is of another run: learning_rate 0.5 \(now 0.02\)"):
        train(tmp_path)


def raise_interrupt(*_):
    raise KeyboardInterrupt


def test_the_best_weights_of_another_run_are_refused(tmp_path):
    train(tmp_path / "a")
    train(tmp_path / "b", replace(RECIPE, learning_rate=0.5))
    shutil.copy(tmp_path / "b" / "best.pt", tmp_path / "a" / "best.pt")
    with pytest.raises(UserError, match=r"best.pt: damaged or changed: .* --fresh trains anew"):
        train(tmp_path / "a")
    files.record(tmp_path / "a" / "best.pt")
    with pytest.raises(UserError, match=r"best.pt is of another run: learning_rate 0.5"):
        train(tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("0.weight", torch.zeros(1), "size mismatch for 0.weight"),
        ("6.bias", torch.full((3,), torch.inf), "6.bias is not finite"),
    ],
)
def test_best_weights_that_cannot_be_are_refused(tmp_path, name, value, words):
    train(tmp_path)
    best = state(tmp_path, "best.pt")
    best["network"][name] = value
    save_checkpoint(tmp_path / "best.pt", best)
    with pytest.raises(UserError, match=rf"best.pt: .*{words}.*; --fresh trains anew"):
        train(tmp_path)


def test_equal_trainings_make_equal_files_of_weights(tmp_path):
    for name in "ab":
        train(tmp_path / name)
    assert (tmp_path / "a/best.pt").read_bytes() == (tmp_path / "b/best.pt").read_bytes()


def test_other_flags_are_refused_with_the_difference_named(tmp_path):
    before = train_an_epoch(tmp_path).read_bytes()
    with pytest.raises(UserError, match=r"is of another run: batch_size 4 \(now 5\), jitter 0.3"):
        train(tmp_path, replace(RECIPE, batch_size=5, augmentation=Augmentation(jitter=0)))
    assert (tmp_path / "last.pt").read_bytes() == before


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = train_an_epoch(tmp_path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (whole[:100], b"", bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"last.pt: damaged or changed: .* --fresh"):
            train(tmp_path)
    path.write_bytes(whole)
    (tmp_path / files.SUMS).unlink()
    with pytest.raises(
        UserError, match=r"last.pt: not listed in SHA256SUMS .*; --fresh trains anew"
    ):
        train(tmp_path)


def set_nan(state):
    state["network"]["0.weight"][0] = torch.nan
    return state


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda _: {}, "KeyError: 'about'"),
        (lambda _: [1, 2], "can't be|cannot|not a checkpoint"),
        (lambda state: {**state, "about": None}, "TypeError: about"),
        (lambda state: {k: v for k, v in state.items() if k != "optimizer"}, "'optimizer'"),
        (lambda state: {**state, "optimizer": {}}, "not a checkpoint of such a run"),
        (lambda state: {**state, "epoch": -5}, "epoch -5"),
        (lambda state: {**state, "epoch": 2, "history": []}, "0 epochs in its history, not 2"),
        (lambda state: {**state, "network": {}}, "Missing key"),
        (set_nan, "0.weight is not finite"),
    ],
)
def test_a_checkpoint_with_other_contents_is_refused(tmp_path, change, words):
    save_checkpoint(train_an_epoch(tmp_path), change(state(tmp_path)))
    with pytest.raises(UserError, match=rf"last.pt: .*({words}).*; --fresh trains anew"):
        train(tmp_path)


def test_a_complete_run_keeps_its_weights_and_its_log(tmp_path):
    _, history = train(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"best.pt", "metrics.jsonl", "SHA256SUMS"}
    path = tmp_path / "metrics.jsonl"
    assert [json.loads(line) for line in path.read_text().splitlines()] == history
    path.write_text("{")
    with pytest.raises(UserError, match=r"metrics.jsonl: damaged .* --fresh trains anew"):
        train(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"metrics.jsonl: missing; --fresh trains anew"):
        train(tmp_path)


def test_best_weights_alone_are_no_complete_run(tmp_path, monkeypatch):
    train_an_epoch(tmp_path).unlink()
    trained = []
    step = loop.train_step
    monkeypatch.setattr(loop, "train_step", lambda *args: trained.append(1) or step(*args))
    train(tmp_path)
    assert len(trained) == 9  # three epochs of three


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    before = train_an_epoch(tmp_path).read_bytes()

    def full(path, _):
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"last.pt: cannot be written \(No space left"):
        train(tmp_path, fresh=True)
    assert (tmp_path / "last.pt").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {
        *("last.pt", "best.pt", "metrics.jsonl", "SHA256SUMS")
    }
