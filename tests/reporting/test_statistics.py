import numpy as np
import pytest
from scipy.stats import bootstrap

from common.reporting.statistics import bootstrap_interval, paired_difference, wilson_interval

SIX_PHOTOS = np.random.default_rng(0).gamma(2, size=6)


def test_bootstrap_interval_is_scipys():
    wanted = bootstrap((SIX_PHOTOS,), np.mean, n_resamples=2000, method="percentile", rng=0)
    assert bootstrap_interval(SIX_PHOTOS) == tuple(wanted.confidence_interval)
    assert np.isnan(bootstrap_interval(SIX_PHOTOS[:1])).all()


def test_wilson_interval_equals_the_published_example():
    # Newcombe 1998, table I: 81 of 263.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20)[0] == 0
    assert wilson_interval(20, 20)[1] == 1


def hits(seeds, images, share, seed):
    return (np.random.default_rng(seed).random((seeds, images)) < share).astype(int)


def test_a_paired_difference_of_equal_networks_is_nothing_and_of_opposite_ones_all():
    right = hits(3, 50, 0.5, 0)
    assert paired_difference(right, right) == {"mean": 0, "low": 0, "high": 0}
    assert paired_difference(np.ones((2, 9)), np.zeros((2, 9))) == pytest.approx(
        {"mean": 100, "low": 100, "high": 100}
    )


def test_a_paired_difference_is_turned_by_its_order():
    a, b = hits(3, 200, 0.7, 1), hits(3, 200, 0.6, 2)
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert there["mean"] == pytest.approx(100 * (a.mean() - b.mean()))
    assert there["mean"] == -back["mean"]
    assert [there["low"], there["high"]] == pytest.approx([-back["high"], -back["low"]])


def test_with_one_seed_the_interval_is_that_of_the_images():
    a, b = hits(1, 900, 0.7, 1), hits(1, 900, 0.6, 2)
    found, difference = paired_difference(a, b), 100 * (a - b)[0]
    half = 1.96 * difference.std() / 30
    assert found["low"] == pytest.approx(difference.mean() - half, abs=0.3)
    assert found["high"] == pytest.approx(difference.mean() + half, abs=0.3)


def test_seeds_that_differ_widen_the_interval_of_a_paired_difference():
    a = np.repeat([[1], [0], [1]], 300, axis=1)
    found = paired_difference(a, np.zeros((3, 300)))
    assert (found["low"], found["high"]) == pytest.approx((0, 100))
