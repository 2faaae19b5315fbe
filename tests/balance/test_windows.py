"""How a batch is split, and which windows its sequences belong to."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe.balance.statistics import Draws, draw_counts
from moe.balance.windows import Layout, draw_tokens


@given(batch=st.integers(1, 60), size=st.integers(1, 20), num_ranks=st.integers(1, 5))
def test_a_split_takes_every_sequence_once_in_the_fewest_passes_and_almost_equal_shares(batch, size, num_ranks) -> None:
    passes = -(-batch // (size * num_ranks))
    if batch < passes * num_ranks:
        with pytest.raises(ValueError, match="shared out"):
            Layout.split(batch, pass_sequences=size, num_ranks=num_ranks)
        return
    ranks = [Layout.split(batch, pass_sequences=size, num_ranks=num_ranks, rank=rank) for rank in range(num_ranks)]
    taken = [list(layout.positions(i)) for i in range(passes) for layout in ranks]
    assert [p for share in taken for p in share] == list(range(batch))
    lengths = {len(share) for share in taken}
    assert max(lengths) <= size and max(lengths) - min(lengths) <= 1
    assert all(layout.num_passes == passes and layout.batch_sequences == batch for layout in ranks)


def test_windows_that_cross_ranks_or_passes_are_told_apart() -> None:
    layout = Layout(((2, 4), (2, 4)))
    assert [layout.spans_ranks(window) for window in (1, 2, 3, 4, 6, 12)] == [False, False, True, True, True, True]
    assert [layout.spans_passes(window) for window in (1, 2, 3, 4, 6, 12)] == [False, False, False, True, False, True]
    assert list(layout.windows(1, 4)) == [1, 2]


def test_pooling_sums_the_sequences_of_each_window() -> None:
    values = torch.arange(10.0).view(1, 5, 2)
    pooled = Layout(((3, 5),), rank=1).pool(values, 0, 4)
    assert pooled.tolist() == [[[0.0, 1.0], [2.0 + 4 + 6 + 8, 3.0 + 5 + 7 + 9]]]


@given(seed=st.integers(0, 1000), batch=st.integers(1, 8), length=st.integers(1, 9))
def test_a_draw_has_the_tokens_of_its_sequence_in_number_and_each_token_is_drawn_once(seed, batch, length) -> None:
    rng = np.random.default_rng(seed)
    counted = np.arange(length) < rng.integers(0, length + 1, (batch, 1))
    draws = draw_tokens(counted, np.random.default_rng((seed, 1)))
    assert draws.shape == counted.shape
    for draw in range(batch):
        assert (draws[counted] == draw).sum() == counted[draw].sum()


def test_draws_take_tokens_from_all_sequences_alike() -> None:
    draws = draw_tokens(np.ones((4, 5000), dtype=bool), np.random.default_rng(0))
    for draw in range(4):
        # Each fourth has a standard deviation of 0.005.
        assert (draws == draw).mean(axis=1) == pytest.approx([0.25] * 4, abs=0.025)


@given(seed=st.integers(0, 1000), padded=st.booleans())
def test_counts_per_draw_are_those_of_its_tokens_one_by_one_and_sum_to_the_batch(seed, padded) -> None:
    rng = np.random.default_rng(seed)
    counted = np.arange(5) < (rng.integers(1, 6, (6, 1)) if padded else np.full((6, 1), 5))
    draws = draw_tokens(counted, rng)
    selected = rng.integers(0, 7, (6, 5, 2))
    expected = torch.zeros(6, 7, dtype=torch.int64)
    for sequence, token in zip(*np.nonzero(counted), strict=True):
        for expert in selected[sequence, token]:
            expected[draws[sequence, token], expert] += 1
    mask = torch.from_numpy(counted) if padded else None
    parts = []
    for part in (slice(0, 2), slice(2, 6)):
        chosen, of = torch.from_numpy(selected[part].reshape(-1, 2)), Draws(torch.from_numpy(draws[part]), 6)
        parts.append(draw_counts(chosen, 7, of, mask_SN=None if mask is None else mask[part]))
    assert torch.equal(sum(parts), expected)
    whole = np.bincount(selected[counted].ravel(), minlength=7)
    assert expected.sum(dim=0).tolist() == whole.tolist()
