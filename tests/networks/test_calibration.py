import numpy as np
import pytest

from common.errors import UserError
from common.networks import losses
from common.networks.losses import Calibrated

RAW = np.random.default_rng(0).uniform(1, 3, (5, 2, 3))  # pictures, pairs, losses
OTHERS = [(i, j) for i in range(5) for j in range(i)]
UNRELATED = np.random.default_rng(1).uniform(50, 90, (len(OTHERS), 3))


def calibrated(raw=RAW, unrelated=UNRELATED, others=OTHERS):
    return Calibrated(["shift", "noise"], ["l1", "l2", "relu1_2"], raw, unrelated, others)


def test_unrelated_pairs_average_1():
    pairs = np.broadcast_to(UNRELATED.mean(0), (5, 2, 3))
    np.testing.assert_allclose(calibrated(pairs).relative, 1)


def test_a_row_holds_the_means_over_pictures():
    row = calibrated().row("noise", "l2")
    assert row["raw"] == pytest.approx(RAW[:, 1, 1].mean())
    assert row["relative"] == pytest.approx(RAW[:, 1, 1].mean() / UNRELATED[:, 1].mean())
    assert row["low"] < row["relative"] < row["high"]
    assert calibrated().rows("noise")["l2"] == row


def test_a_resample_takes_another_picture_from_itself(monkeypatch):
    drawn = np.array([0, 0, 2, 4, 4])
    counts = np.bincount(drawn, minlength=5) / 5
    monkeypatch.setattr(losses, "resample_weights", lambda _: counts[None])
    pairs = [(i, j) for i in drawn for j in drawn if i > j]
    yardstick = np.mean([UNRELATED[OTHERS.index(pair)] for pair in pairs], axis=0)
    np.testing.assert_allclose(calibrated().resampled[0], RAW[drawn].mean(0) / yardstick)


def test_references_count_alike_in_every_resample():
    found = calibrated(unrelated=UNRELATED[:5], others=[(i, None) for i in range(5)])
    weights = losses.resample_weights(5)
    expected = np.einsum("bn,npl->bpl", weights, RAW) / (weights @ UNRELATED[:5])[:, None]
    np.testing.assert_allclose(found.resampled, expected)


def test_one_picture_has_no_interval():
    row = calibrated(RAW[:1], UNRELATED[:2], [(0, None), (0, None)]).row("shift", "l1")
    assert np.isnan([row["low"], row["high"]]).all()


def test_a_yardstick_of_zero_is_refused():
    with pytest.raises(UserError, match="l1 is 0 between unrelated pictures"):
        calibrated(unrelated=UNRELATED * [0, 1, 1])
