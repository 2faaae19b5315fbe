"""How a batch is split, and which windows its sequences belong to."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe.balance.windows import Layout


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
