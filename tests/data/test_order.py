"""The sample order is a pure function of (seed, step), in proportion and without repetition."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe.config import DataConfig
from moe.data.order import SampleOrder, read_batch
from moe.settings import parse


def order(
    weights: list[int], sizes: list[int], *, batch: int = 6, micro: int = 1, seed: int = 0, **fields: float
) -> SampleOrder:
    source = {"kind": "files", "paths": ["x.txt"]}
    domains = [{"name": f"d{i}", "source": source, "weight": weight} for i, weight in enumerate(weights)]
    config = parse(DataConfig, {"domains": domains, "sequence_length": 16, **fields}, "test")
    return SampleOrder(config, sizes, batch_sequences=batch, micro_sequences=micro, seed=seed)


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


def micro_batches(samples: SampleOrder, steps: range, micro: int) -> list[list[tuple[int, int]]]:
    """Domain and sequence number of the sequences of every micro-batch of these steps."""
    rows = [pair for step in steps for pair in zip(*(a[:, 0].tolist() for a in samples.batch(step)), strict=True)]
    return [rows[i : i + micro] for i in range(0, len(rows), micro)]


@given(
    weights=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    micro=st.integers(1, 4),
    per_batch=st.integers(1, 5),
    purity=st.floats(0.01, 1),
    seed=st.integers(0, 1000),
)
def test_micro_purity_decides_on_neighbours_alone_and_no_sequence_comes_again_before_all_were_seen(
    weights: list[int], micro: int, per_batch: int, purity: float, seed: int
) -> None:
    # An epoch of every domain is as many blocks of micro-batches as a batch has micro-batches.
    sizes = [weight * micro * per_batch for weight in weights]
    batch, steps = micro * per_batch, range(sum(weights))
    pure, found = (
        micro_batches(order(weights, sizes, batch=batch, micro=micro, seed=seed, micro_purity=p), steps, micro)
        for p in (1.0, purity)
    )
    assert all(len({domain for domain, _ in rows}) == 1 for rows in pure)
    everything = [(domain, i) for domain, size in enumerate(sizes) for i in range(size)]
    assert sorted(sum(pure, [])) == sorted(sum(found, [])) == everything


def test_pure_micro_batches_take_the_domains_in_proportion_in_every_block() -> None:
    found = micro_batches(order([1, 3], [500, 500], batch=8, micro=2, micro_purity=1.0), range(20), 2)
    firsts = [rows[0][0] for rows in found]
    assert [sum(firsts[i : i + 4]) for i in range(0, 80, 4)] == [3] * 20
    assert len({tuple(firsts[i : i + 4]) for i in range(0, 80, 4)}) > 1, "blocks come in different orders"


@pytest.mark.parametrize("purity", [0.01, 0.5, 1.0])
def test_micro_purity_is_the_share_of_sequences_that_keep_their_micro_batchs_domain(purity: float) -> None:
    sizes = [2000] * 4
    for batch in (64, 16):  # a span of one batch and, with blocks of eight, of two
        weights = [1, 1, 1, 1] if batch == 64 else [2, 2, 2, 2]
        pure = order(weights, sizes, batch=batch, micro=4, micro_purity=1.0)
        mixed = order(weights, sizes, batch=batch, micro=4, micro_purity=purity)
        kept = np.mean([(mixed.batch(step)[0] == pure.batch(step)[0]).mean() for step in range(2000 // batch)])
        # A place that is drawn from the mix gets its own domain again in one of four cases.
        assert kept == pytest.approx(purity + (1 - purity) / 4, abs=0.04)


def test_micro_purity_zero_ignores_the_micro_batch_and_the_order_is_a_function_of_the_step() -> None:
    plain, other = (order([3, 1, 2], [50, 7, 1000], batch=48, micro=micro) for micro in (1, 8))
    assert all(np.array_equal(a, b) for a, b in zip(plain.batch(5), other.batch(5), strict=True))
    walked, fresh = (order([3, 1, 2], [50, 7, 1000], batch=16, micro=4, micro_purity=0.7) for _ in range(2))
    for step in range(9):
        walked.batch(step)
    assert all(np.array_equal(a, b) for a, b in zip(walked.batch(9), fresh.batch(9), strict=True))


def test_read_batch_puts_each_segment_where_it_belongs() -> None:
    packed = [
        np.arange(4 * 16, dtype=np.uint16).reshape(4, 16),
        1000 + np.arange(4 * 16, dtype=np.uint16).reshape(4, 16),
    ]
    domains, sequences = np.array([[0, 1], [1, 1]]), np.array([[2, 3], [0, 0]])
    tokens = read_batch(packed, domains, sequences)
    assert tokens.tolist() == [[*range(32, 40), *range(1056, 1064)], [*range(1000, 1016)]]
