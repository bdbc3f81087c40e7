import pytest
import torch
from torch import nn
from torchvision.models import efficientnet_v2_s

import problem2_flowers as p2
from common import summary
from common.cli import UserError
from common.experiment import count_parameters

WIDE_CHANNELS = [26, 26, 53, 70, 141, 176, 282, 1408]


def trained_like(network, seed=0):
    """Batch norms as after training, so that no layer is near the identity."""
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


def wide_of(width=1.1, divisor=1, classes=7):
    return p2.make_wide(classes, width, divisor, seed=1).network.eval()


def test_every_stage_is_wider_by_the_factor():
    wide = summary.without_weights(lambda: p2.wide_efficientnet(102, 1.1, 1))
    assert [p2._out_channels(stage) for stage in wide.features] == WIDE_CHANNELS
    assert p2._out_channels(nn.Sequential(wide.features[0])) == 26
    for stage, channels in zip(wide.features, WIDE_CHANNELS, strict=True):
        convolutions = [one for one in stage.modules() if isinstance(one, nn.Conv2d)]
        assert convolutions[-1].out_channels == channels


def test_divisor_8_rounds_up_to_multiples():
    assert [p2.wide_channels(c, 1.1, 8) for c in (24, 48, 64, 128, 160, 256, 1280)] == [
        *(32, 56, 72, 144, 176, 288, 1408)
    ]


def test_width_1_is_torchvisions_network_layer_by_layer():
    same, stock = (
        summary.without_weights(build)
        for build in (
            lambda: p2.wide_efficientnet(102, 1, 1),
            lambda: efficientnet_v2_s(num_classes=102),
        )
    )
    shapes = [{n: p.shape for n, p in one.state_dict().items()} for one in (same, stock)]
    assert shapes[0] == shapes[1]
    assert str(same) == str(stock)


def test_the_wide_network_has_the_same_layers_in_the_same_places():
    wide = summary.without_weights(lambda: p2.wide_efficientnet(102, 1.1, 1))
    stock = summary.without_weights(lambda: efficientnet_v2_s(num_classes=102))
    assert list(wide.state_dict()) == list(stock.state_dict())
    ratio = count_parameters(wide) / count_parameters(stock)
    assert 1.19 < ratio < 1.22  # weights grow as the square of the width


def test_what_the_report_did_changes_nothing():
    torch.manual_seed(0)
    network = efficientnet_v2_s(num_classes=1000).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        before = network(images)
        for k in (2, 3, 4, 5):
            block = network.features[k][0]
            block.out_channels = int(block.out_channels * 1.1)
        assert torch.equal(network(images), before)
    assert count_parameters(network) == 21_458_488
    assert [p2._out_channels(network.features[k]) for k in (2, 3, 4, 5)] == [48, 64, 128, 160]


@pytest.mark.parametrize(("width", "divisor"), [(1.1, 1), (1.1, 8), (2.3, 1)])
def test_widened_the_network_computes_the_same_function(narrow, width, divisor):
    wide = wide_of(width, divisor)
    images = torch.rand(3, 3, 64, 64)
    assert p2.max_logit_difference(narrow, wide, images) > 1e-2
    p2.widen_from(narrow, wide, seed=0)
    assert p2.max_logit_difference(narrow, wide, images) < 1e-4
    assert p2.max_logit_difference(narrow, wide, torch.randn(2, 3, 48, 80)) < 1e-4


def test_the_function_is_kept_on_photographs_through_the_normalisation(narrow):
    from common import data

    wide = p2.Normalized(wide_of())
    p2.widen_from(narrow, wide.network, seed=3)
    photos = [data.to_tensor(data.fit_to(one, 96, 96)) for one in data.embedded_photos().values()]
    assert p2.max_logit_difference(p2.Normalized(narrow), wide, torch.stack(photos)) < 1e-4


def test_copies_share_what_the_narrow_channel_gave():
    copies = p2.draw_copies(5, 8, torch.Generator().manual_seed(0))
    assert copies.index[:5].tolist() == [0, 1, 2, 3, 4]
    shares = torch.zeros(5).index_add(0, copies.index, copies.share)
    torch.testing.assert_close(shares, torch.ones(5))


def test_broken_symmetry_lets_copies_part(narrow):
    wide = wide_of()
    p2.widen_from(narrow, wide, seed=0)
    weight = wide.features[0][0].weight
    twins = [(i, j) for i in range(26) for j in range(i) if torch.equal(weight[i], weight[j])]
    assert len(twins) >= 2
    images = torch.rand(2, 3, 64, 64)
    p2.break_symmetry(wide, 0, seed=0)
    assert p2.max_logit_difference(narrow, wide, images) < 1e-4
    p2.break_symmetry(wide, 0.01, seed=0)
    assert not any(torch.equal(weight[i], weight[j]) for i, j in twins)
    assert p2.max_logit_difference(narrow, wide, images) > 1e-4


def test_a_narrow_file_of_other_classes_is_refused(narrow, tmp_path):
    torch.save(narrow.state_dict(), tmp_path / "narrow.pt")
    experiment = type("E", (), {"classes": 9})()
    with pytest.raises(UserError, match="another number of classes"):
        p2.load_narrow(experiment, tmp_path / "narrow.pt")


def test_macs_equal_a_count_by_hand():
    network = summary.without_weights(lambda: efficientnet_v2_s(num_classes=102))
    macs = p2.count_macs(network, 64)
    assert macs["features.0"] == 32 * 32 * 24 * 3 * 9
    assert macs["features.1"] == 2 * 32 * 32 * 24 * 24 * 9
    assert macs["features.7"] == 2 * 2 * 256 * 1280
    assert macs["classifier"] == 1280 * 102
    # torchvision's own figure for EfficientNetV2-S at 384 px is 8.366 GMACs.
    whole = summary.without_weights(lambda: efficientnet_v2_s(num_classes=1000))
    assert sum(p2.count_macs(whole, 384).values()) / 1e9 == pytest.approx(8.366, abs=0.05)
