import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import problem3_resnet36 as p3
from common.errors import UserError
from common.networks.activations import ClampedSquareLeaky, PowerLeaky, SquareLeaky
from common.networks.resnet36 import RELU_STEM
from common.studies import places, reproduction
from common.studies.reproduction import Case
from common.training import loop, runs
from common.training.watch import NotFinite
from tests.faults import tiny

TINY = (
    *("3.4", "--data", "synthetic", "--classes", 3, "--per-class", 8, "--image-size", 32),
    *("--width", 1 / 16, "--batch-size", 4, "--epochs", 1, "--precision", "fp32", "--lr", 1e-4),
    *("--cure-steps", 2),
)


def test_the_reproduction_goes_from_first_passes_to_cures(parts_of, monkeypatch):
    tiny.use_small_networks(monkeypatch.setattr)
    monkeypatch.setattr(reproduction, "BATCHES", (2, 4))
    monkeypatch.setattr(reproduction, "PICTURES", {"crops, jitter": (0.08, 0.4)})
    monkeypatch.setattr(reproduction, "VARIED", {"residual": ("branch",)})
    monkeypatch.setattr(reproduction, "STEP_IMAGES", {"resnet36": 4, "resnet34": 2})
    found = parts_of(p3, *TINY, "--reproduce", study="reproduce")[0]["3.4"]["reproduction"]
    assert found["chance_loss"] == math.log(650)
    assert [(row["images"], row["residual"]) for row in found["first_losses"]] == [
        (2, "sum"), (4, "sum"), (2, "branch"), (4, "branch"),
    ]  # fmt: skip
    wanted = {"images", "image_size_px", "width", "classes", "residual", "first_loss", "dead_from"}
    assert all(wanted <= row.keys() for row in found["first_losses"])
    told = [(row["network"], row["form"], row["optimizer"]) for row in found["steps"]]
    both = [("where", "sgd"), ("where", "adam"), ("ours", "sgd"), ("ours", "adam"), ("ReLU", "sgd")]
    assert told == [(network, *how) for network in ("resnet36", "resnet34") for how in both]
    assert all({"losses", "non_finite_gradients"} <= row.keys() for row in found["steps"])
    assert "batch norm in float64" in [row["change"] for row in found["cures"]]
    assert found["batches"]["images_most"] < 650 * 1300
    # A second call measures nothing again.
    monkeypatch.setattr(reproduction, "first_pass", None)
    monkeypatch.setattr(reproduction, "unchecked_steps", None)
    monkeypatch.setattr(reproduction, "free_bytes", lambda _: 0)  # and halves no batch
    again, _, _ = parts_of(p3, *TINY, "--reproduce", study="reproduce")
    assert again["3.4"]["reproduction"] == found


def test_a_batch_that_does_not_fit_is_halved_and_said_to_be_smaller(monkeypatch, capsys):
    monkeypatch.setattr(reproduction, "free_bytes", lambda _: 1000)
    monkeypatch.setattr(reproduction, "STEP_BYTES", 100)
    assert reproduction.fitting_images(Case(64), torch.device("cpu")) == 8
    assert "8 images per step instead of 64" in capsys.readouterr().out


def test_the_batches_of_the_report_are_of_650_whole_classes():
    found = reproduction.REPORT_BATCHES
    least, most = found["images_least"], found["images_most"]
    fits = [
        (math.ceil(int(0.8 * images) / 128), math.ceil(int(0.7 * images) / 32)) == (5204, 18_213)
        for images in (least - 1, least, most, most + 1)
    ]
    assert fits == [False, True, True, False]
    assert 1280 < found["images_per_class"] < 1282  # ImageNet's average, of 732 to 1,300


def test_the_forecast_is_dead_at_256_where_f_squares_the_sums_and_nowhere_else():
    peaks = {"maxpool": 257.0, "layer1.2": 1e20, "layer2.0.shortcut.0": 1e19}
    found = [
        reproduction.forecast_of({**peaks, "maxpool": peak}, residual)
        for peak, residual in ((255.0, "sum"), (257.0, "sum"), (257.0, "branch"))
    ]
    assert [row["forecast_dead"] for row in found] == [False, True, False]
    assert [row["closed_form_peak"] for row in found] == [255.0**8, 257.0**8, None]


def test_a_study_of_stems_has_a_row_a_stem_beside_relu_throughout(parts_of, monkeypatch):
    rows = [("f,f", 1, "f"), ("f,f+dn", 0.1, "f"), (RELU_STEM, 1, "ReLU")]
    monkeypatch.setattr(places, "STEM_ROWS", rows)
    parts, printed, _ = parts_of(p3, *TINY, "--stems", "--seeds", 2, study="stems")
    part = parts["3.4"]
    told = [(row["stem"], row["gamma"], row["branch"]) for row in part["stems"]]
    assert told == [*rows, ("f,f", 1, "f")]
    assert part["stems"][-1]["change"] == "warm-up over half of the epochs"
    for row in part["stems"]:
        assert row["seeds"] == 2
        assert {"val_top1", "test_top1"} <= row.keys()
    differences = [row["difference"] for row in part["stems"]]
    assert differences.pop(2) is None  # the control
    assert all(row["low"] <= row["mean"] <= row["high"] for row in differences)
    assert "f,f+dn" in printed


def test_the_factorial_has_f_in_every_set_of_places_by_both_recipes(monkeypatch):
    arms = kept_arms(monkeypatch, places.factorial)
    assert len(arms) == 16
    for arm in arms:
        network, _ = arm.spec.build(0)
        block = network.network.layer1[0]
        found = {
            "stem": network.network.activation1,
            "branch": block.activation1,
            "sum": block.activation3,
        }
        has_f = [place for place, module in found.items() if isinstance(module, SquareLeaky)]
        assert has_f == arm.described["places"]
        recipe = arm.described["recipe"]
        assert arm.control == f"{recipe}_none"
        report = recipe == "report"
        assert (arm.spec.recipe_changes.get("optimizer") == "sgd") == report
    assert len({json.dumps(arm.spec.build(0)[1]) for arm in arms}) == 8


def test_the_exponents_have_their_kurtosis_in_closed_form(monkeypatch):
    arms = kept_arms(monkeypatch, places.exponents)
    assert len(arms) == 5 * 3 + 1
    normal = torch.randn(2_000_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for arm in arms[:-1]:
        module = arm.spec.build(0)[0].network.activation1
        assert isinstance(module, PowerLeaky)
        values = module(arm.described["gamma"] * normal)
        measured = ((values - values.mean()) ** 4).mean() / values.var() ** 2
        assert arm.described["kurtosis"] == pytest.approx(measured.item(), rel=0.05)
    assert isinstance(arms[-1].spec.build(0)[0].network.activation1, nn.ReLU)


def kept_arms(monkeypatch, study):
    """The arms that a study would train."""
    args = SimpleNamespace(residual="branch", width=1 / 16, zero_init_residual=True, epochs=6)
    arms = []
    monkeypatch.setattr(places, "study_findings", lambda _setup, _name, found: arms.extend(found))
    study(SimpleNamespace(args=args, classes=3))
    return arms


def test_a_clamped_stem_clamps_f_there_alone(monkeypatch):
    (clamped,) = [arm for arm in kept_arms(monkeypatch, places.stems) if "clamped" in arm.spec.name]
    network = clamped.spec.build(0)[0].network
    kinds = [
        type(m) for m in (network.activation1, network.activation2, network.layer1[0].activation1)
    ]
    assert kinds == [ClampedSquareLeaky, ClampedSquareLeaky, SquareLeaky]


def test_the_control_of_every_arm_is_one_of_the_studys(monkeypatch):
    for study in (places.stems, places.factorial, places.exponents):
        arms = kept_arms(monkeypatch, study)
        assert {arm.control for arm in arms if arm.control} <= {arm.spec.name for arm in arms}
        assert len({arm.spec.name for arm in arms}) == len(arms)


def test_more_classes_than_outputs_are_refused():
    with pytest.raises(UserError, match="650 outputs"):
        reproduction.reproduce(SimpleNamespace(args=None, classes=651))


def test_a_value_that_is_not_finite_ends_that_run_and_not_the_study(parts_of, monkeypatch):
    rows = [("f,f", 1, "f"), (RELU_STEM, 1, "ReLU")]
    monkeypatch.setattr(places, "STEM_ROWS", rows)
    step = loop.train_step

    def bad(run, *args):
        if isinstance(run.network.network.activation1, SquareLeaky):
            raise NotFinite("loss nan at epoch 1: the first", "fc", "output")
        return step(run, *args)

    monkeypatch.setattr(loop, "train_step", bad)
    parts, _, _ = parts_of(p3, *TINY, "--stems", study="stems")
    first, last, _ = parts["3.4"]["stems"]
    assert (first["seeds"], first["test_top1"], first["difference"]) == (0, None, None)
    assert first["stopped"] == ["loss nan at epoch 1: the first"]
    assert last["seeds"] == 1


def test_differences_pair_images_and_the_seeds_that_both_have():
    hits = {"a": ["1100", "1111", "0000"], "b": ["1000", "1111"]}
    trained = {k: [{"seed": s, "hits": h} for s, h in enumerate(of)] for k, of in hits.items()}
    (row,) = runs.differences(trained, [("a", "b")])
    assert (row["a"], row["b"], row["mean"]) == ("a", "b", 12.5)


def test_first_passes_are_counted_on_both_sides_of_the_border():
    passes = [
        (200, None, None, 900.0),
        (300, "bn", None, 800.0),
        (400, "bn", "bn", 6.4),
        (500, None, None, 3.0),
    ]
    keys = ("stem_peak", "infinite_from", "dead_from", "first_loss")
    rows = [{"residual": "sum", **dict(zip(keys, values, strict=True))} for values in passes]
    found = reproduction.border_counts([*rows, {**rows[2], "residual": "branch"}])
    assert found["below"] == {"passes": 1, "infinite": 0, "dead": 0}
    assert found["above"] == {"passes": 3, "infinite": 2, "dead": 1}
    assert found["lowest_dead_loss"] == found["highest_dead_loss"] == 6.4


def test_dead_networks_are_counted_by_pictures_of_the_reports_setting_alone():
    rows = [
        {**vars(Case(64, seed=seed)), "dead_from": dead} for seed, dead in ((0, "bn"), (1, None))
    ]
    rows.append({**vars(Case(64, width=0.5)), "dead_from": "bn"})
    found = reproduction.dead_by_pictures(reproduction.in_report_setting(rows, 224, 1))
    assert found == {"crops, jitter": {"64": {"networks": 2, "dead": 1}}}
