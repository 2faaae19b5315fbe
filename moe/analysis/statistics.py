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
    error: float | None
    """Standard error of the mean."""

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
    Of normal differences 95 % of the intervals hold the truth at every n; of differences as skewed as an exponential
    distribution 89 %, with 3 pairs as with 6.
    Raises `ValueError` for unequal lengths, no pair, or values that are not finite.
    """
    _check_pairs(first, second)
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    n, mean = len(difference), float(difference.mean())
    if n == 1:
        return PairedDifference(mean, 1, None, None, None, None, None)
    spread = float(difference.std(ddof=1))
    if spread == 0:
        return PairedDifference(mean, n, mean, mean, 1.0 if mean == 0 else 0.0, None, 0.0)
    error = spread / math.sqrt(n)
    half = _quantile(confidence, n) * error
    p = float(2 * stats.t.sf(abs(mean) / error, n - 1))
    return PairedDifference(mean, n, mean - half, mean + half, p, mean / spread, error)


def margin_p(difference: PairedDifference, margin: float) -> float | None:
    """p-value of the hypothesis that the true difference is as large as `margin`, in either direction.

    It is 0.05 where the 95 % interval just touches ±margin from inside or from outside; small with |mean| < margin it
    shows equality up to the margin (two one-sided t-tests at half the level), small with |mean| > margin a difference
    beyond it. At margin 0 it is the p-value of the paired t-test. None for one pair.
    """
    if difference.error is None:
        return None
    distance = abs(abs(difference.mean) - margin)
    if difference.error == 0:
        return 1.0 if distance == 0 else 0.0
    return float(2 * stats.t.sf(distance / difference.error, difference.n - 1))


@dataclass(frozen=True)
class MeanRatio:
    """Ratio of two means over n paired seeds with Fieller's interval."""

    value: float | None
    """None where the denominator's mean is 0."""
    n: int
    low: float | None
    """Lower end of the interval; None for one pair, and where the interval is unbounded."""
    high: float | None
    """Upper end of the interval."""
    unbounded: bool
    """The denominator's own interval holds 0, so that no finite interval covers the ratio."""


def mean_ratio(numerator: Sequence[float], denominator: Sequence[float], *, confidence: float = 0.95) -> MeanRatio:
    """mean(x) / mean(y) of paired values with the interval of E. C. Fieller (J. R. Stat. Soc. B 16, 1954, p. 175).

    The interval is every r for which a paired t-test tells x from r y no more: (x - r y)^2 <= t^2 var(x - r y) / n with
    n - 1 degrees of freedom, a quadratic in r. It is bounded where the mean of y differs from 0 at the same level.
    x = (4, 5, 6), y = (8, 10, 12) give 0.5 and [0.5, 0.5]; x = (1, 2, 3), y = (2, 4, 6) give 0.5 and no bounds, since
    the mean of y is not told apart from 0. Raises `ValueError` as `paired_difference` does.
    """
    _check_pairs(numerator, denominator)
    x, y = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    n, top, bottom = len(x), float(x.mean()), float(y.mean())
    value = top / bottom if bottom else None
    if n == 1:
        return MeanRatio(value, 1, None, None, False)
    # r^2 a - 2 r b + c <= 0
    (xx, xy), (_, yy) = np.cov(x, y) * _quantile(confidence, n) ** 2 / n
    a, b, c = bottom**2 - yy, top * bottom - xy, top**2 - xx
    if a <= 0:
        return MeanRatio(value, n, None, None, True)
    root = math.sqrt(max(b * b - a * c, 0.0))  # rounding may take it below 0
    return MeanRatio(value, n, (b - root) / a, (b + root) / a, False)


def _quantile(confidence: float, n: int) -> float:
    return float(stats.t.ppf((1 + confidence) / 2, n - 1))


def _check_pairs(first: Sequence[float], second: Sequence[float]) -> None:
    if len(first) != len(second) or not len(first):
        raise ValueError(f"paired lists need the same length, at least 1: got {len(first)} and {len(second)}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("paired values need to be finite")


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
