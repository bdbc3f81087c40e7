import json
import re
from collections import Counter

import numpy as np
import pytest
import torch
from torchvision.models import efficientnet_v2_s

import problem2_flowers as p2
from common import data, summary
from common.cli import UserError
from common.experiment import count_parameters, over_seeds

TINY = (
    *("--data", "synthetic", "--classes", 3, "--images-per-class", 4, "--image-size", 32),
    *("--epochs", 2, "--batch-size", 6, "--seeds", 2),
)


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(7)
    return efficientnet_v2_s(num_classes=4).state_dict()


@pytest.fixture
def tiny_run(run, tmp_path):
    def run_tiny(*argv):
        folders = ("--out", tmp_path / "out", "--cache", tmp_path / "cache")
        code, out, err = run(p2, *argv, *TINY, *folders)
        assert code == 0, err
        results = json.loads((tmp_path / "out" / "problem2" / "results.json").read_text())
        return results["parts"], out

    return run_tiny


def test_parameters_with_102_and_with_1000_classes():
    for classes, parameters in ((102, 20_308_150), (1000, 21_458_488)):
        bare = summary.without_weights(lambda n=classes: efficientnet_v2_s(num_classes=n))
        assert count_parameters(bare) == parameters


def test_scratch_is_torchvisions_initialisation_by_seed(state):
    network = p2.make_network(4, "scratch", 7)
    found = network.network.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    other = p2.make_network(4, "scratch", 8).network.state_dict()
    assert not torch.equal(other["features.0.0.weight"], state["features.0.0.weight"])


def test_a_head_at_zero_gives_equal_logits_and_changes_nothing_else(state):
    found = p2.make_network(4, "scratch", 7, head_at_zero=True).network.state_dict()
    assert not found.pop("classifier.1.weight").any()
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.items())
    wide = p2.make_wide(4, 1.1, 1, 7, head_at_zero=True)
    assert wide.eval()(torch.rand(2, 3, 32, 32)).unique().numel() == 1


@pytest.mark.parametrize("prefix", ["", "network."])
def test_a_file_of_the_same_classes_is_loaded_whole(state, tmp_path, capsys, prefix):
    torch.save({prefix + name: one for name, one in state.items()}, tmp_path / "weights.pt")
    found = p2.make_network(4, str(tmp_path / "weights.pt"), 0).network.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    assert f"{len(state)} tensors loaded; new: none" in capsys.readouterr().out


def test_of_other_classes_the_head_is_new_and_named(state, tmp_path, capsys):
    torch.save(state, tmp_path / "weights.pt")
    found = p2.make_network(5, str(tmp_path / "weights.pt"), 0).network.state_dict()
    told = capsys.readouterr().out
    assert f"{len(state) - 2} tensors loaded; new: classifier.1.weight, classifier.1.bias" in told
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor) or name.startswith("classifier.1.")
    assert found["classifier.1.weight"].shape == (5, 1280)


@pytest.mark.parametrize("spoil", ["features.3.0.block.0.0.weight", "features.0.1.running_mean"])
def test_a_file_of_another_network_is_refused(state, tmp_path, spoil):
    without = {name: tensor for name, tensor in state.items() if name != spoil}
    torch.save(without, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=rf"not EfficientNetV2-S: {spoil} of shape"):
        p2.make_network(4, str(tmp_path / "weights.pt"), 0)


def test_imagenet_weights_that_cannot_be_had(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise OSError("no network in tests")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(UserError, match=r"no file .*efficientnet_v2_s-dd5fe13b.pth, and the down"):
        p2.make_network(4, "imagenet", 0)


def test_imagenet_weights_with_another_hash_are_refused(monkeypatch, tmp_path):
    cached = tmp_path / "checkpoints" / "efficientnet_v2_s-dd5fe13b.pth"
    cached.parent.mkdir()
    cached.write_bytes(b"another file")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match="its SHA-256 does not begin with dd5fe13b: refused"):
        p2.make_network(4, "imagenet", 0)
    assert cached.read_bytes() == b"another file"


def test_top_resolutions_are_ordered_by_count_then_size():
    sizes = Counter({(500, 667): 3, (667, 500): 3, (752, 500): 9, (1, 2): 1})
    assert p2.top_resolutions(sizes) == [[752, 500, 9], [667, 500, 3], [500, 667, 3], [1, 2, 1]]


def test_means_over_seeds_and_the_interval_of_one_test_set():
    runs = [{"val_top1": v, "test_top1": t, "seconds": 2.0} for v, t in ((40, 30), (50, 34))]
    found = over_seeds(runs, 100)
    assert found["test_top1"] == 32
    assert found["test_top1_std"] == pytest.approx(np.std([30, 34], ddof=1))
    # Wilson 1927 for 32 of 100.
    assert found["test_top1_low"] == pytest.approx(23.67, abs=0.01)
    assert found["test_top1_high"] == pytest.approx(41.66, abs=0.01)
    assert over_seeds(runs[:1], 100)["test_top1_std"] is None


def test_parts_2_1_and_2_2_on_embedded_flowers(tiny_run, tmp_path):
    parts, out = tiny_run("2.1", "2.2")
    train = parts["2.1"]["splits"]["train"]
    assert (train["images"], train["classes"]) == (12, 3)
    drawn = data.DrawnSet("train", 12, 3, seed=0)
    assert sum(count for *_, count in train["top_resolutions"]) == 12
    assert train["resolutions"] == len({drawn.size(index) for index in range(12)})
    found = parts["2.2"]
    assert found["parameters"] == 20_308_150 - 99 * 1281
    assert [run["seed"] for run in found["runs"]] == [0, 1]
    assert [len(run["history"]) for run in found["runs"]] == [2, 2]
    for run in found["runs"]:
        assert run["test_top1_low"] <= run["test_top1"] <= run["test_top1_high"]
        assert run["test_top1"] * 12 / 100 == pytest.approx(round(run["test_top1"] * 12 / 100))
        assert run["val_top1"] == max(row["val_top1"] for row in run["history"])
    assert found["test_top1"] == np.mean([run["test_top1"] for run in found["runs"]])
    assert "EMBEDDED DRAWN FLOWERS" in found["data"]
    folder = tmp_path / "out" / "problem2"
    tables = [path for path in folder.glob("*.txt") if path.name != "2.2_summary.txt"]
    assert len(tables) == 3
    for path in tables:
        assert "EMBEDDED DRAWN FLOWERS" in path.read_text(), path
    last_lines = (folder / "2.2_summary.txt").read_text().rstrip().splitlines()[-7:]
    assert "\n".join(last_lines) in out
    assert "Params size (MB): 76.99" in last_lines
    for name in ("2.1_samples", "2.1_class_counts", "2.1_resolutions_val", "2.2_curves"):
        assert (folder / f"{name}.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--image-size", 8], "--image-size 8: EfficientNetV2-S needs 32 px or more"),
        (["--batch-size", 0], "'0' is not a whole number of 1 or more"),
        (["--batch-size", 1], "batch norm needs 2 or more"),
        (["--classes", 1], "--classes 1: the embedded data set has 2 to 102"),
        (["--classes", 103], "2 to 102"),
        (["--jitter", 1.5], "'1.5' is not a number from 0 to 1"),
        (["--init", "nowhere.pt"], "nowhere.pt: no such file"),
        (["--lr", "inf"], "not a finite number"),
        (["--gpus", 9], "--gpus 9: torch sees"),
        (["--width", 0.9], "--width 0.9: a wider network has more than 1"),
        (["--width", 1.0], "--width 1: a wider network has more than 1"),
        (["2.3", "--from-narrow", __file__], "not a file of PyTorch weights"),
        (["2.3", "--from-narrow", "nowhere.pt"], "nowhere.pt: no such file"),
        (["2.6", "--layer", "features.77"], "--layer features.77: no such feature layer"),
        (["--noise-area", 0.9, 0.1], "--noise-area 0.9 0.1: give two shares"),
        (["--noise-prob", 2], "'2' is not a number from 0 to 1"),
        (["--gpus", 1, "--device", "cpu"], "--gpus 1"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_bad_flags_end_in_one_line(fails, tmp_path, argv, words):
    folders = ("--out", tmp_path / "out", "--cache", tmp_path / "cache")
    assert words in fails(p2, "2.2", "--data", "synthetic", *folders, *TINY[4:], *argv)


def test_an_unwritable_cache_is_named(fails, tmp_path):
    (tmp_path / "file").write_text("")
    cache = ("--cache", tmp_path / "file", "--out", tmp_path)
    assert "choose another --cache" in fails(p2, "2.2", *TINY, *cache)


def test_another_networks_checkpoint_is_refused_and_kept(fails, run, tmp_path):
    folders = ("--out", tmp_path / "out", "--cache", tmp_path / "cache")
    small = [*TINY[:-4], "--batch-size", 12, "--epochs", 1]
    assert run(p2, "2.2", *small, *folders)[0] == 0
    last = tmp_path / "out" / "problem2" / "runs" / "efficientnet_v2_s-1epochs-seed0" / "last.pt"
    before = last.stat()
    message = fails(p2, "2.2", *small, *folders, "--lr", 0.5, "--label-smoothing", 0)
    assert re.search(r"label_smoothing 0.1 \(now 0.0\), learning_rate 0.0015 \(now 0.5\)", message)
    assert last.stat().st_mtime_ns == before.st_mtime_ns
