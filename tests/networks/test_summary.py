import torch
from torchvision.models import vgg16

from common import summary


def figure_4():
    """The report's Figure 4 at 244 px, its 2,359,080 put right as 2,359,808."""
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
    rows = summary.layer_rows(table)
    assert len(rows) == 39
    assert rows == figure_4()
    assert "Total params: 138,357,544" in table
    assert sum(parameters for _, _, parameters in rows) == 138_357_544


def test_the_model_keeps_its_mode_and_hooks():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).train()
    before = model[1].running_mean.clone()
    table = summary.summary_table(model, (3, 8, 8))
    assert summary.layer_rows(table) == [
        ("Conv2d-1", [-1, 4, 6, 6], 112),
        ("BatchNorm2d-2", [-1, 4, 6, 6], 8),
    ]
    assert model.training
    assert torch.equal(model[1].running_mean, before)
    assert not model[0]._forward_hooks
