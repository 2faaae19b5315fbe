"""The sample order is a pure function of (seed, step), in proportion and without repetition."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe.config import DataConfig
from moe.data.order import SampleOrder, read_batch
from moe.settings import parse


def order(weights: list[int], sizes: list[int], *, batch: int = 6, seed: int = 0, purity: float = 1.0) -> SampleOrder:
    source = {"kind": "files", "paths": ["x.txt"]}
    domains = [{"name": f"d{i}", "source": source, "weight": weight} for i, weight in enumerate(weights)]
    config = parse(DataConfig, {"domains": domains, "purity": purity, "sequence_length": 16}, "test")
    return SampleOrder(config, sizes, batch_sequences=batch, seed=seed)


def sample(weights: list[int], sizes: list[int], seed: int, slot: int) -> tuple[int, int]:
    """The definition, one slot at a time: domain and sequence number."""
    places = [(domain, turn) for domain, weight in enumerate(weights) for turn in range(weight)]
    block, place = divmod(slot, len(places))
    domain, turn = places[np.random.default_rng((seed, 1, block)).permutation(len(places))[place]]
    epoch, index = divmod(block * weights[domain] + turn, sizes[domain])
    return domain, int(np.random.default_rng((seed, 2, domain, epoch)).permutation(sizes[domain])[index])


@given(
    domains=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 40)), min_size=1, max_size=5),
    batch=st.integers(1, 50),
    seed=st.integers(0, 2**31),
    step=st.integers(0, 10) | st.integers(0, 10**6),
)
def test_a_batch_is_its_slots_one_by_one(domains: list[tuple[int, int]], batch: int, seed: int, step: int) -> None:
    weights, sizes = ([pair[i] for pair in domains] for i in range(2))
    expected = [sample(weights, sizes, seed, slot) for slot in range(step * batch, (step + 1) * batch)]
    drawn = order(weights, sizes, batch=batch, seed=seed).batch(step)
    assert sorted(zip(*(a[:, 0].tolist() for a in drawn), strict=True)) == sorted(expected)


@pytest.mark.parametrize(("purity", "digest"), [(1.0, "e94759cb53ba82a9"), (0.5, "327164af030dccb1")])
def test_samples_are_those_that_published_runs_have_seen(purity: float, digest: str) -> None:
    samples = order([3, 1, 2], [50, 7, 1000], batch=48, seed=4, purity=purity)
    content = b"".join(a.astype("<i8").tobytes() for step in (0, 1, 2, 449, 100_000) for a in samples.batch(step))
    assert hashlib.sha256(content).hexdigest()[:16] == digest


def test_a_step_is_the_same_whether_or_not_the_steps_before_it_were_asked_for() -> None:
    walked = order([1, 2], [50, 70])
    for step in range(9):
        walked.batch(step)
    for a, b in zip(walked.batch(9), order([1, 2], [50, 70]).batch(9), strict=True):
        assert np.array_equal(a, b)
    assert not np.array_equal(walked.batch(9)[1], order([1, 2], [50, 70], seed=1).batch(9)[1])


def test_an_epoch_shows_every_sequence_once_and_domains_in_proportion() -> None:
    samples = order([1, 2], [10, 20])
    seen = [pair for step in range(5) for pair in zip(*(a[:, 0].tolist() for a in samples.batch(step)), strict=True)]
    assert len(seen) == len(set(seen)) == 30
    assert sum(domain == 0 for domain, _ in seen) == 10


@pytest.mark.parametrize("purity", [0.0, 0.5, 1.0])
def test_purity_is_the_share_of_segments_that_keep_their_domain(purity: float) -> None:
    samples = order([1, 1, 1, 1], [100] * 4, batch=64, purity=purity)
    pure = order([1, 1, 1, 1], [100] * 4, batch=64)
    kept = np.mean([(samples.batch(s)[0] == pure.batch(s)[0]).mean() for s in range(20)])
    # A replaced segment draws its own domain again in one of four cases; 20 x 64 x 8 segments.
    assert kept == pytest.approx(purity + (1 - purity) / 4, abs=0.02)


def test_read_batch_puts_each_segment_where_it_belongs() -> None:
    packed = [
        np.arange(4 * 16, dtype=np.uint16).reshape(4, 16),
        1000 + np.arange(4 * 16, dtype=np.uint16).reshape(4, 16),
    ]
    domains, sequences = np.array([[0, 1], [1, 1]]), np.array([[2, 3], [0, 0]])
    tokens = read_batch(packed, domains, sequences)
    assert tokens.tolist() == [[*range(32, 40), *range(1056, 1064)], [*range(1000, 1016)]]
