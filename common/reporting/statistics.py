"""Intervals at 95 %: of means over units, of proportions, and of paired differences.

scipy is imported where an interval is computed: it takes a second, which `--help` need not wait.
"""

import numpy as np

PERCENTILE = {"n_resamples": 2000, "confidence_level": 0.95, "method": "percentile", "rng": 0}


def seeded() -> np.random.Generator:
    """The generator that every bootstrap begins with."""
    return np.random.default_rng(PERCENTILE["rng"])


def bootstrap_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The percentile interval of the mean of values (units, repeats, ...) over the first two axes.

    Repeats of a unit are averaged first, and the units resampled: to measure a unit again is no new
    evidence of other units (Efron & Tibshirani 1993, chapter 13). The resampling is seeded.

    Returns:
        The lower and the upper end, each of the shape that is left; NaN where there is one unit.
    """
    from scipy.stats import bootstrap

    means = values.mean(axis=1)
    if len(means) == 1:
        unknown = np.full(means.shape[1:], np.nan)
        return unknown, unknown
    interval = bootstrap((means,), np.mean, axis=0, **PERCENTILE).confidence_interval
    return interval.low, interval.high


def resample_weights(units: int, generator: np.random.Generator | None = None) -> np.ndarray:
    """Each unit's share of each resample with replacement, (2000, units); rows sum to 1.

    Without a generator the draw is seeded, and the same each time.
    """
    generator, shares = generator or seeded(), np.full(units, 1 / units)
    return generator.multinomial(units, shares, PERCENTILE["n_resamples"]) / units


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The interval of a proportion, both ends in [0, 1] (Wilson 1927)."""
    from scipy.stats import binomtest

    low, high = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return float(low), float(high)


def paired_difference(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """How much oftener a is right than b, in points of per cent: {"mean", "low", "high"}.

    `a` and `b` are zeros and ones (seeds, images) on the same images, with the same seeds. The
    interval is a percentile bootstrap that resamples seeds and images at once, seeded (Owen 2007,
    "The pigeonhole bootstrap"); with one seed it is that of the images alone.
    """
    difference, generator = 100.0 * (a - b), seeded()
    weights = [resample_weights(size, generator) for size in difference.shape]
    drawn = ((weights[0] @ difference) * weights[1]).sum(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"mean": float(difference.mean()), "low": float(low), "high": float(high)}
