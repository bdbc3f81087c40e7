"""95 % intervals of means over units, proportions, paired differences and trainings.

scipy is imported only when an interval is computed: it takes a second; `--help` need not wait.
"""

from collections.abc import Mapping

import numpy as np

SEED, RESAMPLES = 0, 2000  # of every bootstrap


def bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    """The seeded percentile bootstrap interval of the mean of values (units,); NaN for one unit."""
    from scipy.stats import bootstrap

    if len(values) == 1:
        return np.nan, np.nan
    how = {"n_resamples": RESAMPLES, "method": "percentile", "rng": SEED}
    interval = bootstrap((values,), np.mean, **how).confidence_interval
    return float(interval.low), float(interval.high)


def resample_weights(units: int, generator: np.random.Generator | None = None) -> np.ndarray:
    """Each unit's share of each resample with replacement, (2000, units); rows sum to 1.

    Without a generator the draw is seeded, and the same each time.
    """
    generator = generator or np.random.default_rng(SEED)
    return generator.multinomial(units, np.full(units, 1 / units), RESAMPLES) / units


def interval(resampled: np.ndarray) -> dict:
    """The 95 % interval {"low", "high"} of resampled values (resamples,); lists for (resamples, n).

    NaN if all values are the same. Ends are not interpolated, since some values may be infinite.
    """
    ends = np.percentile(resampled, (2.5, 97.5), axis=0, method="nearest")
    low, high = np.where((resampled == resampled[0]).all(0), np.nan, ends)
    return {"low": low.tolist(), "high": high.tolist()}


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The interval of a proportion, both ends in [0, 1] (Wilson 1927)."""
    from scipy.stats import binomtest

    low, high = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return float(low), float(high)


def paired_difference(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """How much more often a is right than b, in percentage points: {"mean", "low", "high"}.

    `a` and `b` are zeros and ones (seeds, images) on the same images and with the same seeds. The
    interval is a seeded percentile bootstrap over seeds and images at once (Owen 2007, "The
    pigeonhole bootstrap"). With one seed, only the images are resampled.
    """
    difference, generator = 100.0 * (a - b), np.random.default_rng(SEED)
    weights = [resample_weights(size, generator) for size in difference.shape]
    drawn = ((weights[0] @ difference) * weights[1]).sum(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"mean": float(difference.mean()), "low": float(low), "high": float(high)}


def difference_of(a: list[dict], b: list[dict]) -> dict[str, float] | None:
    """The `paired_difference` of two networks' runs, over the seeds that both have; None: none."""
    first, second = ({run["seed"]: [*run["hits"]] for run in runs} for runs in (a, b))
    both = [(first[seed], second[seed]) for seed in first if seed in second]
    return paired_difference(*np.array(both).astype(int).swapaxes(0, 1)) if both else None


def over_seeds(runs: list[dict], images: int) -> dict:
    """Means over the seeds, and the spread of test top-1; `images` is the number of test images.

    The Wilson interval counts each image once: further seeds on it are no new evidence.

    Returns:
        val_top1, test_top1, test_per_class, test_top1_low, test_top1_high, test_top1_std (sample
        standard deviation, None for one run), all in per cent, and training_seconds per run.
    """
    keys = ("val_top1", "test_top1", "test_per_class")
    mean = {key: float(np.mean([run[key] for run in runs])) for key in keys}
    low, high = wilson_interval(round(mean["test_top1"] * images / 100), images)
    spread = float(np.std([run["test_top1"] for run in runs], ddof=1)) if len(runs) > 1 else None
    return {
        **mean,
        "test_top1_low": 100 * low,
        "test_top1_high": 100 * high,
        "test_top1_std": spread,
        "training_seconds": float(np.mean([run["training_seconds"] for run in runs])),
    }


def with_means(networks: Mapping[str, list[dict]], images: int) -> dict[str, dict]:
    """Each network's `over_seeds`, and its runs under "runs"."""
    return {name: {**over_seeds(runs, images), "runs": runs} for name, runs in networks.items()}
