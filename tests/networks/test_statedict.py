import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from common.errors import UserError
from common.networks import weights


class Command:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(OrderedDict(features=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4)))


STATE = network().state_dict()


def found(path, **options):
    return weights.find_tensors(path, network(1).state_dict(), "Net", **options)


def refused(path):
    with pytest.raises(UserError) as caught:
        found(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def renamed(prefix, state=STATE):
    return {prefix + name: tensor for name, tensor in state.items()}


def averaged():
    return AveragedModel(network()).state_dict()


OTHER = {name: tensor + 1 for name, tensor in STATE.items()}
OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
AS_PEOPLE_HAVE_THEM = {
    "plain": (STATE, ""),
    "parallel": (renamed("module."), ""),
    "compiled": (renamed("_orig_mod."), ""),
    "nested": (renamed("module._orig_mod.network.model."), ""),
    "model": ({"model": STATE, "optimizer": OPTIMIZER, "epoch": 3}, 'taken from "model"'),
    "state_dict": (
        {"state_dict": renamed("module."), "best": 0.5},
        'taken from "state_dict.module"',
    ),
    "model_ema": ({"model_ema": averaged()}, 'taken from "model_ema.module"'),
    "average": (averaged(), ""),
    "this project's": (
        {"network": renamed("network."), "about": {"init": "scratch"}, "epoch": 2},
        'taken from "network.network"',
    ),
    "network and average": ({"model_ema": OTHER, "model": STATE}, 'taken from "model"'),
    "teacher": (renamed("teacher.", OTHER) | renamed("model."), ""),
}


@pytest.mark.parametrize("name", AS_PEOPLE_HAVE_THEM)
def test_weights_are_found_whatever_wraps_them(tmp_path, name):
    content, words = AS_PEOPLE_HAVE_THEM[name]
    path, legacy = tmp_path / "weights.pt", name == "plain"  # one in the format of before 1.6
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    tensors, taken = found(path)
    assert list(tensors) == list(STATE)
    assert all(torch.equal(tensors[name], STATE[name]) for name in STATE)
    assert taken == words


def test_a_name_that_is_the_networks_own_is_no_wrapper(tmp_path):
    wanted = renamed("network.")  # as those of a network that normalises
    torch.save({"network": wanted, "epoch": 2}, tmp_path / "best.pt")
    tensors, _ = weights.find_tensors(tmp_path / "best.pt", wanted, "Net")
    assert list(tensors) == list(wanted)


def test_safetensors_are_read(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(renamed("module."), path, metadata={"format": "pt"})
    tensors, _ = found(path)
    assert all(torch.equal(tensors[name], STATE[name]) for name in STATE)


def test_what_has_no_bearing_may_be_missing(tmp_path):
    path, counted = tmp_path / "weights.pt", "norm.num_batches_tracked"
    torch.save({name: tensor for name, tensor in STATE.items() if name != counted}, path)
    assert list(found(path)[0]) == [name for name in STATE if name != counted]
    torch.save(STATE | {"features.weight": torch.zeros(9, 3, 3, 3)}, path)
    tensors, _ = found(path, may_miss=["features.weight"])
    assert "features.weight" not in tensors


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_code_is_refused_unrun(tmp_path, form):
    path, made = tmp_path / "weights.pt", tmp_path / "made"
    content = {"model": STATE, "extra": Command(made)}
    if form == "pickle":
        path.write_bytes(pickle.dumps({"model": Command(made)}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    assert "posix.mkdir" in refused(path)
    assert not made.exists()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ([1, 2], "features.weight"),
        ({"epoch": 3, "lr": 0.1}, "features.weight"),
        (STATE | {"features.bias": torch.zeros(5)}, "features.bias"),
        (STATE | {"features.bias": 3}, "features.bias"),
        (STATE | {"features.bias": torch.zeros(4, dtype=torch.int8)}, "features.bias"),
        (STATE | {"features.bias": torch.full((4,), torch.nan)}, "features.bias"),
        (STATE | {"norm.running_var": torch.full((4,), torch.inf)}, "norm.running_var"),
        # Beyond the range of fp32, in which the network has it.
        (STATE | {"features.bias": torch.full((4,), 1e300, dtype=torch.double)}, "features.bias"),
    ],
    ids=["list", "no weights", "shape", "int", "int8", "nan", "inf", "large"],
)
def test_the_tensor_that_is_not_this_networks_is_named(tmp_path, content, name):
    torch.save(content, tmp_path / "other.pt")
    assert name in refused(tmp_path / "other.pt")


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_file_cut_short_anywhere_is_refused(tmp_path, form):
    path = tmp_path / f"weights.{form}"
    if form == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=form == "zip")
    content = path.read_bytes()
    for length in (0, 1, 8, 9, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        refused(path)


def test_a_flipped_bit_is_refused_or_was_of_no_bearing(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(STATE, path)
    content = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, 8 * len(content), 60):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            tensors, _ = found(path)
        except UserError as error:
            assert str(path) in str(error)  # noqa: PT017 both ends are right
        else:  # in the zip file's padding, dates or names of what is not read
            assert all(torch.equal(tensors[name], STATE[name]) for name in STATE)
