"""Own experts, the damage without them, and their stability: at known points and against loops."""

import numpy as np
import pytest

from moe.analysis.ownership import damage, own_experts, stability
from moe.analysis.specialisation import selection_frequency
from tests.analysis.routing import disjoint

RANDOM = np.random.default_rng(5)


def test_domains_with_experts_of_their_own_own_those_and_uniform_routing_leaves_each_one():
    assert np.array_equal(own_experts(selection_frequency(disjoint()), multiple=2), disjoint() > 0)
    assert np.array_equal(own_experts(np.full((3, 2, 6), 1 / 6), multiple=2).sum(axis=-1), np.ones((3, 2)))


def test_an_expert_that_is_hot_or_the_first_is_own():
    frequency = np.array([[[0.5, 0.26, 0.24, 0.0]], [[0.3, 0.29, 0.21, 0.2]]])
    assert own_experts(frequency, multiple=1.0).tolist() == [[[True, True, False, False]], [[True, True, False, False]]]
    assert own_experts(frequency, multiple=1.5).tolist() == [
        [[True, False, False, False]],
        [[True, False, False, False]],
    ]


def test_experts_that_one_domain_alone_misses_damage_no_other():
    own = disjoint() > 0
    increase_LED = np.moveaxis(0.3 * own, 0, -1)
    found = damage(increase_LED, own)
    assert found.own_D == pytest.approx([0.3] * 3) and found.other_D == pytest.approx([0] * 3)


def test_experts_that_all_miss_alike_damage_the_others_as_much():
    found = damage(np.repeat(RANDOM.random((2, 6, 1)), 3, axis=-1), disjoint() > 0)
    assert found.own_D == pytest.approx(found.other_D)


def test_damage_equals_a_loop_over_domains_and_experts():
    increase_LED, frequency = RANDOM.normal(size=(2, 6, 4)), RANDOM.dirichlet(np.ones(6) / 2, size=(4, 2))
    own_DLE = own_experts(frequency, multiple=2)
    found = damage(increase_LED, own_DLE)
    for d in range(4):
        mine = [(layer, expert) for layer in range(2) for expert in range(6) if own_DLE[d, layer, expert]]
        assert found.own_D[d] == pytest.approx(np.mean([increase_LED[at][d] for at in mine]))
        others = [increase_LED[at][other] for at in mine for other in range(4) if other != d]
        assert found.other_D[d] == pytest.approx(np.mean(others))


def test_damage_of_one_domain_or_of_none_of_its_own_is_refused():
    with pytest.raises(ValueError, match="damage needs"):
        damage(np.ones((2, 6, 1)), np.ones((1, 2, 6)))
    with pytest.raises(ValueError, match="damage needs"):
        damage(np.ones((2, 6, 2)), np.zeros((2, 2, 6)))


def test_equal_counts_are_stable_and_exchanged_experts_are_not():
    counts = disjoint()
    kept = stability(counts, 7 * counts)
    assert kept.share_L == pytest.approx([1, 1]) and kept.chance_L == pytest.approx([1 / 3, 1 / 3])
    assert stability(counts, counts[[1, 2, 0]]).share_L == pytest.approx([0, 0])


def test_chance_is_what_experts_dealt_anew_agree_by():
    first, second = RANDOM.integers(1, 100, size=(2, 3, 1, 40))
    dealt = [stability(first, second[:, :, RANDOM.permutation(40)]).share_L[0] for _ in range(2000)]
    # The standard error of 2000 shares of 40 experts is 0.002.
    assert stability(first, second).chance_L[0] == pytest.approx(np.mean(dealt), abs=0.01)


def test_experts_that_nobody_selects_are_left_out():
    counts = disjoint(experts=8)  # the last two are never selected
    assert stability(counts, counts).chance_L == pytest.approx([1 / 3, 1 / 3])
    apart = np.zeros((2, 1, 4))
    apart[:, :, 0] = 1
    with pytest.raises(ValueError, match="at both moments"):
        stability(apart, apart[..., ::-1])


def test_the_number_of_tokens_of_a_domain_does_not_matter():
    first, second = RANDOM.integers(1, 100, size=(2, 3, 2, 10))
    scaled = second * np.array([1, 50, 3])[:, None, None]
    assert np.array_equal(stability(first, scaled).share_L, stability(first, second).share_L)
