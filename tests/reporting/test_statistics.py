import math

import numpy as np
import pytest
from scipy.stats import bootstrap

from common.reporting.statistics import bootstrap_interval, bootstrap_nearest, wilson_interval

SIX_PHOTOS = np.random.default_rng(0).gamma(2, size=(6, 3, 4))


def test_bootstrap_interval_is_scipys_of_the_units_means():
    means = SIX_PHOTOS.mean(axis=1)
    wanted = bootstrap((means,), np.mean, n_resamples=2000, method="percentile", rng=0)
    low, high = bootstrap_interval(SIX_PHOTOS)
    np.testing.assert_array_equal(low, wanted.confidence_interval.low)
    np.testing.assert_array_equal(high, wanted.confidence_interval.high)


def test_bootstrap_interval_of_many_values_is_the_normal_one():
    values = np.random.default_rng(1).normal(3, 2, (400, 1))
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.05)
    assert high == pytest.approx(values.mean() + half, abs=0.05)


def test_bootstrap_interval_shapes_and_single_values():
    low, high = bootstrap_interval(np.full((3, 2, 5), 0.7))
    assert low.shape == high.shape == (5,)
    np.testing.assert_allclose([low, high], 0.7)
    assert np.isnan(bootstrap_interval(np.ones((1, 1)))).all()
    spread = np.random.default_rng(2).random((4, 1, 2))
    low, high = bootstrap_interval(spread)
    assert (low < spread.mean((0, 1))).all()
    assert (spread.mean((0, 1)) < high).all()


def test_repeats_of_a_unit_are_no_new_units():
    once = SIX_PHOTOS[:, :1]
    np.testing.assert_allclose(bootstrap_interval(once), bootstrap_interval(once.repeat(5, 1)))
    assert np.isnan(bootstrap_interval(SIX_PHOTOS[:1])).all()


def test_bootstrap_nearest_of_a_mean_lies_beside_the_interpolated_interval():
    values = SIX_PHOTOS[:, 0, 0]
    nearest = bootstrap_nearest(np.mean, values)
    np.testing.assert_allclose(nearest, bootstrap_interval(values[:, None]), atol=0.01)


def test_arrays_are_resampled_together():
    assert bootstrap_nearest(lambda a, b: (b - 2 * a).mean(), SIX_PHOTOS, 2 * SIX_PHOTOS) == (0, 0)


def test_an_infinite_statistic_has_an_infinite_end_and_no_nan():
    def mean_or_infinite(values):
        return math.inf if values.mean() > 2.5 else values.mean()

    low, high = bootstrap_nearest(mean_or_infinite, np.arange(6))
    assert 0 <= low < 2.5
    assert high == math.inf


def test_of_one_unit_no_statistic_has_an_interval():
    assert np.isnan(bootstrap_nearest(np.mean, np.ones((1, 4)))).all()


def test_wilson_interval_equals_the_published_example():
    # Newcombe 1998, table I: 81 of 263.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20)[0] == 0
    assert wilson_interval(20, 20)[1] == 1
