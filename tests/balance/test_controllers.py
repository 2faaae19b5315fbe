"""The bias follows the load."""

import torch

from moe.balance.controllers import bias_update


def test_overloaded_experts_lose_and_underloaded_ones_gain_the_rate() -> None:
    counts = torch.tensor([[[8, 4, 0, 4]]])
    assert torch.allclose(bias_update(counts, rate=0.01), torch.tensor([[-0.01, 0.0, 0.01, 0.0]]).double())


def test_windows_that_disagree_cancel_where_their_pooled_load_does_not() -> None:
    counts = torch.tensor([[[9, 0], [4, 5]]])
    assert bias_update(counts, rate=1.0).tolist() == [[0.0, 0.0]]
    assert bias_update(counts.sum(dim=1, keepdim=True), rate=1.0).tolist() == [[-1.0, 1.0]]
