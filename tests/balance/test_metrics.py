"""Load metrics at their known points."""

import pytest
import torch

from moe.balance.metrics import dead_experts, load_entropy, max_violation


def test_even_load() -> None:
    counts = torch.full((3, 4), 7)
    assert max_violation(counts).tolist() == [0, 0, 0]
    assert load_entropy(counts).tolist() == pytest.approx([1, 1, 1])
    assert dead_experts(counts).tolist() == [0, 0, 0]


def test_one_expert_takes_all() -> None:
    counts = torch.tensor([12, 0, 0, 0])
    assert max_violation(counts).item() == 3
    assert load_entropy(counts).item() == 0
    assert dead_experts(counts).item() == 3


def test_metrics_do_not_depend_on_the_number_of_tokens() -> None:
    counts = torch.tensor([5, 3, 2, 6])
    for metric in (max_violation, load_entropy):
        assert metric(counts * 1000).item() == pytest.approx(metric(counts).item())
