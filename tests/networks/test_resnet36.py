import pytest
import torch
from torch import nn

from common.networks.activations import SquareLeaky, where_form
from common.networks.resnet36 import RELU_STEM, STEMS, DivisiveNorm, ResidualBlock, ResNet36
from common.training.watch import watched


def test_the_branch_leaves_the_sum_alone_and_the_reports_form_does_not():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6)
    for after_sum in (None, SquareLeaky):
        block = ResidualBlock(4, 4, 1, SquareLeaky, after_sum).eval()
        nn.init.zeros_(block.bn3.weight)
        wanted = x if after_sum is None else where_form(x)
        torch.testing.assert_close(block(x), wanted)


def test_width_scales_every_stage():
    network = ResNet36(classes=3, width=1 / 16)
    channels = [network.conv1.out_channels, network.conv2.out_channels]
    stages = (network.layer1, network.layer2, network.layer3, network.layer4)
    channels += [stage[-1].conv3.out_channels for stage in stages]
    assert channels == [4, 8, 8, 16, 32, 64]
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 3)


def test_activations_are_modules_that_can_be_watched_and_hold_nothing():
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for residual, places in (("branch", 24), ("sum", 35)):
        torch.manual_seed(0)
        network, seen = ResNet36(3, residual=residual, width=1 / 16), []
        unwatched = network(x)
        assert not any("activation" in name for name in network.state_dict())
        with watched(network, lambda module, *_, seen=seen: seen.append(module)):
            assert torch.equal(network(x), unwatched)
        named = [module for module in seen if "activation" in module]
        assert len(named) == len(set(named)) == places


def kinds(network, number):
    """The class names of a stem's activation and of the norm after it, joined by "+"."""
    activation = getattr(network, f"activation{number}")
    parts = list(activation.children()) or [activation]
    return "+".join(type(part).__name__ for part in parts)


@pytest.mark.parametrize("stem", STEMS)
def test_the_stem_is_what_its_name_says(stem):
    names = {"f": "SquareLeaky", "relu": "ReLU", "bn": "BatchNorm2d", "dn": "DivisiveNorm"}
    network = ResNet36(classes=3, width=1 / 16, stem=stem)
    for number, kind in enumerate(stem.split(","), 1):
        assert kinds(network, number) == "+".join(names[part] for part in kind.split("+"))
    branches = [network.layer1[0].activation1, network.layer4[1].activation2]
    assert [type(module) for module in branches] == [SquareLeaky, SquareLeaky]
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 3)


def test_gamma_starts_the_batch_norms_that_feed_f_and_no_others():
    network = ResNet36(classes=3, width=1 / 16, stem="f,relu", gamma=0.1)
    started = {name: norm.weight[0].item() for name, norm in network.named_modules()
               if isinstance(norm, nn.BatchNorm2d)}  # fmt: skip
    fed = {name for name, value in started.items() if value == pytest.approx(0.1)}
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in range(3)][:-1]
    in_blocks = {f"{block}.bn{norm}" for block in blocks for norm in (1, 2)}
    assert fed == in_blocks | {"bn1"}
    assert {value for name, value in started.items() if name not in fed} == {1.0}
    relu = ResNet36(classes=3, activation=nn.ReLU, width=1 / 16, stem=RELU_STEM, gamma=0.1)
    assert all(
        (norm.weight == 1).all() for norm in relu.modules() if isinstance(norm, nn.BatchNorm2d)
    )


def test_pytorchs_own_initialisation_is_left_as_it_is():
    torch.manual_seed(0)
    network = ResNet36(classes=3, width=1 / 16, init="pytorch")
    torch.manual_seed(0)
    assert torch.equal(network.conv1.weight, nn.Conv2d(3, 4, 7, padding=1, bias=False).weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_divisive_norm_is_rms_norm_over_the_channels_of_a_place(dtype):
    maps = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    wanted = nn.functional.rms_norm(maps.float().permute(0, 2, 3, 1), (6,), eps=1e-3)
    found = DivisiveNorm()(maps)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), wanted.permute(0, 3, 1, 2), rtol=2e-2, atol=2e-2)
