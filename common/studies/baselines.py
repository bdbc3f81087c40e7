"""What a network has to beat on a problem's data, without any training."""

import time

from common.networks import yardsticks
from common.reporting.statistics import wilson_interval
from common.training.runs import Setup


def colour_neighbour(setup: Setup) -> dict[str, float]:
    """Classify val and test by one nearest neighbour among train's colour histograms.

    Returns:
        val_top1, test_top1 and its 95 % interval test_top1_low and test_top1_high, all in per
        cent, and seconds.
    """
    start, packed, top1 = time.perf_counter(), setup.packed, {}
    train = yardsticks.colour_histograms(packed["train"].images, setup.args.image_size)
    for split in ("val", "test"):
        counts = yardsticks.colour_histograms(packed[split].images, setup.args.image_size)
        right = packed["train"].labels[yardsticks.nearest(counts, train)] == packed[split].labels
        top1[f"{split}_top1"] = 100 * right.double().mean().item()
    low, high = wilson_interval(int(right.sum()), len(right))
    interval = {"test_top1_low": 100 * low, "test_top1_high": 100 * high}
    return {**top1, **interval, "seconds": time.perf_counter() - start}
