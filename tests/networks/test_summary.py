import pytest
import torchsummary
from torchvision.models import efficientnet_v2_s, vgg16

from common.networks import summary
from tests.faults import tiny


def figure_4():
    """The report's Figure 4 at 244 px, with its 2,359,080 corrected to 2,359,808."""
    rows, number = [], 0

    def add(kind, shape, parameters=0):
        nonlocal number
        number += 1
        rows.append((f"{kind}-{number}", [-1, *shape], parameters))

    blocks = [
        (64, 244, [1_792, 36_928]),
        (128, 122, [73_856, 147_584]),
        (256, 61, [295_168, 590_080, 590_080]),
        (512, 30, [1_180_160, 2_359_808, 2_359_808]),
        (512, 15, [2_359_808, 2_359_808, 2_359_808]),
    ]
    for channels, side, parameters in blocks:
        for count in parameters:
            add("Conv2d", (channels, side, side), count)
            add("ReLU", (channels, side, side))
        add("MaxPool2d", (channels, side // 2, side // 2))
    add("AdaptiveAvgPool2d", (512, 7, 7))
    add("Linear", (4096,), 102_764_544)
    add("ReLU", (4096,))
    add("Dropout", (4096,))
    add("Linear", (4096,), 16_781_312)
    add("ReLU", (4096,))
    add("Dropout", (4096,))
    add("Linear", (1000,), 4_097_000)
    return rows


def test_vgg16_table_is_the_reports_figure_4_row_by_row():
    table = summary.summary_table(summary.without_weights(vgg16), (3, 244, 244))
    assert len(table.rows) == 39
    assert table.rows == figure_4()
    assert "Total params: 138,357,544" in str(table)


@pytest.mark.parametrize("build", [tiny.small_efficientnet, tiny.SmallResNet])
def test_a_table_is_the_one_that_torchsummary_prints(build, capsys):
    network = build(num_classes=7).eval()
    torchsummary.summary(network, (3, 40, 56), device="cpu")
    assert str(summary.summary_table(network, (3, 40, 56))) == capsys.readouterr().out


def test_macs_equal_a_count_by_hand():
    stages = [*(f"features.{k}" for k in range(8)), "classifier"]
    network = summary.without_weights(lambda: efficientnet_v2_s(num_classes=102)).train()
    macs = summary.count_macs(network, 64, stages)
    assert macs["features.0"] == 32 * 32 * 24 * 3 * 9
    assert macs["features.1"] == 2 * 32 * 32 * 24 * 24 * 9
    assert macs["features.7"] == 2 * 2 * 256 * 1280
    assert macs["classifier"] == 1280 * 102
    assert network.training
    # torchvision's own figure for EfficientNetV2-S at 384 px is 8.366 GMACs.
    whole = summary.without_weights(lambda: efficientnet_v2_s(num_classes=1000))
    giga_macs = sum(summary.count_macs(whole, 384, stages).values()) / 1e9
    assert giga_macs == pytest.approx(8.366, abs=0.05)
