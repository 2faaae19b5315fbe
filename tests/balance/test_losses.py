"""The load-balancing loss against its definition, and where its value is known."""

import pytest
import torch

from moe.balance.losses import load_balancing_loss, z_loss
from moe.balance.statistics import Statistics, sequence_statistics


def slow_loss(logits: torch.Tensor, selected: torch.Tensor, window: int) -> torch.Tensor:
    """The definition, token by token: logits [S, N, E], selected [S, N, K]; mean over windows of N_E Σ f_i P_i."""
    num_sequences, num_tokens, num_experts = logits.shape
    losses = []
    for start in range(0, num_sequences, window):
        chosen, scores, tokens = [0] * num_experts, [torch.zeros(()).double()] * num_experts, 0
        for s in range(start, start + window):
            for n in range(num_tokens):
                tokens += 1
                for expert in selected[s, n].tolist():
                    chosen[expert] += 1
                for expert in range(num_experts):
                    scores[expert] = scores[expert] + logits[s, n].softmax(dim=-1)[expert]
        losses.append(num_experts * sum(c / sum(chosen) * p / tokens for c, p in zip(chosen, scores, strict=True)))
    return torch.stack(losses).mean()


def window_loss(logits: torch.Tensor, selected: torch.Tensor, window: int) -> torch.Tensor:
    """What the package computes for the same, one layer."""
    stats = sequence_statistics([logits.flatten(0, 1)], [selected.flatten(0, 1)], num_sequences=len(logits))
    counts, scores = (v.unflatten(1, (-1, window)).sum(dim=2) for v in (stats.counts_LSE, stats.scores_LSE))
    return load_balancing_loss(counts, scores, tokens_per_rank=int(stats.tokens_S.sum()))[0]


@pytest.mark.parametrize("window", [1, 2, 6])
@pytest.mark.parametrize("top_k", [1, 3])
def test_value_and_gradient_equal_the_definition(window: int, top_k: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 5, 4, dtype=torch.float64, requires_grad=True)
    selected = logits.topk(top_k, dim=-1).indices
    slow, fast = slow_loss(logits, selected, window), window_loss(logits, selected, window)
    assert torch.allclose(slow, fast, rtol=1e-12)
    (slow_grad,) = torch.autograd.grad(slow, logits)
    (fast_grad,) = torch.autograd.grad(fast, logits)
    assert torch.allclose(slow_grad, fast_grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_uniform_routing_is_one_for_every_top_k(top_k: int) -> None:
    logits = torch.zeros(4, 8, 4)
    selected = (torch.arange(32 * top_k).view(4, 8, top_k)) % 4
    assert window_loss(logits, selected, 4).item() == pytest.approx(1.0)


def test_collapse_on_the_same_k_experts_is_experts_over_k() -> None:
    logits = torch.full((2, 8, 6), -1e4)
    logits[..., :2] = 0.0
    selected = torch.tensor([0, 1]).expand(2, 8, 2)
    assert window_loss(logits, selected, 2).item() == pytest.approx(6 / 2)


def test_two_layers_collapsed_on_different_experts_do_not_cancel() -> None:
    layers = []
    for expert in (0, 1):
        logits = torch.full((8, 2), -1e4)
        logits[:, expert] = 0.0
        layers.append((logits, torch.full((8, 1), expert)))
    stats = sequence_statistics([la for la, _ in layers], [se for _, se in layers], num_sequences=1)
    assert load_balancing_loss(stats.counts_LSE, stats.scores_LSE, tokens_per_rank=8).tolist() == [2.0, 2.0]


def test_pooling_two_opposite_sequences_is_balanced_globally_but_not_per_sequence() -> None:
    logits = torch.full((2, 8, 2), -1e4)
    logits[0, :, 0] = logits[1, :, 1] = 0.0
    selected = logits.topk(1, dim=-1).indices
    assert window_loss(logits, selected, 1).item() == pytest.approx(2.0)
    assert window_loss(logits, selected, 2).item() == pytest.approx(1.0)


def test_padding_tokens_do_not_count() -> None:
    torch.manual_seed(1)
    logits, padding = torch.randn(2, 5, 4), torch.randn(2, 3, 4)
    padded = torch.cat([logits, padding], dim=1)
    mask = torch.tensor([True] * 5 + [False] * 3).expand(2, 8)
    plain = _statistics(logits)
    masked = _statistics(padded, mask)
    for expected, found in zip(plain, masked, strict=True):
        assert torch.allclose(expected.double(), found.double(), rtol=1e-6)


def _statistics(logits: torch.Tensor, mask: torch.Tensor | None = None) -> Statistics:
    selected = logits.topk(2, dim=-1).indices.flatten(0, 1)
    return sequence_statistics([logits.flatten(0, 1)], [selected], num_sequences=len(logits), mask_SN=mask)


def test_z_loss_of_zero_logits_is_log_experts_squared() -> None:
    stats = sequence_statistics([torch.zeros(6, 8)], [torch.zeros(6, 1, dtype=torch.int64)], num_sequences=2)
    assert z_loss(stats, tokens_per_rank=6).item() == pytest.approx(torch.tensor(8.0).log().item() ** 2)
