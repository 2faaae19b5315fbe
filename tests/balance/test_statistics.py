"""Scores of logits, and their shares, against their definition."""

import math

import pytest
import torch

from moe.balance.statistics import Gate, gate_scores, sums_of_logits


def slow_scores(logits: list[float], gate: Gate) -> tuple[list[float], list[float]]:
    parts = [math.exp(x) if gate == "softmax" else 1 / (1 + math.exp(-x)) for x in logits]
    shares = [part / sum(parts) for part in parts]
    return (shares if gate == "softmax" else parts), shares


@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
def test_scores_and_shares_equal_the_definition(gate: Gate) -> None:
    logits = 3 * torch.randn(20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for row, scores, shares in zip(logits, *gate_scores(logits, gate), strict=True):
        expected = slow_scores(row.tolist(), gate)
        assert (scores.tolist(), shares.tolist()) == (pytest.approx(expected[0]), pytest.approx(expected[1]))


def test_the_gradient_of_sigmoid_shares_is_that_of_the_quotient() -> None:
    logits = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weights = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    scores = logits.sigmoid()
    (expected,) = torch.autograd.grad((scores / scores.sum(dim=-1, keepdim=True) * weights).sum(), logits)
    (found,) = torch.autograd.grad((gate_scores(logits, "sigmoid")[1] * weights).sum(), logits)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-14)


def test_sigmoid_shares_are_defined_where_every_score_rounds_to_zero() -> None:
    logits = torch.tensor([[-300.0, -300.0, -301.0]], requires_grad=True)
    scores, shares = gate_scores(logits, "sigmoid")
    assert scores.max() == 0
    assert torch.allclose(shares, logits.softmax(dim=-1))
    (gradient,) = torch.autograd.grad(shares[0, 0], logits)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
def test_sums_of_scores_sum_to_the_tokens_that_count(gate: Gate) -> None:
    logits = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True] * 4, [True, True, False, False], [True] * 4])
    at = {"num_sequences": 3, "mask_SN": mask, "gate": gate}
    sums = sums_of_logits(logits, logits.topk(2, dim=-1).indices, **at)
    assert sums.scores_SE.sum(dim=1).tolist() == pytest.approx([4, 2, 4])
