import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import efficientnet_v2_s
from torchvision.transforms.v2.functional import normalize

from common.errors import UserError
from common.files import sha256_of
from common.networks import efficientnet
from common.networks.normalized import Normalized


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(7)
    return efficientnet_v2_s(num_classes=4).state_dict()


def built(path, capsys, classes=4):
    """Build a network from a file: (its state, the names of new tensors, the line printed)."""
    network, init, new = efficientnet.build(classes, str(path), seed=0)
    assert init == f"SHA-256 {sha256_of(path)}"
    return network.state_dict(), new, capsys.readouterr().out


def test_all_782_tensors_of_a_file_are_loaded(state, tmp_path, capsys):
    wrapped = {"model": {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}}
    for content, words in ((state, ""), (wrapped, '; taken from "model.module._orig_mod"')):
        torch.save(content, tmp_path / "weights.pt")
        loaded, new, told = built(tmp_path / "weights.pt", capsys)
        assert told == f"{tmp_path / 'weights.pt'}: 782 tensors loaded; not loaded: none{words}\n"
        assert new == []
        assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_of_other_classes_or_without_a_head_780_are_loaded(state, tmp_path, capsys):
    path, head = tmp_path / "weights.safetensors", "classifier.1.weight, classifier.1.bias"
    headless = {name: t for name, t in state.items() if not name.startswith("classifier")}
    for content, classes in ((state, 9), (headless, 4)):
        save_file(content, path)
        loaded, new, told = built(path, capsys, classes)
        assert told == f"{path}: 780 tensors loaded; not loaded: {head}\n"
        assert all(torch.equal(loaded[name], tensor) for name, tensor in headless.items())
        assert new == head.split(", ")
        with pytest.raises(UserError, match=f"no head for the data's {classes} classes"):
            efficientnet.trained(path, classes)


def test_with_zero_residuals_a_block_with_a_skip_path_starts_as_the_identity():
    network = efficientnet_v2_s(num_classes=3).eval()
    efficientnet.zero_residuals(network)
    blocks = [block for stage in network.features[1:-1] for block in stage if block.use_res_connect]
    assert len(blocks) == 35
    for block in blocks:
        maps = torch.randn(1, block.block[0][0].in_channels, 4, 4)
        assert torch.equal(block(maps), maps)


def test_normalised_network_sees_imagenet_statistics():
    images = torch.rand(2, 3, 5, 5)
    seen = Normalized(torch.nn.Identity())(images)
    wanted = normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(seen, wanted)


def test_normalisation_is_no_part_of_the_state():
    network = Normalized(torch.nn.Linear(1, 1))
    assert set(network.state_dict()) == {"network.weight", "network.bias"}
