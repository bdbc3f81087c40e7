"""Intervals for means of repeated measurements, and for proportions."""

import math

import numpy as np


def bootstrap_interval(values: np.ndarray, resamples: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile interval of the mean of values (units, repeats, ...) over the first two axes.

    Units (photos) are resampled, and for each the repeats (Davison & Hinkley 1997, section 3.8).
    The resampling is seeded. Of a single value there is no interval: both ends are NaN.
    """
    units, repeats = values.shape[:2]
    if units == repeats == 1:
        nothing = np.full(values.shape[2:], np.nan)
        return nothing, nothing
    rng = np.random.default_rng(0)
    unit = rng.integers(units, size=(resamples, units, 1))
    repeat = rng.integers(repeats, size=(resamples, units, repeats))
    means = values[unit, repeat].mean(axis=(1, 2))
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return low, high


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a proportion, both ends in [0, 1] (Wilson 1927)."""
    z, share = 1.959964, successes / trials
    centre = share + z**2 / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    low, high = ((centre + sign * half) / (1 + z**2 / trials) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)
