"""Intervals for means of repeated measurements."""

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
