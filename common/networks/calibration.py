"""Losses relative to those between unrelated pictures: 0 is "the same", 1 "another picture".

    import numpy as np; from common.networks.calibration import Calibrated
    raw, unrelated = np.array([[[3.0]], [[5.0]]]), np.array([[100.0]])
    print(Calibrated(["shift"], ["l2"], raw, unrelated, [(0, 1)]).row("shift", "l2"))

Intervals are 95 %, by a bootstrap that resamples pictures and takes "another picture" from the
resample too (Efron & Tibshirani 1993).
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from common.errors import UserError
from common.reporting.statistics import resample_weights


def interval(resampled: np.ndarray) -> dict:
    """{"low", "high"} of a statistic's values (resamples,), or lists of them of (resamples, n).

    NaN where all values are the same. Ends are not interpolated: some values may be infinite.
    """
    ends = np.percentile(resampled, (2.5, 97.5), axis=0, method="nearest")
    low, high = np.where((resampled == resampled[0]).all(0), np.nan, ends)
    return {"low": low.tolist(), "high": high.tolist()}


class Calibrated:
    """Raw losses of pairs of copies of pictures, and their ratios to those of unrelated pictures.

    raw: (pictures, pairs, losses). unrelated: (M, losses), losses between unrelated pictures.
    others: of each of the M the two pictures' indexes; the second is None for a reference that is
    none of the pictures.
    relative: (pairs, losses), the mean raw loss over the mean unrelated one. resampled: the same of
    each resample of the pictures, (resamples, pairs, losses); it has its own "another picture".
    """

    def __init__(
        self,
        pairs: Sequence[str],
        losses: Sequence[str],
        raw: np.ndarray,
        unrelated: np.ndarray,
        others: Sequence[tuple[int, int | None]],
    ):
        self.pairs, self.losses, self.raw = list(pairs), list(losses), raw
        self._unrelated, self._others = unrelated, others
        yardstick = unrelated.mean(0)
        for loss, value in zip(losses, yardstick, strict=True):
            if not value > 0:
                raise UserError(
                    f"{loss} is {value:g} between unrelated pictures, so nothing can be calibrated"
                    " with it; give other reference pictures or other weights"
                )
        self.relative = raw.mean(0) / yardstick

    @cached_property
    def resampled(self) -> np.ndarray:
        weights = resample_weights(len(self.raw))
        between = np.ones((len(weights), len(self._others)))
        for column, (a, b) in enumerate(self._others):
            between[:, column] = weights[:, a] * (1 if b is None else weights[:, b])
        # A resample of two pictures may hold one of them twice: no pair, and no "another picture".
        between[between.sum(1) == 0] = 1
        yardstick = between @ self._unrelated / between.sum(1, keepdims=True)
        return np.einsum("bn,npl->bpl", weights, self.raw) / yardstick[:, None]

    def row(self, pair: str, loss: str) -> dict[str, float]:
        """{"raw", "relative", "low", "high"}: means over pictures, the interval of relative."""
        place = self.pairs.index(pair), self.losses.index(loss)
        means = {"raw": float(self.raw.mean(0)[place]), "relative": float(self.relative[place])}
        return means | interval(self.resampled[:, place[0], place[1]])

    def rows(self, pair: str) -> dict[str, dict[str, float]]:
        """{loss: its `row`} of one pair."""
        return {loss: self.row(pair, loss) for loss in self.losses}

    def curve(self, pairs: Sequence[str], loss: str) -> tuple[np.ndarray, np.ndarray]:
        """A loss over pairs, such as doses: relative (pairs,) and resampled (resamples, pairs)."""
        places, loss_place = [self.pairs.index(pair) for pair in pairs], self.losses.index(loss)
        return self.relative[places, loss_place], self.resampled[:, places, loss_place]
