import csv
import io
import math
import re

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from common.data.augment import Augmentation
from common.data.packed import Packed
from common.networks import doctor
from common.networks.normalized import Normalized
from common.training.recipe import Recipe

CPU = torch.device("cpu")


class Source:
    name, class_names = "test", ("a", "b")


@pytest.fixture
def train():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (8, 18, 18, 3), np.uint8), torch.arange(8) % 2
    return Packed(images, labels, np.arange(8), Source())


def small_network(scale=1.0):
    """A network whose first convolution puts out values of about `scale`."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 4, 3)
    first.weight.data.mul_(scale)
    layers = (first, nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    return Normalized(nn.Sequential(*layers))


def recipe(**changes):
    plain = Augmentation(crop_area_min=1, jitter=0, cutmix_prob=0)
    about = {"epochs": 100, "batch_size": 4, "image_size_px": 16, "learning_rate": 0.01}
    return Recipe(**{**about, "ema_decay": 0, "augmentation": plain, **changes})


def test_the_forecast_is_what_the_first_step_puts_out_and_leaves_no_trace():
    torch.manual_seed(0)
    network = Normalized(resnet18(num_classes=3))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    outputs = doctor.forecast(network.eval(), images)
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not network.training
    logits = network.train()(images)
    assert outputs["fc"]["peak"] == logits.abs().max().item()
    assert outputs["fc"]["std"] == pytest.approx(logits.std(correction=0).item(), rel=1e-5)
    assert [*outputs][:4] == ["conv1", "bn1", "relu", "maxpool"]
    # One ReLU is used twice: its peak is the largest of both.
    assert outputs["layer1.0.relu"]["peak"] >= outputs["layer1.0"]["peak"]


def test_a_forecast_that_is_not_finite_peaks_at_infinity():
    network = small_network(scale=1e39)
    outputs = doctor.forecast(network, torch.rand(2, 3, 16, 16))
    assert outputs["0"]["peak"] == math.inf


def test_a_forecast_comes_to_its_largest_peak_and_the_first_beyond_fp16():
    peaks = {"conv1": 10.0, "layer1.0.relu": 7e4, "layer1.0": 9e4, "fc": 2.0}
    outputs = {module: {"peak": peak, "std": 1.0, "dead": False} for module, peak in peaks.items()}
    assert doctor.summarise(outputs, re.compile(r"layer\d\.\d|fc")) == {
        "peak": 9e4,
        "module": "layer1.0",
        "beyond_fp16": "layer1.0.relu",
        "dead_from": None,
        "blocks": {"layer1.0": outputs["layer1.0"], "fc": outputs["fc"]},
    }


def test_statistics_equal_torchs_also_where_squares_overflow():
    values = torch.randn(500, generator=torch.Generator().manual_seed(0)) * 1e30
    summary = doctor.statistics(values)
    exact = values.double()
    assert summary["peak"] == exact.abs().max().item()
    assert summary["mean"] == pytest.approx(exact.mean().item(), rel=1e-9)
    assert summary["variance"] == pytest.approx(exact.var(correction=0).item(), rel=1e-9)
    assert summary["norm"] == pytest.approx(exact.norm().item(), rel=1e-9)
    assert summary["non_finite"] == 0


def test_statistics_of_values_that_are_not_finite():
    summary = doctor.statistics(torch.tensor([1.0, -3.0, math.nan, 2.0]))
    assert (summary["peak"], summary["non_finite"]) == (3, 0.25)
    zeros = [doctor.statistics(sign * torch.zeros(3))["peak"] for sign in (1, -1)]
    assert [str(peak) for peak in zeros] == ["0.0"] * 2
    assert doctor.statistics(torch.tensor([1.0, -math.inf]))["peak"] == math.inf


def test_the_doctor_finds_the_first_value_beyond_each_range_and_keeps_powers_of_two():
    hooks = doctor.Doctor()
    for step in range(1, 8):
        hooks.look("network.a", "output", torch.tensor([10.0**step]))
        hooks.look("network.b", "gradient", torch.tensor([math.inf if step == 6 else 1.0]))
        hooks.end_step(nn.Module(), last=step == 7)
    first = {"step": 5, "module": "a", "direction": "output"}
    overflow = {"step": 6, "module": "b", "direction": "gradient"}
    assert hooks.beyond == {"fp16": first, "bf16": overflow, "fp32": overflow}
    assert sorted({row["step"] for row in hooks.rows}) == [1, 2, 4, 7]
    assert doctor.peaks(hooks.rows, 4, ["a"]) == [10_000]
    assert doctor.peaks(hooks.rows, 4, ["a", "a"]) == [10_000] * 2
    assert doctor.first_beyond(hooks.rows) == {
        "fp16": {"step": 7, "module": "a", "direction": "output"}
    }


def test_a_training_is_followed_to_its_last_step(train):
    followed = doctor.follow(small_network(), train, recipe(), CPU, steps=5, watch=True)
    assert len(followed.losses) == followed.last_step == 5
    assert followed.divergence is None
    assert followed.beyond == {}
    assert followed.seconds > 0
    assert sorted({row["step"] for row in followed.rows}) == [1, 2, 4, 5]
    first = [row for row in followed.rows if row["step"] == 1]
    outputs = [row["module"] for row in first if row["direction"] == "output"]
    assert outputs == ["0", "1", "2", "3", "4", "network"]
    gradients = {row["module"] for row in first if row["direction"] == "gradient"}
    assert {"0", "4", "0.weight", "4.bias"} <= gradients
    unwatched = doctor.follow(small_network(), train, recipe(), CPU, steps=5)
    assert unwatched.losses == followed.losses
    assert unwatched.rows == []


def test_the_doctor_says_where_a_training_diverges(train):
    rates = recipe(optimizer="sgd", learning_rate=1e30, warmup_epochs=0)
    followed = doctor.follow(small_network(), train, rates, CPU, steps=9, watch=True)
    where = followed.divergence
    assert where["step"] == followed.last_step == len(followed.losses) + 1 < 9
    assert where == followed.beyond["fp32"]
    assert followed.rows[-1]["step"] == where["step"]
    assert math.isinf(doctor.peaks(followed.rows, where["step"], [where["module"]])[0])


def test_rows_become_csv():
    hooks = doctor.Doctor()
    hooks.look("network.a", "output", torch.tensor([1 / 3, -2 / 3]))
    hooks.end_step(nn.Module(), last=True)
    (row,) = csv.DictReader(io.StringIO(doctor.csv_text(hooks.rows)))
    assert row == {
        **{"step": "1", "module": "a", "direction": "output", "peak": "0.66667"},
        **{"mean": "-0.16667", "variance": "0.25", "non_finite": "0", "norm": "0.74536"},
        "constant": "0",
    }


def test_the_result_of_a_training_is_plain_values(train):
    followed = doctor.follow(small_network(), train, recipe(), CPU, steps=3)
    result = followed.result(last_steps=2)
    assert result["last_loss"] == pytest.approx(sum(followed.losses[1:]) / 2)
    assert (result["first_loss"], result["steps"]) == (followed.losses[0], 3)
    assert result["diverged_at_step"] is result["divergence"] is None
    none = doctor.Followed([], {"step": 1, "module": "a", "direction": "output"}, None, [], {}, 0.5)
    assert none.result(last_steps=2) == {
        **{"diverged_at_step": 1, "divergence": none.divergence, "first_loss": None},
        **{"last_loss": None, "steps": 0, "seconds": 0.5, "dead": None},
    }


@pytest.mark.parametrize(("scale", "dead"), [(1.0, None), (1e22, "1")])
def test_a_dead_layer_is_named_by_the_forecast_and_when_followed(train, scale, dead):
    images = train.batch(torch.arange(8), CPU)[0].float() / 255
    outputs = doctor.forecast(small_network(scale), images)
    assert doctor.summarise(outputs, re.compile("1"))["dead_from"] == dead
    assert outputs["1"]["constant"] == (1.0 if dead else 0.0)
    followed = doctor.follow(small_network(scale), train, recipe(), CPU, 2, watch=True)
    wanted = {"step": 1, "module": dead} if dead else None
    assert followed.dead == followed.result(1)["dead"] == wanted
    rows = [row for row in followed.rows if (row["module"], row["direction"]) == ("1", "output")]
    assert [row["constant"] for row in rows] == [1.0 if dead else 0.0] * 2
