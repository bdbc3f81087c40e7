import csv
import math
from collections import Counter
from functools import partial

import pytest
import torch
from torch import nn

import problem3_resnet36 as p3
from common.networks import doctor
from common.reporting import problem3
from common.training import loop, runs
from tests.faults import tiny


def test_resnet_34_with_f_has_no_relu_left():
    network = p3.resnet34_with(p3.SquareLeaky, classes=3, seed=0)
    kinds = Counter(type(module) for module in network.modules())
    assert (kinds[p3.SquareLeaky], kinds[nn.ReLU]) == (17, 0)


TINY = (
    *("--image-size", 32, "--width", 1 / 16, "--batch-size", 4, "--epochs", 2),
    *("--precision", "fp32", "--steps", 4, "--per-class", 7),
)


@pytest.fixture
def train(parts_of, class_folders, monkeypatch):
    """Run part 3.4 at 32 px, with a small network in place of ResNet-34."""
    tiny.use_small_networks(monkeypatch.setattr)
    return partial(parts_of, p3, "3.4", "--data", class_folders, *TINY)


def test_three_networks_see_the_same_images_and_are_tested_once(train, monkeypatch):
    seen, tested = {}, []
    process_batch, test = loop.process_batch, runs.evaluate

    def keep(run, *args):
        batch = process_batch(run, *args)
        seen.setdefault(run, []).append(batch[:2])
        return batch

    def count(network, split, *others, **options):
        tested.append(split.source.name)
        return test(network, split, *others, **options)

    monkeypatch.setattr(p3, "changes_of_report", lambda _: {"none": ({}, {}), p3.BRANCH: ({}, {})})
    monkeypatch.setattr(loop, "process_batch", keep)
    monkeypatch.setattr(runs, "evaluate", count)
    parts, printed, _ = train()
    part = parts["3.4"]
    names = ["resnet34", "resnet36", "resnet36_relu_stem", "resnet36_relu"]
    assert sorted(part["networks"]) == sorted(names)
    assert [(row["a"], row["b"]) for row in part["differences"]] == [
        (name, "resnet36_relu") for name in names[:-1]
    ]
    for network in part["networks"].values():
        assert [row["epoch"] for row in network["runs"][0]["history"]] == [1, 2]
        assert all(math.isfinite(row["train_loss"]) for row in network["runs"][0]["history"])
        assert network["test_top1_low"] <= network["test_top1"] <= network["test_top1_high"]
    assert tested.count("prototype test") == 4
    first, *others = [batches[:8] for batches in seen.values()][:4]  # 15 images: 4 steps an epoch
    assert len(first) == 8
    for other in others:
        for batch, same in zip(first, other, strict=True):
            assert all(map(torch.equal, batch, same))
    assert "ResNet-36 0.0625 TIMES AS WIDE" in printed


def test_the_report_diverges_where_the_doctor_says_and_the_branch_does_not(train, tmp_path):
    parts, _, err = train("--diagnose", study="diagnose")
    part = parts["3.4"]
    assert part["networks"] == {}
    assert err == ""
    assert not (tmp_path / "out" / "problem3" / "results.json").exists()
    where = part["divergence"]
    assert where["network"] == "resnet36_sum"
    changes = {row["change"]: row for row in part["single_changes"]}
    assert next(iter(changes)) == "none"
    assert changes["none"]["diverged_at_step"] == where["step"] == changes["none"]["steps"] + 1
    assert changes["f off the sums"]["diverged_at_step"] is None
    assert changes["f off the sums"]["steps"] == 4
    assert len(changes) == 10
    assert len(part["not_single_changes"]) == 2
    assert list(part["beyond_range"]) == ["resnet36_sum", "resnet36_report_recipe", "resnet36"]
    beyond = part["beyond_range"]["resnet36_sum"]
    assert beyond["fp16"]["step"] <= beyond["bf16"]["step"] <= beyond["fp32"]["step"]
    assert beyond["fp32"] == {key: where[key] for key in ("step", "module", "direction")}
    assert "fp32" not in part["beyond_range"]["resnet36_report_recipe"]
    rows_path = tmp_path / "out" / "problem3" / "diagnose" / "3.4_doctor_resnet36_sum.csv"
    with rows_path.open() as file:
        rows = list(csv.DictReader(file))
    # The table can be made again from results.json.
    table = problem3.doctor_table(part, doctor.RANGES, "", "")
    written = (rows_path.parent / "3.4_doctor.txt").read_text()
    assert table.splitlines()[-10:] == written.splitlines()[-10:]
    first = [row for row in rows if row["step"] == "1" and row["direction"] == "output"]
    assert {"conv1", "layer1.0.activation1", "layer4.1", "fc"} <= {row["module"] for row in first}
    gradients = {row["module"] for row in rows if row["direction"] == "gradient"}
    assert {"fc", "fc.weight", "layer1.0.activation1", "layer1.0.bn1.bias"} <= gradients
    assert max(int(row["step"]) for row in rows) == where["step"]


def test_training_the_reports_form_is_warned_of_and_then_stops(train):
    flags = ("--residual", "sum", "--stem", "f,f", "--optimizer", "sgd", "--lr", 1)
    parts, printed, err = train(*flags, code=2)
    assert parts == {}
    assert "fp32, cpu, f AFTER THE SUM, ResNet-36 0.0625 TIMES AS WIDE" in printed
    *warnings, error = err.splitlines()
    for warning, name in zip(warnings, ["resnet36", "resnet36_relu_stem"], strict=True):
        assert warning.startswith(f"warning: overflow forecast: {name} exceeds fp16's range")
    assert "resnet36-2epochs-seed0: " in printed
    assert "non-finite" in error
