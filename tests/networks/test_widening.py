import pytest
import torch
from torch import nn
from torchvision.models import efficientnet_v2_s

from common.networks import widening
from common.networks.summary import without_weights

WIDE_CHANNELS = [26, 26, 53, 70, 141, 176, 282, 1408]


def trained_like(network, seed=0):
    """Set batch norms as after training, so that no layer is near the identity."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
            ):
                tensor.data.uniform_(low, high, generator=generator)
    return network.eval()


@pytest.fixture(scope="module")
def narrow():
    torch.manual_seed(0)
    return trained_like(efficientnet_v2_s(num_classes=7))


def make_wide(width=1.1):
    torch.manual_seed(1)
    return widening.wide_efficientnet(classes=7, width=width).eval()


def out_channels(stage):
    """A stage's output channels by its weights, whatever attributes say."""
    convolutions = [module for module in stage.modules() if isinstance(module, nn.Conv2d)]
    return len(convolutions[-1].weight)


def test_every_stage_is_wider_by_the_factor():
    wide = without_weights(lambda: widening.wide_efficientnet(102, 1.1))
    assert [out_channels(stage) for stage in wide.features] == WIDE_CHANNELS


def test_width_1_is_torchvisions_network_layer_by_layer():
    same = without_weights(lambda: widening.wide_efficientnet(102, 1))
    stock = without_weights(lambda: efficientnet_v2_s(num_classes=102))
    assert str(same) == str(stock)


def test_the_reports_counts_come_about_by_its_own_steps():
    counts = {"stock": 21_458_488, "out_channels_set": 21_458_488, "wider_head": 22_103_832}
    assert widening.report_counts() == counts


@pytest.mark.parametrize("width", [1.1, 2.3])
def test_widened_the_network_computes_the_same_function(narrow, width):
    wide = make_wide(width)
    images = torch.rand(3, 3, 64, 64)
    assert widening.max_logit_difference(narrow, wide, images) > 1e-2
    widening.widen_from(narrow, wide, seed=0)
    assert widening.max_logit_difference(narrow, wide, images) < 1e-4
    assert widening.max_logit_difference(narrow, wide, torch.randn(2, 3, 48, 80)) < 1e-4


def test_broken_symmetry_lets_copies_part(narrow):
    wide = make_wide()
    widening.widen_from(narrow, wide, seed=0)
    weight = wide.features[0][0].weight
    twins = [(i, j) for i in range(26) for j in range(i) if torch.equal(weight[i], weight[j])]
    assert len(twins) >= 2
    images = torch.rand(2, 3, 64, 64)
    widening.break_symmetry(wide, 0, seed=0)
    assert widening.max_logit_difference(narrow, wide, images) < 1e-4
    widening.break_symmetry(wide, 0.01, seed=0)
    assert not any(torch.equal(weight[i], weight[j]) for i, j in twins)
    assert widening.max_logit_difference(narrow, wide, images) > 1e-4
