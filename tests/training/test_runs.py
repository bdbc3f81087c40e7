import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from common.errors import UserError
from common.training import loop, precision, runs
from common.training.run import save_checkpoint
from common.training.runs import NetworkSpec, set_up, train_seeds
from tests.training import test_loop as tiny
from tests.training.test_recipe import parse

SPLITS = {"train": tiny.packed(), "val": tiny.packed(7, 1), "test": tiny.packed(9, 2)}


def build(seed, **identity):
    return tiny.network(seed), identity


TINY = NetworkSpec("tiny", build)


@pytest.fixture
def setup_of(tmp_path, monkeypatch):
    """Make a `Setup` on the tiny splits from flags, as a new process would."""
    monkeypatch.setattr(runs, "pack", lambda split, *_: split)

    def make(*flags, splits=SPLITS):
        args = parse("--epochs", 2, *flags)
        args.device, args.cache, args.skip_bad = "cpu", None, False
        return set_up(args, "TINY", splits, tmp_path, lambda: build(0)[0])

    return make


@pytest.fixture
def bf16_gains(monkeypatch):
    """Pretend that bf16 is faster on this machine, or that it is not."""

    def pretend(gains):
        seconds = {"fp32": 1.0, "bf16": 0.5 if gains else 2.0}
        monkeypatch.setattr(precision.Example, "seconds", lambda *_: seconds)

    return pretend


@pytest.fixture
def looks_at_test(monkeypatch):
    """A list that gets one entry for each evaluation of the test split."""
    looks, evaluate = [], runs.evaluate

    def counting(network, split, *args, **options):
        if split is SPLITS["test"]:
            looks.append(network)
        return evaluate(network, split, *args, **options)

    monkeypatch.setattr(runs, "evaluate", counting)
    return looks


# ---------------------------------------------------------------------------- what identifies a run


def test_the_forecast_counts_sizes_evaluations_and_averaged_batch_norms(setup_of, monkeypatch):
    monkeypatch.setattr(runs, "images_per_second", lambda *_: 1)
    train, val, test = (len(SPLITS[split].labels) for split in ("train", "val", "test"))
    setup = setup_of("--epochs", 3, "--val-interval", 2, "--precision", "fp32")
    wanted = 3 * train + 0.35 * (2 * (train + val) + test)
    assert runs.training_seconds(setup, [TINY], seeds=1) == pytest.approx(wanted)
    half = replace(TINY, recipe_changes={"image_size_px": setup.args.image_size // 2})
    assert runs.training_seconds(setup, [half], seeds=1) == pytest.approx(wanted - 9 / 4 * train)


def test_a_run_is_trained_once_a_seed_and_read_afterwards(setup_of, monkeypatch):
    first = train_seeds(setup_of("--seeds", 2, "--precision", "fp32"), TINY)
    assert [run["seed"] for run in first] == [0, 1]
    monkeypatch.setattr(loop, "train_step", None)
    setup = setup_of("--seeds", 2, "--precision", "fp32")
    assert train_seeds(setup, TINY) == first
    assert train_seeds(setup, TINY, seeds=1) == first[:1]
    assert set(first[0]) == {
        "seed", "weights", "precision", "best_epoch", "head", "val_top1", "test_top1", "history",
        "test_top1_low", "test_top1_high", "test_top5", "test_per_class", "test_flip", "hits",
        "test_not_finite", "training_seconds", "images_per_second", "peak_memory_mib",
    }  # fmt: skip
    assert first[0]["training_seconds"] == sum(row["seconds"] for row in first[0]["history"])


def test_a_runs_val_top1_is_that_of_its_solved_layer(setup_of):
    (solved,) = train_seeds(setup_of("--solve-head", "--precision", "fp32"), TINY)
    trained = max(row["val_top1"] for row in solved["history"])
    assert solved["head"]["trained_val_top1"] == trained
    assert solved["val_top1"] == solved["head"]["val_top1"]
    with pytest.raises(UserError, match=r"solve_head True \(now None\)"):
        train_seeds(setup_of("--precision", "fp32"), TINY)


def test_a_complete_run_is_there_for_those_that_start_from_it(setup_of, monkeypatch):
    first = train_seeds(setup_of("--precision", "fp32"), TINY)
    setup = setup_of("--precision", "fp32", "--jobs", 2)
    monkeypatch.setattr(runs.parallel, "side_by_side", lambda *_: [])
    others = [replace(TINY, name=name, after="tiny") for name in "bc"]
    runs.train_side_by_side(setup, [TINY, *others])
    assert list(setup.finished.values()) == first


def test_work_beside_the_trainings_comes_last_and_is_no_run(setup_of, monkeypatch):
    called, give = [], lambda work, *_: called.extend(work) or [(name, name) for name in work]
    monkeypatch.setattr(runs.parallel, "load_server", lambda: None)
    monkeypatch.setattr(runs.parallel, "side_by_side", give)
    setup = setup_of("--jobs", 2, "--seeds", 2)
    runs.train_side_by_side(setup, [TINY], {"more": None})
    assert called == ["tiny, seed 0", "tiny, seed 1", "more"]
    assert list(setup.finished.values()) == called
    assert setup.finished["more"] == "more"


def test_another_network_recipe_or_other_data_are_refused(setup_of):
    train_seeds(setup_of("--precision", "fp32"), TINY)
    with pytest.raises(UserError, match=r"another run: weight_decay 0.05 \(now 0.1\); give"):
        train_seeds(setup_of("--precision", "fp32", "--weight-decay", 0.1), TINY)
    for other, difference in (
        (NetworkSpec("tiny", build, {"clip_norm": 1}), r"clip_norm 0.0 \(now 1\)"),
        (NetworkSpec("tiny", partial(build, width=2)), r"width None \(now 2\)"),
    ):
        with pytest.raises(
            UserError, match=rf"best\.pt belongs to another run: {difference}; give"
        ):
            train_seeds(setup_of("--precision", "fp32"), other)
    source = type("Source", (tiny.Source,), {"fingerprint": lambda _: "other"})()
    splits = SPLITS | {"val": replace(SPLITS["val"], source=source)}
    with pytest.raises(UserError, match=r"another run: data {.*'val': 'tiny'.* \(now .*other"):
        train_seeds(setup_of("--precision", "fp32", splits=splits), TINY)


# ------------------------------------------------------------------------------ test looked at once


def test_test_is_evaluated_once_for_all_parts_and_calls(setup_of, looks_at_test):
    setup = setup_of("--precision", "fp32")
    first = train_seeds(setup, TINY)
    assert train_seeds(setup, TINY) == first
    assert train_seeds(setup_of("--precision", "fp32"), TINY) == first
    assert len(looks_at_test) == 1


def test_other_weights_are_tested_again(setup_of, looks_at_test):
    setup = setup_of("--precision", "fp32")
    folder = setup.folder / "runs" / "tiny-2epochs-seed0"
    train_seeds(setup, TINY)
    best = tiny.state(folder, "best.pt")
    best["network"]["6.weight"].zero_()
    best["network"]["6.bias"] = torch.tensor([-9.0, -9.0, 9.0])
    save_checkpoint(folder / "best.pt", best)
    (run,) = train_seeds(setup_of("--precision", "fp32"), TINY)
    assert len(looks_at_test) == 2
    assert run["test_top1"] == pytest.approx(100 / 3)  # all are predicted as the third
    kept = json.loads((folder / "test.json").read_text())
    assert kept["top1"] == run["test_top1"]
    train_seeds(setup_of("--precision", "fp32", "--fresh"), TINY)
    assert len(looks_at_test) == 3


def test_a_damaged_record_of_the_test_is_made_again(setup_of, looks_at_test):
    setup = setup_of("--precision", "fp32")
    first = train_seeds(setup, TINY)
    (setup.folder / "runs" / "tiny-2epochs-seed0" / "test.json").write_text("{")
    assert train_seeds(setup_of("--precision", "fp32"), TINY) == first
    assert len(looks_at_test) == 2


def test_a_run_that_goes_on_keeps_the_precision_that_it_began_with(setup_of, bf16_gains, capsys):
    bf16_gains(True)
    with tiny.stopped_after_an_epoch():
        train_seeds(setup_of(), TINY)
    bf16_gains(False)  # as on another machine
    setup = setup_of()
    assert setup.precision.name == "fp32"
    (run,) = train_seeds(setup, TINY)
    assert run["precision"] == "bf16"
    assert "resuming at epoch 2" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"another run: precision bf16 \(now fp32\)"):
        train_seeds(setup_of("--precision", "fp32"), TINY)
    (anew,) = train_seeds(setup_of("--fresh"), TINY)
    assert anew["precision"] == "fp32"


def test_a_spec_that_names_a_precision_has_it(setup_of, bf16_gains):
    bf16_gains(True)
    (run,) = train_seeds(setup_of(), NetworkSpec("tiny", build, {"precision": "fp32"}))
    assert run["precision"] == "fp32"
