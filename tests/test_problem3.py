import csv
import json
import math
from collections import Counter
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

import problem3_resnet36 as p3
from common.data import flowers, manifest
from common.networks import activations, doctor, summary, timing
from common.networks.normalized import seeded
from common.networks.resnet36 import ResidualBlock
from common.reporting import problem3
from common.studies import divergence
from common.training import loop, runs
from common.training.checkpoint import load_checkpoint
from common.training.precision import Precision
from tests.conftest import picture

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
    result = json.loads((tmp_path / "problem3" / "results.json").read_text())["parts"]["3.1"]
    wanted = {"classes": 3, "images_per_class": 6, "total": 18, "train": 12, "val": 3, "test": 3}
    assert {key: result[key] for key in wanted} == wanted
    assert result["quarantined"] == result["left_out"] == []
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
    draw = ("3.1", "--data", class_folders)
    assert run(p3, *draw, "--per-class", 6, "--out", tmp_path / "a")[0] == 0
    first = tmp_path / "a" / "problem3" / "3.1_manifest.csv"
    again = (*draw, "--manifest", first, "--out", tmp_path / "b")
    told = fails(p3, *again, "--split", 0.6, 0.2, 0.2)
    assert "--split: --manifest says what was drawn" in told
    assert run(p3, *again)[0] == 0
    assert (tmp_path / "b" / "problem3" / "3.1_manifest.csv").read_bytes() == first.read_bytes()
    with first.open() as file:
        path = class_folders / next(csv.DictReader(file))["path"]
    path.write_bytes(path.read_bytes() + b"0")
    assert f"{path}: changed" in fails(p3, *again)


def test_what_is_left_out_is_counted_on_one_line(run, class_folders, tmp_path):
    (class_folders / "empty").mkdir()
    for name in ("IMG_1.HEIC", "._1.png", "7.png"):
        (class_folders / "odd" / name).write_text("no image")
    code, _, err = run(p3, "3.1", "--data", class_folders, "--per-class", 7, "--out", tmp_path)
    left_out = [
        "odd/._1.png: hidden",
        "odd/IMG_1.HEIC: no image by its ending; rename or convert it",
        "empty: 0 images, not 7",
    ]
    result = json.loads((tmp_path / "problem3" / "results.json").read_text())["parts"]["3.1"]
    assert result["left_out"] == left_out
    assert result["quarantined"][0].startswith("odd/7.png: not an image that Pillow can read")
    told = f"{'; '.join(left_out)}; and 1 more, see results.json"
    assert (code, err) == (0, f"left out 4 of {class_folders}: {told}\n")


def test_allow_fewer_takes_smaller_classes_too(run, class_folders, tmp_path):
    for image in range(4, 7):
        (class_folders / "odd" / f"{image}.png").unlink()
    draw = ("3.1", "--data", class_folders, "--per-class", 6, "--out")
    seen = {}
    for flags in ((), ("--allow-fewer",)):
        code, out, err = run(p3, *draw, tmp_path / "out", *flags)
        assert code == 0, err
        assert ("4 - 6\n" in out) == bool(flags)
        results = json.loads((tmp_path / "out" / "problem3" / "results.json").read_text())
        keys = ("classes", "images_per_class", "total")
        seen[flags] = [results["parts"]["3.1"][key] for key in keys]
    assert seen == {(): [2, 6, 12], ("--allow-fewer",): [3, [4, 6], 16]}


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ((), "part 3.1 needs --data DIR"),
        (("--image-size", 16), "--image-size: '16' is not a whole number of 32 or more"),
        (("--data", ".", "--diagnose"), "--diagnose is of part 3.4"),
        (("--data", "synthetic", "--classes", 103), "103"),
        (("--data", "nowhere"), "nowhere"),
        (("--data", ".", "--split", 0.7, 0.2, 0.2), "sum to 1"),
    ],
)
def test_bad_input_ends_in_one_line(fails, tmp_path, flags, told):
    assert told in fails(p3, "3.1", *flags, "--out", tmp_path)


def test_the_catalogue_of_the_reports_figure_20():
    """312 classes of 600 images, not 500, make its total; its splits are 70, 15 and 15 %."""
    sizes = manifest.split_sizes(600, (0.7, 0.15, 0.15))
    assert sizes == [420, 90, 90]
    assert 312 * sum(sizes) == 187_200 == 131_039 + 28_080 + 28_081
    assert [312 * size for size in sizes] == [131_039 + 1, 28_080, 28_081 - 1]
    assert 500 * sum(sizes) == 300_000


def test_the_embedded_data_is_drawn_once_and_said_to_be_embedded(run, tmp_path, monkeypatch):
    flags = ("3.1", "--data", "synthetic", "--classes", 3, "--per-class", 4, "--image-size", 32)
    folders = ("--out", tmp_path / "out", "--cache", tmp_path / "cache")
    code, out, err = run(p3, *flags, *folders)
    assert code == 0, err
    assert "EMBEDDED DRAWN FLOWERS, 3 classes" in out
    results = json.loads((tmp_path / "out" / "problem3" / "results.json").read_text())
    result = results["parts"]["3.1"]
    assert [result[key] for key in ("classes", "total", "train", "val", "test")] == [3, 12, 6, 3, 3]
    assert result["provenance"]["data"] == "EMBEDDED DRAWN FLOWERS, 3 classes"
    monkeypatch.setattr(flowers, "write_folders", None)
    assert run(p3, *flags, *folders)[0] == 0


# -------------------------------------------------------------------------------- 3.2 the network


@pytest.fixture(scope="module")
def rows():
    tables = p3.summary_tables(summary.without_weights(p3.ResNet36))
    return {name: summary.layer_rows(table) for name, table in tables.items()}


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
    monkeypatch.setattr(activations, "compare_costs", lambda *_: costs)
    setup = SimpleNamespace(device=torch.device("cpu"), args=SimpleNamespace(seed=0))
    findings = p3.part_3_3(SimpleNamespace(setup=setup))
    drawn = findings.figures["3.3_activation.png"].keywords
    x, curves = drawn["x"], drawn["curves"]
    values, slopes = curves["f(x) = x^2, 0.2x"]
    torch.testing.assert_close(values, p3.where_form(x))
    torch.testing.assert_close(slopes, torch.where(x > 0, 2 * x, 0.2 * (x < 0)))
    torch.testing.assert_close(curves["ReLU"], (x.relu(), (x > 0).double()))


def test_the_networks_activations_are_timed_at_their_own_shapes():
    assert activations.output_shapes(p3.ResNet36, p3.SquareLeaky, p3.REPORT_SIZE) == {
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


# -------------------------------------------------------------------------------- 3.4 training


def test_resnet_34_with_f_has_no_relu_left():
    network = p3.resnet34_with(p3.SquareLeaky, classes=3, seed=0)
    kinds = Counter(type(module) for module in network.modules())
    assert (kinds[p3.SquareLeaky], kinds[nn.ReLU]) == (17, 0)


TINY = (
    *("--image-size", 32, "--width", 1 / 16, "--batch-size", 4, "--epochs", 2),
    *("--precision", "fp32", "--steps", 6, "--per-class", 7),
)


@pytest.fixture
def tiny_run(run, class_folders, tmp_path, monkeypatch):
    """Part 3.4 at 32 px, with a shorter network in ResNet-34's place."""
    monkeypatch.setattr(p3, "resnet34", partial(ResNet, BasicBlock, [1, 1, 1, 1]))

    def run_tiny(*argv, out="out", code=0, folder="problem3"):
        folders = ("--out", tmp_path / out, "--cache", tmp_path / "cache")
        ended, printed, err = run(p3, "3.4", "--data", class_folders, *TINY, *folders, *argv)
        assert ended == code, err
        path = tmp_path / out / folder / "results.json"
        part = json.loads(path.read_text())["parts"].get("3.4") if path.exists() else None
        return part, printed, err

    return run_tiny


def test_three_networks_see_the_same_images_and_are_tested_once(tiny_run, monkeypatch):
    seen, tested = {}, []
    step, test = loop._loss, loop.evaluate

    def keep(forward, images, targets, batch_size, run):
        seen.setdefault(id(run), []).append((images.clone(), targets.clone()))
        alive.append(run)  # a run that is alive keeps its id
        return step(forward, images, targets, batch_size, run)

    def count(network, split, *others):
        tested.append(split.source.name)
        return test(network, split, *others)

    alive = []
    monkeypatch.setattr(p3, "single_changes", lambda _: {"none": ({}, {}), p3.BRANCH: ({}, {})})
    monkeypatch.setattr(loop, "_loss", keep)
    monkeypatch.setattr(loop, "evaluate", count)
    part, printed, _ = tiny_run()
    names = ["resnet34", "resnet36", "resnet36_relu_stem", "resnet36_relu"]
    assert sorted(part["networks"]) == sorted(names)
    assert [(row["a"], row["b"]) for row in part["differences"]] == [
        (name, "resnet36_relu") for name in names[:-1]
    ]
    for network in part["networks"].values():
        assert [row["epoch"] for row in network["epochs"]] == [1, 2]
        assert all(math.isfinite(row["train_loss"]) for row in network["epochs"])
        assert network["test_top1_low"] <= network["test_top1"] <= network["test_top1_high"]
    assert tested.count("prototype test") == 4
    first, *others = [batches[:8] for batches in seen.values()][:4]  # 15 images: 4 steps an epoch
    assert len(first) == 8
    for other in others:
        for (a, b), (c, d) in zip(first, other, strict=True):
            assert torch.equal(a, c)
            assert torch.equal(b, d)
    assert "ResNet-36 0.0625 TIMES AS WIDE" in printed
    error = tiny_run("--no-zero-init-residual", code=2)[2]
    told = "resnet34-2epochs-seed0/last.pt is of another run: zero_init_residual True (now False)"
    assert told in error


def test_finished_runs_keep_their_precision_in_what_is_told_and_followed(
    tiny_run, tmp_path, monkeypatch
):
    quick = ("--epochs", 1, "--steps", 2)
    monkeypatch.setattr(p3, "single_changes", lambda _: {"none": ({}, {}), p3.BRANCH: ({}, {})})
    part, _, _ = tiny_run(*quick)
    monkeypatch.setattr(runs, "choose_precision", lambda *_: Precision("bf16", "in this call"))
    again, _, _ = tiny_run(*quick, "--precision", "auto")
    assert again["provenance"]["precision"]["chosen"] == "bf16"
    assert again["recipe"] == part["recipe"]
    assert again["recipe"]["precision"] == "fp32"
    assert again["beyond_range"] == part["beyond_range"]
    folder = tmp_path / "out" / "problem3"
    assert "32 px, fp32, cpu" in (folder / "3.4_forecast.txt").read_text()
    diagnosed, _, _ = tiny_run(
        *quick, "--precision", "auto", "--diagnose", folder="problem3/diagnose"
    )
    assert diagnosed["recipe"]["precision"] == "bf16"


def test_the_report_diverges_where_the_doctor_says_and_the_branch_does_not(tiny_run, tmp_path):
    part, _, err = tiny_run("--diagnose", folder="problem3/diagnose")
    assert part["networks"] == {}
    assert err == ""
    assert not (tmp_path / "out" / "problem3" / "results.json").exists()
    where = part["divergence"]
    assert where["network"] == "resnet36_sum"
    changes = {row["change"]: row for row in part["single_changes"]}
    assert next(iter(changes)) == "none"
    assert changes["none"]["diverged_at_step"] == where["step"] == changes["none"]["steps"] + 1
    assert changes["f inside the branch alone"]["diverged_at_step"] is None
    assert changes["f inside the branch alone"]["steps"] == 6
    assert len(changes) == 10
    assert len(part["not_single_changes"]) == 2
    assert list(part["beyond_range"]) == ["resnet36_sum", "resnet36_report_recipe", "resnet36"]
    beyond = part["beyond_range"]["resnet36_sum"]
    assert beyond["fp16"]["step"] <= beyond["bf16"]["step"] <= beyond["fp32"]["step"]
    assert beyond["fp32"] == {key: where[key] for key in ("step", "module", "direction")}
    assert "fp32" not in part["beyond_range"]["resnet36_report_recipe"]
    rows_path = tmp_path / "out" / "problem3" / "diagnose" / "3.4_doctor_resnet36_sum.csv"
    with rows_path.open() as file:
        rows = list(csv.DictReader(file))
    # Tables can be made again from results.json.
    about = (doctor.RANGES, p3.LAST_STEPS, p3.REPORT_RECIPE, "", "")
    tables = problem3.doctor_tables(part, *about)
    for name in ("3.4_doctor.txt", "3.4_single_changes.txt"):
        written = (rows_path.parent / name).read_text().splitlines()
        assert tables[name].splitlines()[-10:] == written[-10:]
    first = [row for row in rows if row["step"] == "1" and row["direction"] == "output"]
    assert {"conv1", "layer1.0.activation1", "layer4.1", "fc"} <= {row["module"] for row in first}
    gradients = {row["module"] for row in rows if row["direction"] == "gradient"}
    assert {"fc", "fc.weight", "layer1.0.activation1", "layer1.0.bn1.bias"} <= gradients
    assert max(int(row["step"]) for row in rows) == where["step"]


def test_training_the_reports_form_is_warned_of_and_then_stops(tiny_run):
    flags = ("--residual", "sum", "--stem", "f,f", "--optimizer", "sgd", "--lr", 1)
    part, printed, err = tiny_run(*flags, code=2)
    assert part is None
    assert "fp32, cpu, f AFTER THE SUM, ResNet-36 0.0625 TIMES AS WIDE" in printed
    *warnings, error = err.splitlines()
    # Beside the report's network of the same name, which starts and is trained differently.
    names = ["resnet36_sum_flags_recipe", "resnet36_relu_stem_sum"]
    for warning, name in zip(warnings, names, strict=True):
        assert warning.startswith(f"warning: overflow forecast: {name} starts with values up to")
    assert "resnet36_sum-2epochs-seed0: " in printed
    assert "non-finite" in error


def test_a_run_stopped_and_resumed_equals_an_uninterrupted_one(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(divergence, "follow_all", stop)
    tiny_run(out="whole", code=130)
    step, taken = loop.train_step, []

    def interrupted(*args):
        taken.append(args)
        if len(taken) == 14:  # in the second epoch of the second network
            raise KeyboardInterrupt
        return step(*args)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_step", interrupted)
        tiny_run("--checkpoint-seconds", 0, out="stopped", code=130)
    tiny_run(out="stopped", code=130)
    whole, weights = tmp_path / "whole", "problem3/runs/*/*.pt"
    files = sorted(path.relative_to(whole) for path in whole.glob(weights))
    assert len(files) == 8
    for file in files:
        a, b = (
            load_checkpoint(tmp_path / run / file, torch.device("cpu"))["network"]
            for run in ("whole", "stopped")
        )
        assert all(torch.equal(a[name], b[name]) for name in a), file


def stop(*_args, **_options):
    raise KeyboardInterrupt


def test_the_forecast_is_what_the_first_step_puts_out_and_leaves_no_trace():
    network = seeded(lambda: p3.ResNet36(3, residual="sum", width=1 / 16), 0)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    outputs = doctor.forecast(network, images)
    blocks = [*doctor.summarise(outputs, p3.BLOCK)["blocks"]]
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    logits = network(images)
    assert outputs["fc"]["peak"] == logits.abs().max().item()
    assert outputs["fc"]["std"] == pytest.approx(logits.std(correction=0).item(), rel=1e-5)
    assert (blocks[:2], blocks[-1], len(blocks)) == (["maxpool", "layer1.0"], "fc", 13)
    assert [*outputs][:4] == ["conv1", "bn1", "activation1", "conv2"]
    assert outputs["layer1.0"] == outputs["layer1.0.activation3"]


def test_the_words_of_a_recipe_are_made_of_its_fields():
    words = "SGD with Nesterov momentum 0.9, learning rate 0.1, fp32, no warm-up, no clipping"
    assert problem3.recipe_words(p3.REPORT_RECIPE) == words
    changed = {"optimizer": "adamw", "precision": "bf16", "warmup_epochs": 2, "clip_norm": 1.0}
    words = "AdamW, learning rate 0.1, bf16, 2 epochs of warm-up, gradients clipped to norm 1"
    assert problem3.recipe_words({**p3.REPORT_RECIPE, **changed}) == words
