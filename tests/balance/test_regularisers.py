"""SimBal against its definition, and where its value is known."""

import pytest
import torch

from moe.balance.regularisers import similarity_loss


def slow_loss(weight: torch.Tensor) -> torch.Tensor:
    """Pair by pair of experts: |<row i, row j> - (i = j)|, summed up; weight [E, H]."""
    total = torch.zeros((), dtype=weight.dtype)
    for i, row in enumerate(weight):
        for j, other in enumerate(weight):
            product = sum(a * b for a, b in zip(row, other, strict=True))
            total = total + abs(product - (1.0 if i == j else 0.0))
    return total


def test_value_and_gradient_equal_the_definition_layer_by_layer() -> None:
    weights = torch.randn(2, 4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    slow = torch.stack([slow_loss(weight) for weight in weights])
    fast = similarity_loss(weights)
    assert torch.allclose(slow, fast, rtol=1e-12)
    factors = torch.tensor([1.0, 3.0])
    (slow_grad,) = torch.autograd.grad((slow * factors).sum(), weights)
    (fast_grad,) = torch.autograd.grad((fast * factors).sum(), weights)
    assert torch.allclose(slow_grad, fast_grad, rtol=1e-12)


def test_orthonormal_rows_are_zero_equal_rows_every_pair_and_no_weights_the_diagonal() -> None:
    orthonormal = torch.linalg.qr(torch.randn(9, 5, dtype=torch.float64)).Q.T
    equal = torch.nn.functional.one_hot(torch.zeros(5, dtype=torch.int64), 9).double()
    values = similarity_loss(torch.stack([orthonormal, equal, torch.zeros(5, 9).double()]))
    assert values.tolist() == pytest.approx([0.0, 5 * 4, 5], abs=1e-12)
