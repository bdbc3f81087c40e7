import io
import json
import shutil
import sys
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch

import problem2_flowers as p2
from common import errors
from common.data.sets import DrawnSet
from common.errors import UserError
from common.networks.summary import count_parameters
from common.studies import baselines
from common.training import parallel, runs
from common.training.precision import Precision
from tests.faults import tiny

QUICK = (
    *("--data", "synthetic", "--classes", 3, "--images-per-class", 4, "--image-size", 32),
    *("--epochs", 1, "--batch-size", 12, "--precision", "fp32"),
)
TINY = (*QUICK[:-4], "--batch-size", 6, "--seeds", 2, "--precision", "fp32")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Run parts 2.1 and 2.2 with two seeds of a small network: (folder, stdout)."""

    def no_weights(*_, **__):
        raise UserError("VGG-16 takes a test ten seconds")

    folder = tmp_path_factory.mktemp("trained")
    words = ("2.1", "2.2", *TINY, "--out", folder / "out", "--cache", folder / "cache")
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(io.StringIO()) as out:
        tiny.use_small_networks(patched.setattr)
        patched.setattr(baselines, "load_vgg16", no_weights)
        patched.setattr(sys, "argv", ["problem2_flowers.py", *map(str, words)])
        assert errors.guard(p2.main) == 0
    return folder, out.getvalue()


def test_parts_2_1_and_2_2_on_embedded_flowers(trained):
    folder, out = trained[0] / "out" / "problem2", trained[1]
    parts = json.loads((folder / "results.json").read_text())["parts"]
    train = parts["2.1"]["splits"]["train"]
    assert (train["images"], train["classes"]) == (12, 3)
    drawn = DrawnSet("train", 12, 3, seed=0)
    assert sum(count for *_, count in train["top_resolutions"]) == 12
    assert train["resolutions"] == len({drawn.size(index) for index in range(12)})
    result = parts["2.2"]
    assert result["parameters"] == count_parameters(tiny.small_efficientnet(num_classes=3))
    assert [run["seed"] for run in result["runs"]] == [0, 1]
    assert [len(run["history"]) for run in result["runs"]] == [1, 1]
    for run in result["runs"]:
        assert run["test_top1_low"] <= run["test_top1"] <= run["test_top1_high"]
        assert run["test_top1"] * 12 / 100 == pytest.approx(round(run["test_top1"] * 12 / 100))
        assert run["val_top1"] == max(row["val_top1"] for row in run["history"])
    assert result["test_top1"] == np.mean([run["test_top1"] for run in result["runs"]])
    beside = result["baselines"]
    assert {"chance", "colour, nearest neighbour", "colour, ridge"} <= set(beside)
    assert {"HOG, nearest neighbour", "HOG, ridge"} <= set(beside)
    assert "EMBEDDED DRAWN FLOWERS" in result["provenance"]["data"]
    tables = [path for path in folder.glob("*.txt") if path.name != "2.2_summary.txt"]
    assert len(tables) == 3
    for path in tables:
        assert "EMBEDDED DRAWN FLOWERS" in path.read_text(), path
    told = (folder / "2.2_training.txt").read_text()
    assert all(f"\n{name}  " in told for name in beside)
    last_lines = (folder / "2.2_summary.txt").read_text().rstrip().splitlines()[-7:]
    assert "\n".join(last_lines) in out
    for name in ("2.1_samples", "2.1_class_counts", "2.1_resolutions_val", "2.2_curves"):
        assert (folder / f"{name}.png").stat().st_size > 10_000


@pytest.mark.usefixtures("small_networks")
def test_a_finished_run_keeps_its_precision_in_the_recipe_that_is_told(
    trained, parts_of, monkeypatch, tmp_path
):
    shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True)
    before = json.loads((tmp_path / "out" / "problem2" / "results.json").read_text())
    monkeypatch.setattr(runs, "choose_precision", lambda *_: Precision("bf16", "in this call", 9))
    monkeypatch.setattr(p2.baselines, "baselines", lambda _: {})
    parts, out, _ = parts_of(p2, "2.2", *TINY[:-2], "--precision", "auto")
    assert "fp32" in out
    assert parts["2.2"]["provenance"]["precision"]["chosen"] == "bf16"
    assert parts["2.2"]["recipe"] == before["parts"]["2.2"]["recipe"]
    assert parts["2.2"]["recipe"]["precision"] == "fp32"


@pytest.mark.usefixtures("small_networks")
def test_parts_2_3_2_5_and_2_6_share_runs_and_refuse_other_first_weights(parts_of, fails, tmp_path):
    looked_at = ("--layer", tiny.LAYER, "--pointing-images", 5, "--images", 2, "--curve-images", 4)
    parts, out, _ = parts_of(p2, "2.3", "2.5", "2.6", *looked_at, "--noise", "gaussian", *QUICK)
    continued = "efficientnet_v2_s_continued"
    names = ["efficientnet_v2_s", "wide_1.1", "wide_1.1_from_narrow", "noise_block"]
    for name in (*names, continued):
        assert out.count(f"\n{name}-1epochs-seed0: ") == 1
        about = torch.load(next(tmp_path.rglob(f"{name}-1*/best.pt")), weights_only=True)["about"]
        assert ("stages" in about) == (name not in (continued, names[2]))  # those keep their size
    assert list(parts["2.3"]["runs"]) == [*names[:2], continued, names[2]]
    compared = [(row["a"], row["b"]) for row in parts["2.3"]["differences"]]
    assert compared == [(names[1], names[0]), (names[2], continued), (continued, names[0])]
    assert parts["2.5"]["differences"][0]["low"] <= parts["2.5"]["differences"][0]["high"]
    assert parts["2.3"]["max_logit_difference"] < 1e-4
    assert parts["2.3"]["parameters"] / parts["2.3"]["parameters_narrow"] > 1.05
    without, with_block = (parts["2.5"]["runs"][name] for name in (names[0], names[3]))
    assert without == parts["2.3"]["runs"][names[0]]
    difference = with_block["test_top1"] - without["test_top1"]
    assert parts["2.5"]["differences"][0]["mean"] == pytest.approx(difference)
    assert parts["2.5"]["noise_block"]["kind"] == "gaussian"
    seen, networks = parts["2.6"], [*names[:2], names[3]]
    assert seen["maps"] == 5
    assert list(seen["pointing_game"]) == [*networks, "random_weights", "chance", "centre"]
    assert list(seen["all_zero_maps"]) == networks
    assert len(seen["images"]["right"]) <= 2
    assert seen["pointing_game_off_centre"]["centre"] in (0, None)
    assert seen["maps_off_centre"] == round(5 - seen["pointing_game"]["centre"] * 5 / 100)
    assert seen["curve_images"] == 4
    maps = ["grad_cam", "random", "centred"]
    for kind in ("deletion", "insertion"):
        assert list(seen[kind]) == [*maps, "differences"]
        grad_cam, *controls = (seen[kind][name] for name in maps)
        assert len({tuple(row["curve"])[-1] for row in (grad_cam, *controls)}) == 1
        for control, difference in zip(controls, seen[kind]["differences"], strict=True):
            assert difference["mean"] == pytest.approx(grad_cam["mean"] - control["mean"])
            assert difference["low"] <= difference["mean"] <= difference["high"]
    folder = tmp_path / "out" / "problem2"
    written = {path.name for path in folder.iterdir()}
    assert {"2.3_stages.txt", "2.5_noise_block.png", "2.6_pointing_game.txt"} <= written
    assert {"2.6_faithfulness.txt", "2.6_faithfulness.png"} <= written
    other = folder / "runs" / "noise_block-1epochs-seed0" / "best.pt"
    folders = ("--out", tmp_path / "out", "--cache", tmp_path / "cache")
    message = fails(p2, "2.3", *QUICK, *folders, "--from-narrow", other)
    assert f"{continued}-1epochs-seed0/best.pt belongs to another run: narrow" in message
    assert "noise_block" in fails(p2, "2.5", *QUICK, *folders)  # the noise is uniform again


@pytest.mark.usefixtures("small_networks")
def test_part_2_4_compares_the_modes_by_seed_and_image(parts_of, monkeypatch, tmp_path):
    def launch(_processes, _function, setup, spec):
        of_one = runs.train_seeds(setup, spec)
        return [[{**run, "hits": "0" * 12, "test_top1": 0.0} for run in of_one]]

    monkeypatch.setattr(parallel, "launch", launch)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    parts, out, _ = parts_of(p2, "2.4", "--seeds", 2, "--device", "cpu", *QUICK)
    single, copied, spread = parts["2.4"]["runs"]
    assert [row.get("processes") for row in (single, copied, spread)] == [1, None, 2]
    assert spread["threads"] == 2 * single["threads"]
    assert single["seeds"] == spread["seeds"] == 2
    assert copied["not_run"] == "not run: no second GPU is used"
    assert single["precision"] == spread["precision"] == "fp32"
    (difference,) = parts["2.4"]["differences"]
    assert (difference["a"], difference["b"]) == ("DistributedDataParallel", "1 process")
    assert difference["mean"] == pytest.approx(-single["test_top1"])
    assert "gloo" in out
    assert "2 seed(s) from 0" in (tmp_path / "out/problem2/2.4_parallel.txt").read_text()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--batch-size", 1], "--batch-size: '1' is not a whole number"),
        (["--classes", 1], "--classes 1: the embedded data set has 2 to 102"),
        (["--init", "nowhere.pt"], "nowhere.pt: no such file"),
        (["--gpus", 9], "--gpus 9: torch sees"),
        (["--width", 1.0], "--width 1: give a width above 1"),
        (["2.3", "--from-narrow", __file__], "not a file of PyTorch weights"),
        (["2.3", "--from-narrow", "nowhere.pt"], "nowhere.pt: no such file"),
        (["2.6", "--layer", "features.77"], "layer features.77: no such feature layer"),
        (["2.6", "--layer", "features.6"], "its map is 1x1 for images of 32 px"),
        (["2.6", "--layer", "features.4.0.block.2.fc1"], "choose an earlier layer"),
        (["--noise-area", 0.9, 0.1], "--noise-area 0.9 0.1: give two fractions"),
        (["--gpus", 1, "--device", "cpu"], "--gpus 1"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_bad_flags_end_in_one_line(fails, tmp_path, argv, words):
    folders = ("--out", tmp_path / "out", "--cache", tmp_path / "cache")
    assert words in fails(p2, "2.2", "--data", "synthetic", *folders, *TINY[4:-2], *argv)


@pytest.mark.usefixtures("small_networks")
def test_wrong_weights_are_refused_before_any_image_is_packed(fails, tmp_path):
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "another.pt")
    folders = ("--out", tmp_path / "out", "--cache", tmp_path / "cache")
    for part in ("2.2", "2.3", "2.5", "2.6"):
        assert "none.pt: no such file" in fails(p2, part, *TINY, *folders, "--init", "none.pt")
    for part, flag in (("2.2", "--init"), ("2.3", "--from-narrow")):
        message = fails(p2, part, *TINY, *folders, flag, tmp_path / "another.pt")
        assert "another.pt: not EfficientNetV2-S" in message
    assert not (tmp_path / "cache").exists()


def test_an_unwritable_cache_is_named(fails, tmp_path):
    (tmp_path / "file").write_text("")
    cache = ("--cache", tmp_path / "file", "--out", tmp_path)
    assert "choose another --cache" in fails(p2, "2.2", *TINY, *cache)
