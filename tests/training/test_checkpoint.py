"""Stopping and going on: runs that were killed, or are complete, damaged or of another training."""

import os
import signal
from dataclasses import replace

import pytest
import torch

from common import files
from common.data.augment import Augmentation
from common.errors import UserError
from common.training import loop
from tests.training.test_loop import RECIPE, assert_same, state, train, train_an_epoch


def timeless(history):
    return [
        {key: value for key, value in row.items() if "second" not in key and "memory" not in key}
        for row in history
    ]


@pytest.mark.parametrize(
    ("stopped_by", "save_seconds", "interval"), [("a crash", 0, 4), ("SIGTERM", 300, 1)]
)
def test_a_run_stopped_in_mid_epoch_goes_on_to_the_same_weights(
    tmp_path, monkeypatch, stopped_by, save_seconds, interval
):
    step, recipe = loop.train_step, replace(RECIPE, epochs=4, val_interval=interval)

    def stopping_step(run, *args):
        if (run.epoch, run.step) == (1, 1):
            if stopped_by == "a crash":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)
        return step(run, *args)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_step", stopping_step)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "stopped", recipe, every_seconds=save_seconds)
    stopped = state(tmp_path / "stopped")
    assert (stopped["epoch"], stopped["step"]) == (1, 2 if stopped_by == "SIGTERM" else 1)
    nets, histories = zip(
        *(train(tmp_path / name, recipe) for name in ("stopped", "whole")), strict=True
    )
    assert_same(*(net.state_dict() for net in nets))
    assert timeless(histories[0]) == timeless(histories[1])


def test_fewer_evaluations_on_val_leave_the_training_as_it_was(tmp_path, monkeypatch):
    each, some = (
        timeless(train(tmp_path / str(n), replace(RECIPE, epochs=5, val_interval=n))[1])
        for n in (1, 2)
    )
    assert [row["epoch"] for row in some] == [1, 3, 5]
    for key in ("val_loss", "val_top1", "learning_rate"):
        assert [row[key] for row in some] == [row[key] for row in each[::2]]
    both = [row["train_loss"] for row in each[1:3]]
    assert some[1]["train_loss"] == pytest.approx(sum(both) / 2)
    monkeypatch.setattr(loop, "train_step", None)  # a complete run is only read
    assert timeless(train(tmp_path / "2", replace(RECIPE, epochs=5, val_interval=2))[1]) == some


def test_a_fresh_run_that_is_killed_at_once_leaves_no_run_that_looks_complete(
    tmp_path, monkeypatch
):
    train(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_one_epoch", None)
        with pytest.raises(TypeError):
            train(tmp_path, replace(RECIPE, learning_rate=0.5), fresh=True)
    with pytest.raises(UserError, match=r"another run: learning_rate 0.5 \(now 0.02\)"):
        train(tmp_path)


def test_the_same_seed_makes_equal_files_and_another_other_weights(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tmp_path / name, replace(RECIPE, seed=seed))
    assert (tmp_path / "a/best.pt").read_bytes() == (tmp_path / "b/best.pt").read_bytes()
    a, c = (state(tmp_path / name, "best.pt")["network"]["6.weight"] for name in "ac")
    assert not torch.equal(a, c)


def test_other_flags_are_refused_with_the_difference_named(tmp_path):
    before = train_an_epoch(tmp_path).read_bytes()
    with pytest.raises(UserError, match=r"another run: batch_size 4 \(now 5\), jitter 0.3"):
        train(tmp_path, replace(RECIPE, batch_size=5, augmentation=Augmentation(jitter=0)))
    assert (tmp_path / "last.pt").read_bytes() == before


@pytest.mark.parametrize("name", ["last.pt", "best.pt", "metrics.jsonl"])
def test_a_damaged_file_of_a_run_is_named_with_the_way_to_do_without(tmp_path, name):
    train_an_epoch(tmp_path) if name == "last.pt" else train(tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (whole[:100], b"", bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{name}: damaged .*; --fresh trains anew"):
            train(tmp_path)
    path.write_bytes(whole)
    (tmp_path / files.SUMS).unlink()
    with pytest.raises(UserError, match=r"not listed .*; --fresh trains anew"):
        train(tmp_path)


def test_another_number_of_threads_is_said_where_a_run_goes_on(tmp_path, monkeypatch, capsys):
    train_an_epoch(tmp_path)
    before = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: before + 2)
    _, history = train(tmp_path)
    assert f"begun with {before} threads, now {before + 2}" in capsys.readouterr().out
    assert [row["threads"] for row in history] == [before, before + 2, before + 2]


def test_best_weights_alone_are_no_complete_run(tmp_path, monkeypatch):
    train_an_epoch(tmp_path).unlink()
    trained = []
    step = loop.train_step
    monkeypatch.setattr(loop, "train_step", lambda *args: trained.append(1) or step(*args))
    train(tmp_path)
    assert len(trained) == 9  # three epochs of three steps
