import csv
import json
import math
from collections import Counter

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

import problem3_resnet36 as p3
from common import summary
from common.experiment import count_parameters
from tests.conftest import picture


def where_form(x):
    return torch.where(x > 0, x * x, 0.2 * x)


# ------------------------------------------------------------------------------- 3.1 the data set


@pytest.fixture
def class_folders(tmp_path):
    root = tmp_path / "classes"
    for number, class_id in enumerate(("n01440764", "n02102040", "odd")):
        (root / class_id).mkdir(parents=True)
        for image in range(7):
            path = root / class_id / f"{image}.png"
            Image.fromarray(picture(10 * number + image)).save(path)
    return root


def test_the_catalogue_and_the_manifest_are_the_files(run, class_folders, tmp_path):
    code, _, err = run(p3, "3.1", "--data", class_folders, "--per-class", 6, "--out", tmp_path)
    assert code == 0, err
    found = json.loads((tmp_path / "problem3" / "results.json").read_text())["parts"]["3.1"]
    wanted = {"classes": 3, "images_per_class": 6, "total": 18, "train": 12, "val": 3, "test": 3}
    assert {key: found[key] for key in wanted} == wanted
    assert found["quarantined"] == []
    with (tmp_path / "problem3" / "3.1_manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert Counter(row["class_name"] for row in rows) == {
        "tench, Tinca tinca": 6,
        "English springer, English springer spaniel": 6,
        "odd": 6,
    }
    assert all((class_folders / row["path"]).is_file() for row in rows)


def test_a_manifest_gives_the_same_data_set_and_finds_a_changed_file(
    run, fails, class_folders, tmp_path
):
    draw = ("3.1", "--data", class_folders, "--per-class", 6)
    assert run(p3, *draw, "--out", tmp_path / "a")[0] == 0
    first = tmp_path / "a" / "problem3" / "3.1_manifest.csv"
    again = (*draw, "--manifest", first, "--out", tmp_path / "b")
    assert run(p3, *again)[0] == 0
    assert (tmp_path / "b" / "problem3" / "3.1_manifest.csv").read_bytes() == first.read_bytes()
    with first.open() as file:
        path = class_folders / next(csv.DictReader(file))["path"]
    path.write_bytes(path.read_bytes() + b"0")
    assert f"{path}: changed" in fails(p3, *again)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ((), "part 3.1 needs --data DIR"),
        (("--data", "nowhere"), "nowhere"),
        (("--data", ".", "--split", 0.7, 0.2, 0.2), "sum to 1"),
    ],
)
def test_bad_input_ends_in_one_line(fails, tmp_path, flags, told):
    assert told in fails(p3, "3.1", *flags, "--out", tmp_path)


# -------------------------------------------------------------------------------- 3.2 the network


@pytest.fixture(scope="module")
def rows():
    network = summary.without_weights(p3.ResNet36)
    return summary.layer_rows(summary.summary_table(network, (3, 224, 224)))


def test_36_weighted_layers_and_the_reports_parameters():
    for residual in p3.RESIDUALS:
        network = summary.without_weights(lambda where=residual: p3.ResNet36(residual=where))
        assert len(p3.weighted_layers(network)) == 36
        assert count_parameters(network) == 79_942_964


def test_the_stem_is_the_reports_figure_22_row_by_row(rows):
    assert rows[:5] == [
        ("Conv2d-1", [-1, 64, 220, 220], 9_408),
        ("BatchNorm2d-2", [-1, 64, 220, 220], 128),
        ("Conv2d-3", [-1, 128, 108, 108], 401_408),
        ("BatchNorm2d-4", [-1, 128, 108, 108], 256),
        ("MaxPool2d-5", [-1, 128, 54, 54], 0),
    ]


def stage_rows(stage, *size):
    return summary.layer_rows(summary.summary_table(stage, size))


def test_the_first_stage_is_the_reports_figure_23_row_by_row():
    wanted, shape = [], [-1, 128, 54, 54]
    for _ in range(3):
        for _ in range(3):
            wanted.append((f"Conv2d-{len(wanted) + 1}", shape, 147_456))
            wanted.append((f"BatchNorm2d-{len(wanted) + 1}", shape, 256))
        wanted.append((f"ResidualBlock-{len(wanted) + 1}", shape, 0))
    network = summary.without_weights(p3.ResNet36)
    assert stage_rows(network.layer1, 128, 54, 54) == wanted


def test_the_last_stage_is_the_reports_figure_24_row_by_row():
    wanted, shape = [], [-1, 1024, 7, 7]
    blocks = [[4_718_592, 9_437_184, 9_437_184, 524_288], [9_437_184] * 3]
    for convolutions in blocks:
        for parameters in convolutions:
            wanted.append((f"Conv2d-{len(wanted) + 1}", shape, parameters))
            wanted.append((f"BatchNorm2d-{len(wanted) + 1}", shape, 2_048))
        wanted.append((f"ResidualBlock-{len(wanted) + 1}", shape, 0))
    network = summary.without_weights(p3.ResNet36)
    assert stage_rows(network.layer4, 512, 14, 14) == wanted


def test_the_branch_leaves_the_sum_alone_and_the_reports_form_does_not():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6)
    for residual in p3.RESIDUALS:
        block = p3.ResidualBlock(4, 4, 1, p3.square_leaky, residual).eval()
        nn.init.zeros_(block.bn3.weight)
        wanted = x if residual == "branch" else where_form(x)
        torch.testing.assert_close(block(x), wanted)


def test_width_scales_every_stage():
    network = p3.ResNet36(classes=3, width=1 / 16)
    channels = [network.conv1.out_channels, network.conv2.out_channels]
    stages = (network.layer1, network.layer2, network.layer3, network.layer4)
    channels += [stage[-1].conv3.out_channels for stage in stages]
    assert channels == [4, 8, 8, 16, 32, 64]
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 3)


# ----------------------------------------------------------------------------- 3.3 the activation


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_value_and_gradient_equal_the_where_form(dtype):
    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(2, 5, 7, 3, generator=generator)).to(dtype)
    x[0, 0, 0] = torch.tensor([0.0, -0.0, 1.0])
    x = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(p3.square_leaky(x), where_form(x))
    assert p3.square_leaky(x).is_contiguous(memory_format=torch.channels_last)
    away = x != 0
    slopes = torch.where(x > 0, 2 * x, torch.tensor(0.2, dtype=dtype))
    assert torch.equal(p3.derivative(p3.square_leaky, x)[away], slopes[away])


def test_first_and_second_derivative_are_right_to_gradcheck():
    x = torch.tensor([-2.0, -0.5, 0.3, 1.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(p3.square_leaky, x)
    assert torch.autograd.gradgradcheck(p3.square_leaky, x)


def test_nan_infinities_and_nothing_pass_through():
    x = torch.tensor([math.nan, math.inf, -math.inf])
    assert p3.square_leaky(x).isnan().tolist() == [True, False, False]
    assert p3.square_leaky(x)[1:].tolist() == [math.inf, -math.inf]
    empty = torch.empty(0, 3, requires_grad=True)
    p3.square_leaky(empty).sum().backward()
    assert empty.grad.shape == (0, 3)


def test_one_tensor_of_the_inputs_size_is_kept_for_the_backward_pass():
    x, kept = torch.randn(64, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda y: y):
        p3.square_leaky(x)
    assert [(one.shape, one.dtype) for one in kept] == [(x.shape, x.dtype)]


@pytest.mark.parametrize("deviation", p3.DEVIATIONS)
def test_moments_in_closed_form_equal_numerical_integrals(deviation):
    x = torch.linspace(-12, 12, 480_001, dtype=torch.float64) * deviation
    density = torch.exp(-((x / deviation) ** 2) / 2) / (deviation * math.sqrt(2 * math.pi))
    for name, function in (("f", where_form), ("ReLU", functional.relu)):
        y = function(x)
        mean = torch.trapezoid(y * density, x)
        variance = torch.trapezoid((y - mean) ** 2 * density, x)
        kurtosis = torch.trapezoid((y - mean) ** 4 * density, x) / variance**2
        wanted = {"mean": mean.item(), "variance": variance.item(), "kurtosis": kurtosis.item()}
        assert p3.moments_in_closed_form(deviation)[name] == pytest.approx(wanted, rel=1e-6)
