"""The paired interval: against scipy, its coverage, and what one seed must not claim."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from moe.analysis.statistics import holm, paired_difference


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


def test_ninety_five_percent_of_the_intervals_hold_the_true_difference():
    rng = np.random.default_rng(1)
    truth, trials = 0.03, 4000
    for n in (3, 5):
        seeds = rng.normal(3.5, 0.5, (trials, n))  # shared by both arms, so pairing removes it
        first = seeds + truth + rng.normal(0, 0.01, (trials, n))
        results = [paired_difference(a, b) for a, b in zip(first, seeds, strict=True)]
        covered = np.mean([r.low <= truth <= r.high for r in results])
        assert covered == pytest.approx(0.95, abs=0.012)  # 3.5 standard errors of 4000 trials


def test_one_seed_has_a_mean_and_no_interval():
    result = paired_difference([3.0], [3.1])
    assert result.mean == pytest.approx(-0.1) and result.n == 1
    assert result.low is result.high is result.p is result.effect is None and result.sign == 0


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
