"""Is one arm lower than another? Paired over seeds: equal seeds share data order and initialisation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class PairedDifference:
    """Mean of first - second over n paired seeds. What one seed cannot give is None, never a number."""

    mean: float
    n: int
    low: float | None
    """Lower end of the interval."""
    high: float | None
    """Upper end of the interval."""
    p: float | None
    """Two-sided p-value of the paired t-test."""
    effect: float | None
    """Cohen's d_z: mean over standard deviation of the differences; None also where all differences are equal."""

    @property
    def sign(self) -> int:
        """-1 or 1 where the whole interval lies below or above zero, 0 where it does not or where there is none."""
        if self.low is None or self.high is None:
            return 0
        return -1 if self.high < 0 else 1 if self.low > 0 else 0


def paired_difference(first: Sequence[float], second: Sequence[float], *, confidence: float = 0.95) -> PairedDifference:
    """Mean paired difference with its t interval: m ± t_{n-1} s / sqrt(n), s the standard deviation with n - 1.

    `first[i]` and `second[i]` are of the same seed. Differences 1, 2, 3 give mean 2 and the 95 % interval
    [-0.484, 4.484]; equal lists give mean 0, interval [0, 0] and p = 1. One pair gives a mean and no interval.
    Raises `ValueError` for unequal lengths, no pair, or values that are not finite.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"paired lists need the same length, at least 1: got {len(first)} and {len(second)}")
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    if not np.isfinite(difference).all():
        raise ValueError("a paired difference needs finite values")
    n, mean = len(difference), float(difference.mean())
    if n == 1:
        return PairedDifference(mean, 1, None, None, None, None)
    spread = float(difference.std(ddof=1))
    if spread == 0:
        return PairedDifference(mean, n, mean, mean, 1.0 if mean == 0 else 0.0, None)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * spread / math.sqrt(n)
    p = float(2 * stats.t.sf(abs(mean) * math.sqrt(n) / spread, n - 1))
    return PairedDifference(mean, n, mean - half, mean + half, p, mean / spread)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for a family of tests by Holm's step-down method; None (no test) stays None and does not count.

    The i-th smallest of m values is multiplied by m - i + 1 and kept from falling below the one before, up to 1:
    (0.01, 0.04) give (0.02, 0.04); a single value stays as it is.
    """
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    running = 0.0
    for rank, (p, i) in enumerate(tested):
        running = max(running, min(1.0, p * (len(tested) - rank)))
        adjusted[i] = running
    return adjusted
