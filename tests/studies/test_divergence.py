"""The first steps of trainings, watched and unchecked."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from common.data.augment import Augmentation
from common.data.packed import Packed
from common.networks.normalized import Normalized
from common.networks.resnet36 import ResNet36
from common.studies import divergence
from common.studies.divergence import Followed, Record, ResultCache
from common.training.recipe import Recipe
from common.training.run import Run

CPU = torch.device("cpu")


class Source:
    name, class_names = "test", ("a", "b")


@pytest.fixture
def train():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (8, 18, 18, 3), np.uint8), torch.arange(8) % 2
    return Packed(images, labels, np.arange(8), Source())


def small_run(scale=1.0, **changes):
    """A run of a network whose first convolution's outputs are about `scale` in size."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 4, 3)
    first.weight.data.mul_(scale)
    layers = (first, nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    plain = Augmentation(crop_area_min=1, jitter=0, cutmix_prob=0)
    flags = {"epochs": 100, "batch_size": 4, "image_size_px": 16, "learning_rate": 0.01}
    recipe = Recipe(**{**flags, "ema_decay": 0, "augmentation": plain, **changes})
    return Run(Normalized(nn.Sequential(*layers)), recipe, CPU)


def test_the_record_finds_the_first_value_beyond_each_range_and_keeps_powers_of_two():
    record = Record()
    for step in range(1, 8):
        record.look("network.a", "output", torch.tensor([10.0**step]))
        record.look("network.b", "gradient", torch.tensor([math.inf if step == 6 else 1.0]))
        record.end_step(nn.Module(), last=step == 7)
    first = {"step": 5, "module": "a", "direction": "output"}
    overflow = {"step": 6, "module": "b", "direction": "gradient"}
    assert record.beyond == {"fp16": first, "bf16": overflow, "fp32": overflow}
    assert sorted({row["step"] for row in record.rows}) == [1, 2, 4, 7]
    assert Followed([], None, None, record.rows, {}, 0).peaks(4, ["a", "a"]) == [10_000] * 2


def test_a_training_is_followed_to_its_last_step(train):
    followed = divergence.follow_steps(small_run(), train, steps=5, watch=True)
    assert len(followed.losses) == followed.last_step == 5
    assert followed.divergence is None
    assert followed.beyond == {}
    assert sorted({row["step"] for row in followed.rows}) == [1, 2, 4, 5]
    first = [row for row in followed.rows if row["step"] == 1]
    outputs = [row["module"] for row in first if row["direction"] == "output"]
    assert outputs == ["0", "1", "2", "3", "4", "network"]
    gradients = {row["module"] for row in first if row["direction"] == "gradient"}
    assert {"0", "4", "0.weight", "4.bias"} <= gradients
    unwatched = divergence.follow_steps(small_run(), train, steps=5)
    assert unwatched.losses == followed.losses
    assert unwatched.rows == []
    result = followed.result(last_steps=2)
    assert result["last_loss"] == pytest.approx(sum(followed.losses[3:]) / 2)
    assert (result["first_loss"], result["steps"]) == (followed.losses[0], 5)
    assert result["diverged_at_step"] is result["divergence"] is None


def test_the_doctor_says_where_a_training_diverges(train):
    rates = {"optimizer": "sgd", "learning_rate": 1e30, "warmup_epochs": 0}
    followed = divergence.follow_steps(small_run(**rates), train, steps=9, watch=True)
    where = followed.divergence
    assert where["step"] == followed.last_step == len(followed.losses) + 1 < 9
    assert where == followed.beyond["fp32"]
    assert followed.rows[-1]["step"] == where["step"]
    assert math.isinf(followed.peaks(where["step"], [where["module"]])[0])


@pytest.mark.parametrize(("scale", "dead"), [(1.0, None), (1e22, "1")])
def test_a_dead_layer_is_named_when_followed(train, scale, dead):
    followed = divergence.follow_steps(small_run(scale), train, 2, watch=True)
    assert followed.dead == ({"step": 1, "module": dead} if dead else None)
    rows = [row for row in followed.rows if (row["module"], row["direction"]) == ("1", "output")]
    assert [row["constant"] for row in rows] == [1.0 if dead else 0.0] * 2


# ------------------------------------------------------------------------- without any check


def tiny_resnet():
    torch.manual_seed(0)
    return ResNet36(classes=3, residual="sum", width=1 / 16)


def test_steps_without_checks_are_plain_pytorch_and_go_on_after_bad_gradients():
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    batch = (images, torch.tensor([0, 1, 2, 0]))
    network, other = tiny_resnet(), tiny_resnet()
    found = divergence.unchecked_steps(
        network, [batch] * 2, torch.optim.SGD(network.parameters(), 1e-6)
    )
    optimizer, losses = torch.optim.SGD(other.parameters(), 1e-6), []
    for _ in range(2):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(other.train()(images), batch[1])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert found["losses"] == losses
    assert (found["non_finite_gradients"], found["infinite_from"]) == ([], None)
    assert found["tensors"] == len(list(network.parameters()))


def test_a_dead_network_is_taken_apart_at_the_batch_norm_that_makes_gradients_nan():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip
    with torch.no_grad():
        network[-1].weight.mul_(1e21)  # so that its input's gradient is large
    images, labels = 1e20 * torch.rand(6, 3, 4, 4), torch.arange(6) % 5
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    found = divergence.unchecked_steps(network, [(images, labels)] * 3, optimizer, autopsy=True)
    assert len(found["losses"]) == 2
    assert math.isnan(found["losses"][1])
    assert found["non_finite_gradients"] == ["0.weight", "1.weight"]
    assert found["infinite_from"] == "1"
    assert found["autopsy"]["module"] == "1"
    assert not found["autopsy"]["finite_in_fp32"]
    assert found["autopsy"]["finite_in_fp64"]


# ------------------------------------------------------------------------- results that are kept


def test_what_was_measured_is_read_again_and_under_another_flag_measured_anew(tmp_path):
    calls = []

    def measure():
        calls.append(1)
        return {"losses": [1.5, math.inf], "places": (1, 2)}

    def get(seed=0, steps=3, fresh=False):
        cache = ResultCache(tmp_path / "kept", {"seed": seed}, fresh)
        return cache.get("f, clamped", {"steps": steps}, measure)

    assert get() == get() == {"losses": [1.5, math.inf], "places": [1, 2]}
    assert len(calls) == 1
    for other in ({"seed": 1}, {"steps": 4}, {"fresh": True}):
        get(**other)
    assert len(calls) == 4
