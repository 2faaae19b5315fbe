"""The sample order is a pure function of (seed, step), in proportion and without repetition."""

import numpy as np
import pytest

from moe.config import DataConfig
from moe.data.order import SampleOrder, read_batch
from moe.settings import parse


def order(weights: list[int], sizes: list[int], *, batch: int = 6, seed: int = 0, purity: float = 1.0) -> SampleOrder:
    source = {"kind": "files", "paths": ["x.txt"]}
    domains = [{"name": f"d{i}", "source": source, "weight": weight} for i, weight in enumerate(weights)]
    config = parse(DataConfig, {"domains": domains, "purity": purity, "sequence_length": 16}, "test")
    return SampleOrder(config, sizes, batch_sequences=batch, seed=seed)


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
