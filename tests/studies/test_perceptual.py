import math
from functools import partial

import numpy as np
import pytest
import torch

from common.data import images as data
from common.networks import losses
from common.networks.losses import Calibrated
from common.networks.vgg import VGG16Features
from common.networks.weights import random_vgg16
from common.studies import perceptual, perceptual_controls
from common.studies.perceptual import TRAINED, Squares, Treatment
from tests.conftest import picture

SIGMAS = np.array(TRAINED.sigmas, float)


def power_laws(*exponents, scale=1e-4, pictures=2):
    """Calibrated losses scale * sigma ** exponent, one per exponent, of equal pictures."""
    curves = np.stack([scale * SIGMAS[1:] ** exponent for exponent in exponents], axis=1)
    shift = np.full((1, len(exponents)), scale * 10.0**2)
    raw = np.tile(np.concatenate([shift, curves]), (pictures, 1, 1))
    names = ["l2", "relu1_2", "relu5_3"][: len(exponents)]
    return Calibrated(["shift 1", *TRAINED.noises], names, raw, np.ones((1, len(names))), [(0, 1)])


def test_equivalent_sigma_of_a_power_law():
    noise = 1e-4 * SIGMAS**2
    equivalent_sigma = partial(perceptual.equivalent_sigma, sigmas=TRAINED.sigmas)
    for sigma in (1.5, 7.3, 25, 88):
        assert equivalent_sigma(noise, 1e-4 * sigma**2) == pytest.approx(sigma)
    assert equivalent_sigma(noise, 0.5e-4) == pytest.approx(0.5)
    assert equivalent_sigma(noise, 2) == math.inf
    assert equivalent_sigma(noise, 0) == 0


def test_shift_equivalents_and_slopes_of_power_laws():
    found = power_laws(2, 1)
    equal = perceptual.shift_equivalents(found, TRAINED)
    assert equal["l2"]["sigma"] == pytest.approx(10)
    assert equal["relu1_2"]["sigma"] == pytest.approx(100)
    slopes = perceptual.slopes(found, TRAINED)
    np.testing.assert_allclose(slopes["sigma"][-1], math.sqrt(50 * 100))
    np.testing.assert_allclose(slopes["l2"]["slope"], 2)
    np.testing.assert_allclose(slopes["relu1_2"]["slope"], 1)


def test_order_turns_where_power_laws_cross():
    found = power_laws(2, 1, 1.5)
    found.relative *= [1, 20, 1.2]
    found.resampled[::2, :, 1] *= 20
    turn, early, never = perceptual.order_turns(found, TRAINED)
    assert (turn["a"], turn["b"]) == ("l2", "relu1_2")
    assert turn["sigma"] == pytest.approx(20)  # sigma^2 = 20 sigma
    assert (early["a"], early["b"]) == ("l2", "relu5_3")
    assert early["sigma"] == pytest.approx(1.2**2)
    assert (never["a"], never["b"]) == ("relu1_2", "relu5_3")
    assert math.isnan(never["sigma"])  # they would cross at sigma 278
    assert (never["low"], never["high"]) == (0, math.inf)


def test_turning_sigma_of_many_curves_at_once():
    log_sigmas = np.log([1.0, 10.0, 100.0])
    a = np.array([[0.0, 1, 2], [0.0, 1, 2], [0, 0.5, 3], [2, 0.5, 3], [2, 2, 2]])
    b = np.array([[1.0, 1, 1], [3.0, 3, 3], [1, 1, 1], [1, 1, 1], [1, 1, 1]])
    expected = [10, np.inf, 10 * 10**0.2, 10 * 10**0.2, 0]  # the last of two crossings
    np.testing.assert_allclose(perceptual.turning_sigma(a, b, log_sigmas), expected)


def squares_of(pictures, side_px=32, **options):
    options = {"margin_px": 16, "seed": 0, "set_size": 9, **options}
    return Squares(pictures, side_px, **options)


def test_a_square_is_central_with_real_pixels_beside_it():
    squares = squares_of({"a": picture(9, 60, 34)}, side_px=30)
    region = data.to_tensor(picture(9, 60, 34)[2:32, 7 : 7 + 46])
    assert torch.equal(squares.region("a"), region)
    copies, pairs = Treatment(1, "crop", 25, seed=0, doses=TRAINED).copies(region, 0)
    assert torch.equal(copies["original"], region[..., :30])
    assert torch.equal(copies["moved 16 crop"], region[..., 16:])
    assert pairs["shift"] == pairs["shift 1"]  # one pass for both
    assert pairs["noise"] == pairs["noise 25"]
    assert len(copies) == 2 + len(TRAINED.shifts) + len(TRAINED.noises) + 5
    assert {copy.shape for copy in copies.values()} == {(3, 30, 30)}


def test_sets_hold_each_picture_once_and_none_alone():
    names = [f"{number}.png" for number in range(23)]
    for size in (1, 2, 9, 30):
        sets = squares_of(dict.fromkeys(names), set_size=size + 1).sets(names)
        assert sorted(name for members in sets for name in members) == sorted(names)
        assert all(2 <= len(members) <= max(2 * size + 1, 3) for members in sets)


@pytest.fixture(scope="module")
def network():
    return VGG16Features(random_vgg16(seed=0, want_lpips=False), ["relu1_2", "pool1", "relu2_1"])


def test_calibrated_losses_are_those_of_single_pairs(network):
    pictures = {name: picture(seed, 60, 40) for seed, name in enumerate("abc")}
    squares, treatment = squares_of(pictures), Treatment(1, "crop", 25, seed=3)

    def make_copies(name):
        return treatment.copies(squares.region(name), "abc".index(name))

    found = perceptual.calibrate(squares, network, make_copies, list("abc"), "test")
    features, at = partial(losses.features_of, network), found.losses.index("relu2_1")
    maps = {name: features(squares.region(name)[..., :32])["relu2_1"] for name in "abc"}
    moved = features(squares.region("b")[..., 1:33])["relu2_1"]
    assert found.raw[1, found.pairs.index("shift"), at] == pytest.approx(
        losses.mse(maps["b"], moved)
    )
    unrelated = [losses.mse(maps[x], maps[y]) for x, y in ("ab", "ac", "bc")]
    expected = found.raw.mean(0)[0, at] / np.mean(unrelated)
    assert found.relative[0, at] == pytest.approx(expected)


# --------------------------------------------------------------------------------------- controls


def test_borders_differ_in_the_cells_beside_them_alone(network):
    squares = squares_of({name: picture(seed, 80, 64) for seed, name in enumerate("ab")})
    found = perceptual_controls.borders(squares, network, ["a", "b"], 64, 25)
    assert found["cells"] == {"relu1_2": [4096, 3600], "pool1": [1024, 900], "relu2_1": [1024, 784]}
    assert "l2" in found["losses"]
    assert found["losses"]["l2"]["noise"]["all"] == found["losses"]["l2"]["noise"]["valid"]
    for row in (found["losses"][loss]["noise"] for loss in network.layers):
        assert row["valid"] == pytest.approx(row["all"], rel=0.3)
        assert row["valid"] != row["all"]


def test_half_a_pixel_made_exactly_is_near_the_interpolated_one(network):
    squares = squares_of({name: picture(seed, 100, 80) for seed, name in enumerate("ab")})
    found = perceptual_controls.fractions(squares, network, ["a", "b"])
    for loss in ("l2", "relu1_2"):
        row = found["losses"][loss]
        assert row["exact"] == pytest.approx(row["fourier"], rel=0.1)  # these pictures are smooth
        assert row["whole"] == pytest.approx(4 * row["exact"], rel=0.15)


def test_the_reports_scale_is_tried_in_all_ways(monkeypatch):
    monkeypatch.setattr(perceptual_controls, "REPORT_SIDE_PX", 32)
    weights, pictures = random_vgg16(seed=0), {"a": picture(0)}
    found = perceptual_controls.report_scale(pictures, weights, 25, 0, "cpu")
    rows = {(row["scale"], row["error"]): row for row in found["rows"]}
    assert len(rows) == 2 * len(perceptual_controls.SCALES)
    # Without bias the maps of random weights are proportional to the input.
    for layer in perceptual_controls.REPORT:
        ratio = rows["0-255", "MSE"][layer] / rows["0-1", "MSE"][layer]
        assert ratio == pytest.approx(255**2, rel=1e-3)
    worst = max(
        abs(math.log(rows["0-1", "MAE"][key] / value)) for key, value in found["report"].items()
    )
    assert rows["0-1", "MAE"]["factor"] == pytest.approx(math.exp(worst))


def test_noise_cast_to_8_bits_and_saturated_gives_the_reports_pair():
    photo = data.to_tensor(data.embedded_photos()["coffee"])
    noise = perceptual.distortions.unit_noise(photo.shape, 0)
    found = perceptual_controls.wrapped_noise(photo, noise, 25)
    assert found["clipped"]["l1_uint8"] == pytest.approx(128, abs=12)
    assert found["cast, wrapping"]["l1_uint8"] == pytest.approx(128, abs=5)
    assert found["cast, saturating"]["l1_uint8"] > 140
    for pair in found.values():
        assert pair["l2_uint8"] < pair["l1_uint8"] ** 2


def test_draws_are_told_by_their_mean_and_range():
    draws = [power_laws(2), power_laws(2, scale=3e-4)]
    row = perceptual_controls.averaged([draw.rows("shift 1") for draw in draws])["l2"]
    assert (row["relative"], row["low"], row["high"]) == pytest.approx((0.02, 0.01, 0.03))
    curves = [{"relative": [0.0, k], "low": [0.0, 0.5], "high": [0.0, 9.0]} for k in (1.0, 3.0)]
    expected = {"relative": [0.0, 2.0], "low": [0.0, 1.0], "high": [0.0, 3.0]}
    assert perceptual_controls.averaged([{"noise": row} for row in curves]) == {"noise": expected}
