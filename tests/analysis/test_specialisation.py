"""Each measure at its two known points, against slow loops, and under changes that must not matter."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moe.analysis import specialisation as sp
from tests.analysis.routing import disjoint, uniform

counts_DLE = st.tuples(st.integers(2, 4), st.integers(1, 3), st.integers(2, 6)).flatmap(
    lambda shape: arrays(np.int64, shape, elements=st.integers(1, 1000))
)
MEASURES = {
    "mutual information": lambda c: sp.mutual_information(sp.selection_frequency(c)),
    "pairwise divergence": lambda c: sp.pairwise_divergence(sp.selection_frequency(c)),
    "MaxVio": lambda c: sp.max_violation(c.sum(axis=0)),
    "load entropy": lambda c: sp.load_entropy(c.sum(axis=0)),
}


def test_uniform_routing_gives_the_reference_levels():
    assert np.allclose(sp.selection_frequency(uniform()), 1 / 6)
    assert np.allclose(MEASURES["mutual information"](uniform()), 0)
    assert np.allclose(MEASURES["pairwise divergence"](uniform()), 0)
    assert np.allclose(MEASURES["MaxVio"](uniform()), 0)
    assert np.allclose(MEASURES["load entropy"](uniform()), 1)


def test_disjoint_experts_give_the_upper_bounds():
    assert np.allclose(MEASURES["mutual information"](disjoint()), math.log(3))
    assert np.allclose(MEASURES["pairwise divergence"](disjoint()), math.log(2))
    assert np.allclose(MEASURES["MaxVio"](disjoint()), 0)  # balanced over the domains together


def test_one_expert_that_takes_all_is_the_worst_load():
    load = np.array([[0, 0, 8, 0]])
    assert sp.max_violation(load) == pytest.approx(3)
    assert sp.load_entropy(load) == pytest.approx(0)
    assert sp.load_entropy(np.array([[7]])) == pytest.approx(1)


def test_top_k_score_sum_is_one_for_certainty_and_k_over_e_for_indifference():
    tokens = np.array([5, 20])
    certain = np.zeros((2, 1, 4))
    certain[:, 0, 1] = tokens
    assert np.allclose(sp.top_k_score_sum(certain, tokens), 1)
    indifferent = np.broadcast_to(tokens[:, None, None] * 2 / 4 / 4, (2, 1, 4))  # K = 2 of E = 4
    assert np.allclose(sp.top_k_score_sum(indifferent, tokens), 2 / 4)


def test_a_domain_without_selections_is_refused():
    with pytest.raises(ValueError, match="every domain"):
        sp.selection_frequency(np.zeros((2, 1, 4)))
    with pytest.raises(ValueError, match="two domains"):
        sp.pairwise_divergence(np.full((1, 1, 4), 0.25))


def slow_mutual_information(counts, layer):
    domains, _, experts = counts.shape
    f = [[counts[d, layer, e] / sum(counts[d, layer]) for e in range(experts)] for d in range(domains)]
    total = 0.0
    for d in range(domains):
        for e in range(experts):
            marginal = sum(f[other][e] for other in range(domains)) / domains
            if f[d][e] > 0:
                total += f[d][e] / domains * math.log(f[d][e] / marginal)
    return total


def slow_divergence(counts, layer):
    domains = len(counts)
    pairs = [slow_mutual_information(counts[[a, b]], layer) for a in range(domains) for b in range(domains) if a < b]
    return sum(pairs) / len(pairs)


@given(counts_DLE)
def test_vectorised_measures_equal_the_loops(counts):
    for layer in range(counts.shape[1]):
        assert MEASURES["mutual information"](counts)[layer] == pytest.approx(
            slow_mutual_information(counts, layer), abs=1e-12
        )
        assert MEASURES["pairwise divergence"](counts)[layer] == pytest.approx(
            slow_divergence(counts, layer), abs=1e-12
        )


def slow_overlap(counts, layer):
    """Jaccard index of the sets of experts that have at least twice their uniform share of a domain's selections."""
    domains, _, experts = counts.shape
    hot = [{e for e in range(experts) if experts * counts[d, layer, e] >= 2 * sum(counts[d, layer])}
           for d in range(domains)]  # fmt: skip
    pairs = [(hot[a], hot[b]) for a in range(domains) for b in range(domains) if a < b]
    return sum(len(a & b) / len(a | b) if a | b else 0 for a, b in pairs) / len(pairs), hot


@given(counts_DLE)
def test_hot_experts_and_their_overlap_equal_sets(counts):
    hot = sp.hot_experts(sp.selection_frequency(counts), multiple=2)
    overlap = sp.hot_overlap(hot)
    for layer in range(counts.shape[1]):
        expected, sets = slow_overlap(counts, layer)
        assert [set(np.flatnonzero(row)) for row in hot[:, layer]] == sets
        assert overlap[layer] == pytest.approx(expected, abs=1e-12)


def test_overlap_is_one_for_the_same_hot_experts_and_zero_for_others_or_none():
    def overlap(counts):
        return sp.hot_overlap(sp.hot_experts(sp.selection_frequency(counts), multiple=2))

    assert np.allclose(overlap(disjoint()[[0, 0, 0]]), 1)
    assert np.allclose(overlap(disjoint()), 0)
    assert np.allclose(overlap(uniform()), 0)
    one_of_three = np.array([[[5, 5, 0, 0, 0, 0]], [[0, 5, 5, 0, 0, 0]]])
    assert np.allclose(overlap(one_of_three), 1 / 3)
    with pytest.raises(ValueError, match="two domains"):
        sp.hot_overlap(np.ones((1, 1, 4), dtype=bool))


def test_an_expert_with_exactly_the_multiple_of_its_uniform_share_is_hot():
    """Whatever the rounding of the quotients: that of the share and that of the border are of the same fraction."""
    for experts in range(3, 70):
        for part in (1, 7, 1000, 12_347):
            rest = (experts - 3) * [0] + [(experts - 2) * part]
            at_border, below = ([2 * part - i, *rest, i] for i in (0, 1))
            hot = [sp.hot_experts(sp.selection_frequency([[row]]), multiple=2)[0, 0, 0] for row in (at_border, below)]
            assert hot == [True, False], (experts, part)


@given(counts_DLE, st.randoms(), st.integers(2, 50))
def test_measures_do_not_depend_on_expert_names_or_on_the_number_of_tokens(counts, random, factor):
    order = list(range(counts.shape[-1]))
    random.shuffle(order)
    for name, measure in MEASURES.items():
        assert np.allclose(measure(counts), measure(counts[..., order])), name
        assert np.allclose(measure(counts), measure(counts * factor)), name


@given(counts_DLE)
def test_measures_stay_inside_their_bounds(counts):
    domains, _, experts = counts.shape
    information = MEASURES["mutual information"](counts)
    assert ((information >= 0) & (information <= math.log(min(domains, experts)) + 1e-9)).all()
    divergence = MEASURES["pairwise divergence"](counts)
    assert ((divergence >= 0) & (divergence <= math.log(2) + 1e-9)).all()
    assert (MEASURES["MaxVio"](counts) <= experts - 1).all()
    assert (MEASURES["load entropy"](counts) <= 1 + 1e-9).all()


@given(counts_DLE)
def test_information_does_not_grow_when_two_experts_are_merged(counts):
    merged = np.concatenate([counts[..., :1] + counts[..., 1:2], counts[..., 2:]], axis=-1)
    assert (MEASURES["mutual information"](merged) <= MEASURES["mutual information"](counts) + 1e-9).all()
