import csv
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torchvision.models.resnet import BasicBlock

import problem3_resnet36 as p3
from common.data import flowers, manifest
from common.networks import activations, summary, timing
from common.networks.resnet36 import ResidualBlock

# ------------------------------------------------------------------------------- 3.1 the data set


def test_the_catalogue_and_the_manifest_are_the_files(parts_of, class_folders, tmp_path):
    parts, _, _ = parts_of(p3, "3.1", "--data", class_folders, "--per-class", 6)
    result = parts["3.1"]
    wanted = {"classes": 3, "images_per_class": 6, "total": 18, "train": 12, "val": 3, "test": 3}
    assert {key: result[key] for key in wanted} == wanted
    assert result["quarantined"] == result["left_out"] == []
    with (tmp_path / "out" / "problem3" / "3.1_manifest.csv").open() as file:
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
    draw = ("3.1", "--data", class_folders)
    assert run(p3, *draw, "--per-class", 6, "--out", tmp_path / "a")[0] == 0
    first = tmp_path / "a" / "problem3" / "3.1_manifest.csv"
    again = (*draw, "--manifest", first, "--out", tmp_path / "b")
    assert run(p3, *again)[0] == 0
    assert (tmp_path / "b" / "problem3" / "3.1_manifest.csv").read_bytes() == first.read_bytes()
    with first.open() as file:
        path = class_folders / next(csv.DictReader(file))["path"]
    path.write_bytes(path.read_bytes() + b"0")
    assert f"{path}: changed" in fails(p3, *again)


def test_allow_fewer_takes_smaller_classes_and_what_is_left_out_is_said(parts_of, class_folders):
    for image in range(4, 7):
        (class_folders / "odd" / f"{image}.png").rename(class_folders / "odd" / f"{image}.HEIC")
    flags = ("--data", class_folders, "--per-class", 6, "--allow-fewer")
    parts, out, err = parts_of(p3, "3.1", *flags)
    assert "4 - 6\n" in out
    wanted = {"classes": 3, "images_per_class": [4, 6], "total": 16}
    assert {key: parts["3.1"][key] for key in wanted} == wanted
    assert parts["3.1"]["left_out"][0].startswith("odd/4.HEIC: no image by its ending")
    assert err == f"left out 3 of {class_folders}: {'; '.join(parts['3.1']['left_out'])}\n"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ((), "part 3.1 needs --data"),
        (("--data", ".", "--diagnose"), "--diagnose runs part 3.4"),
        (("--data", "synthetic", "--classes", 103), "103"),
        (("--data", "nowhere"), "nowhere"),
        (("--data", ".", "--split", 0.7, 0.2, 0.2), "sum to 1"),
    ],
)
def test_bad_input_ends_in_one_line(fails, tmp_path, flags, told):
    assert told in fails(p3, "3.1", *flags, "--out", tmp_path)


def test_the_catalogue_of_the_reports_figure_20():
    """Its total is that of 312 classes of 600 images, not 500; its splits are 70, 15 and 15 %."""
    sizes = manifest.split_sizes(600, (0.7, 0.15, 0.15))
    assert 312 * sum(sizes) == 187_200 == 131_039 + 28_080 + 28_081
    assert [312 * size for size in sizes] == [131_039 + 1, 28_080, 28_081 - 1]
    assert 500 * sum(sizes) == 300_000


def test_the_embedded_data_is_drawn_once_and_said_to_be_embedded(parts_of, monkeypatch):
    flags = ("3.1", "--data", "synthetic", "--classes", 3, "--per-class", 4, "--image-size", 32)
    parts, out, _ = parts_of(p3, *flags)
    assert "EMBEDDED DRAWN FLOWERS, 3 classes" in out
    result = parts["3.1"]
    assert [result[key] for key in ("classes", "total", "train", "val", "test")] == [3, 12, 6, 3, 3]
    assert result["provenance"]["data"] == "EMBEDDED DRAWN FLOWERS, 3 classes"
    monkeypatch.setattr(flowers, "write_folders", None)
    assert parts_of(p3, *flags)[0].keys() == {"3.1"}


# -------------------------------------------------------------------------------- 3.2 the network


@pytest.fixture(scope="module")
def rows():
    tables = p3.summary_tables(summary.without_weights(p3.ResNet36))
    return {name: table.rows for name, table in tables.items()}


def test_36_weighted_layers_and_the_reports_parameters():
    for residual in p3.RESIDUALS:
        network = summary.without_weights(lambda where=residual: p3.ResNet36(residual=where))
        assert len(summary.weighted_layers(network, skip="shortcut")) == 36
        assert summary.count_parameters(network) == 79_942_964


def test_the_stem_is_the_reports_figure_22_row_by_row(rows):
    wanted = [
        ("Conv2d-1", [-1, 64, 220, 220], 9_408),
        ("BatchNorm2d-2", [-1, 64, 220, 220], 128),
        ("Conv2d-3", [-1, 128, 108, 108], 401_408),
        ("BatchNorm2d-4", [-1, 128, 108, 108], 256),
        ("MaxPool2d-5", [-1, 128, 54, 54], 0),
    ]
    assert rows["stem"] == rows["whole network"][:5] == wanted


def test_the_first_stage_is_the_reports_figure_23_row_by_row(rows):
    wanted, shape = [], [-1, 128, 54, 54]
    for _ in range(3):
        for _ in range(3):
            wanted.append((f"Conv2d-{len(wanted) + 1}", shape, 147_456))
            wanted.append((f"BatchNorm2d-{len(wanted) + 1}", shape, 256))
        wanted.append((f"ResidualBlock-{len(wanted) + 1}", shape, 0))
    assert rows["layer1"] == wanted


def test_the_last_stage_is_the_reports_figure_24_row_by_row(rows):
    wanted, shape = [], [-1, 1024, 7, 7]
    blocks = [[4_718_592, 9_437_184, 9_437_184, 524_288], [9_437_184] * 3]
    for convolutions in blocks:
        for parameters in convolutions:
            wanted.append((f"Conv2d-{len(wanted) + 1}", shape, parameters))
            wanted.append((f"BatchNorm2d-{len(wanted) + 1}", shape, 2_048))
        wanted.append((f"ResidualBlock-{len(wanted) + 1}", shape, 0))
    assert rows["layer4"] == wanted


def test_the_whole_is_the_stages_in_order(rows):
    whole = [(shape, count) for _, shape, count in rows["whole network"]]
    parts = [(shape, count) for name in rows for _, shape, count in rows[name]][: -len(whole)]
    assert whole[:-2] == parts
    assert whole[-2:] == [([-1, 1024, 1, 1], 0), ([-1, 500], 512_500)]
    assert sum(count for _, count in whole) == 79_942_964


@pytest.mark.parametrize("flag", ["--zero-init-residual", "--no-zero-init-residual"])
def test_the_flag_says_where_the_gammas_of_the_networks_trained_start(flag):
    args = p3.make_parser().parse_args(["3.4", flag, "--width", "0.0625"])
    starts_at_zero = not flag.startswith("--no-")
    for spec in p3.compared_networks(SimpleNamespace(args=args, classes=3)).values():
        network, identity = spec.build(0)
        kinds = (BasicBlock, ResidualBlock)
        blocks = [module for module in network.modules() if isinstance(module, kinds)]
        gammas = [getattr(block, "bn3", block.bn2).weight for block in blocks]
        assert len(gammas) == {"resnet34": 16}.get(spec.name, 11)
        assert [not gamma.any() for gamma in gammas] == [starts_at_zero] * len(gammas)
        assert identity["zero_init_residual"] is starts_at_zero


# ----------------------------------------------------------------------------- 3.3 the activation


@pytest.mark.parametrize("deviation", p3.DEVIATIONS)
def test_moments_in_closed_form_equal_numerical_integrals(deviation):
    x = torch.linspace(-12, 12, 480_001, dtype=torch.float64) * deviation
    density = torch.exp(-((x / deviation) ** 2) / 2) / (deviation * math.sqrt(2 * math.pi))
    for name, function in (("f", p3.where_form), ("ReLU", torch.relu)):
        y = function(x)
        mean = torch.trapezoid(y * density, x)
        variance = torch.trapezoid((y - mean) ** 2 * density, x)
        kurtosis = torch.trapezoid((y - mean) ** 4 * density, x) / variance**2
        wanted = {"mean": mean.item(), "variance": variance.item(), "kurtosis": kurtosis.item()}
        _, *powers = p3.POWERS[name]
        assert activations.power_moments(*powers, deviation) == pytest.approx(wanted, rel=1e-6)


def test_the_curves_are_the_reports_figure_25(monkeypatch):
    costs = {"seconds": dict.fromkeys(p3.FORMS, 1.0), "bytes": dict.fromkeys(p3.FORMS, 1)}
    monkeypatch.setattr(p3, "SAMPLES", 10)
    monkeypatch.setattr(timing, "compare_costs", lambda *_: costs)
    setup = SimpleNamespace(device=torch.device("cpu"), args=SimpleNamespace(seed=0))
    findings = p3.part_3_3(SimpleNamespace(setup=setup))
    drawn = findings.figures["3.3_activation.png"].keywords
    x, curves = drawn["x"], drawn["curves"]
    values, slopes = curves["f(x) = x^2, 0.2x"]
    torch.testing.assert_close(values, p3.where_form(x))
    torch.testing.assert_close(slopes, torch.where(x > 0, 2 * x, 0.2 * (x < 0)))
    torch.testing.assert_close(curves["ReLU"], (x.relu(), (x > 0).double()))


def test_the_networks_activations_are_timed_at_their_own_shapes():
    assert timing.output_shapes(p3.ResNet36(), "SquareLeaky", p3.REPORT_SIZE) == {
        (64, 220, 220): 1,
        (128, 108, 108): 1,
        (128, 54, 54): 6,
        (256, 27, 27): 6,
        (512, 14, 14): 6,
        (1024, 7, 7): 4,
    }


def test_f_holds_three_fifths_of_the_where_form():
    peaks = {}
    for name, form in p3.FORMS.items():
        x, gradient = torch.randn(8, 512, requires_grad=True), torch.ones(8, 512)
        with timing.PeakMemory() as memory:
            torch.autograd.grad(form(x), x, gradient)
        peaks[name] = memory.peak / (4 * x.numel())
    assert peaks == {"f": 3, "where": 5, "ReLU": 2}
