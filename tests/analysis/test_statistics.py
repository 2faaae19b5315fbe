"""Intervals and p-values: against scipy and by hand, their coverage, and what one seed must not claim.

`pytest -rP -k "intervals_hold or cover" tests/analysis/test_statistics.py` prints the coverages.
"""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from moe.analysis.statistics import holm, margin_p, mean_ratio, paired_difference


def test_interval_and_p_value_agree_with_scipy():
    rng = np.random.default_rng(0)
    first, second = rng.normal(3, 1, 5), rng.normal(2.5, 1, 5)
    ours, theirs = paired_difference(first, second), stats.ttest_rel(first, second)
    interval = theirs.confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high))
    assert ours.p == pytest.approx(theirs.pvalue)


def test_differences_one_two_three_give_the_documented_interval():
    result = paired_difference([1, 2, 3], [0, 0, 0])
    assert (result.mean, result.low, result.high) == pytest.approx((2, -0.484, 4.484), abs=1e-3)
    assert result.effect == pytest.approx(2) and result.sign == 0


def coverage(noise, n, trials=8000):
    """Share of the intervals that hold the truth; `noise` draws the differences around it."""
    truth = 0.03
    seeds = np.random.default_rng(1).normal(3.5, 0.5, (trials, n))  # shared by both arms, so pairing removes it
    first = seeds + truth + 0.01 * noise((trials, n))
    results = [paired_difference(a, b) for a, b in zip(first, seeds, strict=True)]
    share = float(np.mean([r.low <= truth <= r.high for r in results]))
    print(f"{noise.__name__} differences, n = {n}: {share:.3f} of 95 % intervals hold the truth")
    return share


@pytest.mark.parametrize("n", [3, 6])
def test_ninety_five_percent_of_the_intervals_hold_the_true_difference(n):
    normal = np.random.default_rng(2).standard_normal
    assert coverage(normal, n) == pytest.approx(0.95, abs=0.009)  # 3.5 standard errors of 8000 trials


@pytest.mark.parametrize("n", [3, 6])
def test_intervals_of_skewed_differences_cover_as_much_less_as_documented(n):
    generator = np.random.default_rng(3)

    def exponential(size):
        return generator.standard_exponential(size) - 1

    assert coverage(exponential, n) == pytest.approx(0.886, abs=0.0125)


def test_one_seed_has_a_mean_and_no_interval():
    result = paired_difference([3.0], [3.1])
    assert result.mean == pytest.approx(-0.1) and result.n == 1
    assert result.low is result.high is result.p is result.effect is result.error is None and result.sign == 0
    assert margin_p(result, 0.1) is None


def test_equal_runs_differ_by_exactly_nothing():
    result = paired_difference([3.0, 3.2], [3.0, 3.2])
    assert (result.mean, result.low, result.high, result.p, result.effect, result.sign) == (0, 0, 0, 1.0, None, 0)


def test_values_that_cannot_be_paired_are_refused():
    with pytest.raises(ValueError, match="same length"):
        paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="at least 1"):
        paired_difference([], [])
    with pytest.raises(ValueError, match="finite"):
        paired_difference([float("nan"), 1.0], [1.0, 1.0])


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=2, max_size=6))
def test_swapping_the_arms_mirrors_the_interval(pairs):
    first, second = zip(*pairs, strict=True)
    ours, mirrored = paired_difference(first, second), paired_difference(second, first)
    assert (ours.mean, ours.low, ours.high) == pytest.approx((-mirrored.mean, -mirrored.high, -mirrored.low))
    assert ours.p == pytest.approx(mirrored.p) and ours.sign == -mirrored.sign


def test_holm_at_known_points():
    assert holm([0.01, 0.04]) == pytest.approx([0.02, 0.04])
    assert holm([0.03, 0.01, 0.04]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.2]) == [0.2] and holm([]) == []
    assert holm([None, 0.01]) == [None, 0.01]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_at_least_the_p_value_and_at_most_bonferroni(p_values):
    for p, adjusted in zip(p_values, holm(p_values), strict=True):
        assert p <= adjusted <= min(1.0, p * len(p_values)) + 1e-12


def test_holm_by_hand():
    """Five values, in order times 5, 4, 3, 2, 1, none below the one before, none above 1."""
    p_values = [0.30, 0.004, 0.02, 0.025, 0.9]
    by_hand = {0.004: 0.020, 0.02: 0.08, 0.025: 0.08, 0.30: 0.60, 0.9: 0.9}  # 0.025 x 3 = 0.075 < 0.08
    assert holm(p_values) == pytest.approx([by_hand[p] for p in p_values])


def test_a_margin_of_zero_gives_the_paired_t_test():
    rng = np.random.default_rng(4)
    first, second = rng.normal(3, 1, 5), rng.normal(2.5, 1, 5)
    assert margin_p(paired_difference(first, second), 0) == pytest.approx(stats.ttest_rel(first, second).pvalue)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=6), st.floats(0.01, 5))
def test_the_margins_p_is_below_five_percent_where_the_interval_lies_wholly_inside_or_outside(values, margin):
    result = paired_difference(values, [0] * len(values))
    inside = -margin < result.low and result.high < margin
    outside = result.low > margin or result.high < -margin
    assume(abs(margin_p(result, margin) - 0.05) > 1e-9)
    if abs(result.mean) < margin:
        assert (margin_p(result, margin) < 0.05) == inside
    else:
        assert (margin_p(result, margin) < 0.05) == outside


def test_equality_is_claimed_of_arms_that_differ_by_the_margin_in_five_percent_of_cases_at_most():
    rng, margin = np.random.default_rng(5), 0.03
    results = [paired_difference(values, [0] * 6) for values in rng.normal(margin, 0.01, (4000, 6))]
    significant = [result for result in results if margin_p(result, margin) < 0.05]
    assert len(significant) / 4000 == pytest.approx(0.05, abs=0.012)
    assert sum(abs(result.mean) < margin for result in significant) / 4000 == pytest.approx(0.025, abs=0.009)


def test_ratio_at_known_points():
    exact = mean_ratio([4, 5, 6], [8, 10, 12])
    assert (exact.value, exact.low, exact.high, exact.unbounded) == pytest.approx((0.5, 0.5, 0.5, False))
    same = mean_ratio([0.3, 0.31], [0.3, 0.31])
    assert (same.value, same.low, same.high) == pytest.approx((1, 1, 1))


@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(1, 4)), min_size=2, max_size=6), st.floats(-3, 3))
def test_fiellers_interval_is_every_ratio_that_a_paired_t_test_does_not_refuse(pairs, r):
    x, y = (np.array(values) for values in zip(*pairs, strict=True))
    result = mean_ratio(x, y)
    denominator = paired_difference(y, np.zeros_like(y))
    assert result.unbounded == (denominator.low <= 0)
    assume(not result.unbounded)
    assume(np.std(x - r * y) > 1e-6)
    p = paired_difference(x, r * y).p
    assume(abs(p - 0.05) > 1e-6)
    assert (p > 0.05) == (result.low < r < result.high)


@pytest.mark.parametrize(("n", "gain"), [(3, 0.04), (6, 0.04), (3, 0.012)])
def test_ninety_five_percent_of_fiellers_intervals_hold_the_true_share(n, gain):
    rng, share, trials = np.random.default_rng(6), 0.9, 6000
    micro, other, best = 0.004 * rng.standard_normal((3, trials, n))
    micro, other, best = 3 + micro, 3 - share * gain + other, 3 - gain + best
    results = [mean_ratio(x, y) for x, y in zip(micro - other, micro - best, strict=True)]
    bounded = [result for result in results if not result.unbounded]
    covered = sum(result.low <= share <= result.high for result in bounded) + trials - len(bounded)
    print(f"share {share} of {gain} nats, n = {n}: {covered / trials:.3f} hold it, {len(bounded)} of {trials} bounded")
    if gain > 0.03:
        assert len(bounded) > 0.99 * trials
        assert covered / trials == pytest.approx(0.95, abs=0.01)
    else:
        # A gain that three seeds hardly tell from 0: many intervals are unbounded, and the others may not pay for it.
        assert 0.1 * trials < trials - len(bounded) < 0.9 * trials
        assert covered / trials >= 0.94


def test_a_share_of_no_gain_and_of_one_seed_has_no_interval():
    weak = mean_ratio([0.01, 0.02, -0.01], [0.02, -0.02, 0.01])
    assert weak.unbounded and weak.low is weak.high is None and weak.n == 3
    assert mean_ratio([1, 2, 3], [2, 4, 6]).unbounded
    single = mean_ratio([0.1], [0.2])
    assert (single.value, single.low, single.high, single.unbounded) == (0.5, None, None, False)
    assert mean_ratio([0.1, 0.2], [0.0, 0.0]).value is None
    with pytest.raises(ValueError, match="same length"):
        mean_ratio([1.0], [1.0, 2.0])
