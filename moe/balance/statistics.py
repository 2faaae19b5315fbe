"""What does balance need to know of one forward pass? Counts and score sums per layer and sequence, nothing else.

Every window, estimator and metric is a function of these sums, since a window is a set of whole sequences.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# L layers, S sequences, N tokens of a sequence, T = S·N tokens, E experts, K choices


class Statistics(NamedTuple):
    """Sufficient statistics of the sequences of one forward pass."""

    counts_LSE: Tensor
    """Selections of each expert, int64, no gradient; they sum to K · tokens over E."""
    scores_LSE: Tensor
    """Sums over tokens of the softmax score of each expert, fp32 or wider, with gradient; they sum to tokens over E."""
    squares_LS: Tensor
    """Sums over tokens of logsumexp(logits)^2, with gradient: what the z-loss averages."""
    tokens_S: Tensor
    """Tokens that count, padding excluded, int64."""


def sequence_statistics(
    logits_LTE: Sequence[Tensor], selected_LTK: Sequence[Tensor], *, num_sequences: int, mask_SN: Tensor | None = None
) -> Statistics:
    """Sum up what the routers of all layers decided, sequence by sequence.

    `logits_LTE`: per layer router logits [T, E]; `selected_LTK`: per layer chosen experts [T, K]; T runs through the
    `num_sequences` sequences one after the other. `mask_SN`: true where a token counts; absent, all do.
    """
    layers = [
        _layer_statistics(logits_TE, selected_TK, num_sequences, mask_SN)
        for logits_TE, selected_TK in zip(logits_LTE, selected_LTK, strict=True)
    ]
    counts, scores, squares = (torch.stack(parts) for parts in zip(*layers, strict=True))
    if mask_SN is None:
        tokens_S = counts.new_full((num_sequences,), logits_LTE[0].shape[0] // num_sequences)
    else:
        tokens_S = mask_SN.sum(dim=1)
    return Statistics(counts, scores, squares, tokens_S)


def _layer_statistics(
    logits_TE: Tensor, selected_TK: Tensor, num_sequences: int, mask_SN: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    logits_TE = logits_TE if logits_TE.dtype == torch.float64 else logits_TE.float()
    logits_SNE = logits_TE.unflatten(0, (num_sequences, -1))
    squares_SN = logits_SNE.logsumexp(dim=-1).square()
    scores_SNE = logits_SNE.softmax(dim=-1)
    selected_SC = selected_TK.reshape(num_sequences, -1)
    if mask_SN is None:
        weights_SC = torch.ones_like(selected_SC)
    else:
        squares_SN = squares_SN * mask_SN
        scores_SNE = scores_SNE * mask_SN[..., None]
        weights_SC = mask_SN.to(selected_SC.dtype).repeat_interleave(selected_TK.shape[-1], dim=1)
    counts_SE = selected_SC.new_zeros(num_sequences, logits_TE.shape[-1]).scatter_add_(1, selected_SC, weights_SC)
    return counts_SE, scores_SNE.sum(dim=1), squares_SN.sum(dim=1)
