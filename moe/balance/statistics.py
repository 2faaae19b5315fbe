"""What does balance need to know of one forward pass? Counts and score sums per layer and sequence, nothing else.

Every window, estimator and metric is a function of these sums, since a window is a set of whole sequences, or a set of
draws where the tokens of a global batch are shuffled.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# L layers, S sequences, N tokens of a sequence, T = S·N tokens, D draws, E experts, K choices


class Draws(NamedTuple):
    """Which draw each token of some sequences is in; the draws are those of a whole global batch."""

    of_SN: Tensor
    """Draws, int64."""
    number: int
    """Draws of the batch."""


Gate = Literal["softmax", "sigmoid"]


class LayerSums(NamedTuple):
    """What one layer contributes to `Statistics`; its fields are those, layer by layer."""

    counts_SE: Tensor
    scores_SE: Tensor
    squares_S: Tensor
    drawn_DE: Tensor


class Statistics(NamedTuple):
    """Sufficient statistics of the sequences of one forward pass."""

    counts_LSE: Tensor
    """Selections of each expert, int64, no gradient; they sum to K · tokens over E."""
    scores_LSE: Tensor
    """Sums over tokens of the score share of each expert (`gate_scores`), fp32 or wider, with gradient; they sum to
    tokens over E."""
    squares_LS: Tensor
    """Sums over tokens of logsumexp(logits)^2, with gradient: what the z-loss averages."""
    tokens_S: Tensor
    """Tokens that count, padding excluded, int64."""
    drawn_LDE: Tensor
    """What these sequences contribute to the counts of every draw, int64, no gradient; D is 0 where none is drawn."""


def sequence_statistics(
    logits_LTE: Sequence[Tensor], selected_LTK: Sequence[Tensor], *, num_sequences: int, mask_SN: Tensor | None = None
) -> Statistics:
    """Sum up what the routers of all layers decided, sequence by sequence.

    `logits_LTE`: per layer router logits [T, E]; `selected_LTK`: per layer chosen experts [T, K]; T runs through the
    `num_sequences` sequences one after the other. `mask_SN`: true where a token counts; absent, all do.
    """
    layers = [
        sums_of_logits(logits_TE, selected_TK, num_sequences=num_sequences, mask_SN=mask_SN)
        for logits_TE, selected_TK in zip(logits_LTE, selected_LTK, strict=True)
    ]
    return stack_layers(layers, tokens_per_sequence=len(logits_LTE[0]) // num_sequences, mask_SN=mask_SN)


def gate_scores(logits_TE: Tensor, gate: Gate) -> tuple[Tensor, Tensor]:
    """The scores that experts are chosen and weighted by, and their shares, which sum to 1 over E and are what P
    averages; [T, E] each.

    softmax: both are softmax(logits). sigmoid: s = sigmoid(logits), each expert by itself, and s / Σ s
    (arXiv:2412.19437, equations 15 and 19). Equal logits give shares of 1 / N_E.
    """
    if gate == "softmax":
        scores_TE = logits_TE.softmax(dim=-1)
        return scores_TE, scores_TE
    # The softmax of ln s is s / Σ s, also where every s rounds to 0.
    return logits_TE.sigmoid(), F.logsigmoid(logits_TE).softmax(dim=-1)


def widened(values: Tensor) -> Tensor:
    """In fp32, or as they are in fp64."""
    return values if values.dtype == torch.float64 else values.float()


def sums_of_logits(
    logits_TE: Tensor,
    selected_TK: Tensor,
    *,
    num_sequences: int,
    mask_SN: Tensor | None,
    gate: Gate = "softmax",
    draws: Draws | None = None,
) -> LayerSums:
    """The sums of one layer where its scores are not at hand; arguments as in `sequence_statistics`."""
    wide_TE = widened(logits_TE)
    shares_TE = gate_scores(wide_TE, gate)[1]
    return layer_sums(wide_TE, shares_TE, selected_TK, num_sequences=num_sequences, mask_SN=mask_SN, draws=draws)


def layer_sums(
    logits_TE: Tensor,
    shares_TE: Tensor,
    selected_TK: Tensor,
    *,
    num_sequences: int,
    mask_SN: Tensor | None,
    draws: Draws | None = None,
) -> LayerSums:
    """The sums of one layer from its logits, fp32 or wider, and score shares; else as in `sequence_statistics`."""
    num_experts = logits_TE.shape[-1]
    squares_SN = logits_TE.logsumexp(dim=-1).square().view(num_sequences, -1)
    scores_SNE = shares_TE.view(num_sequences, -1, num_experts)
    if mask_SN is not None:
        squares_SN = squares_SN * mask_SN
        scores_SNE = scores_SNE * mask_SN[..., None]
    counts_SE = sequence_counts(selected_TK, num_experts, num_sequences=num_sequences, mask_SN=mask_SN)
    drawn_DE = draw_counts(selected_TK, num_experts, draws, mask_SN=mask_SN)
    return LayerSums(counts_SE, scores_SNE.sum(dim=1), squares_SN.sum(dim=1), drawn_DE)


def sequence_counts(
    selected_TK: Tensor, num_experts: int, *, num_sequences: int, mask_SN: Tensor | None = None
) -> Tensor:
    """Selections of each expert in each sequence of one layer, int64 [S, E]; arguments as in `sequence_statistics`."""
    selected_SC = selected_TK.reshape(num_sequences, -1)
    if mask_SN is None:
        weights_SC = torch.ones_like(selected_SC)
    else:
        weights_SC = mask_SN.to(selected_SC.dtype).repeat_interleave(selected_TK.shape[-1], dim=1)
    return selected_SC.new_zeros(num_sequences, num_experts).scatter_add_(1, selected_SC, weights_SC)


def draw_counts(selected_TK: Tensor, num_experts: int, draws: Draws | None, *, mask_SN: Tensor | None = None) -> Tensor:
    """Selections of each expert in each draw of one layer, int64 [D, E]; arguments as in `sequence_statistics`."""
    if draws is None:
        return selected_TK.new_zeros(0, num_experts)
    cells_TK = draws.of_SN.reshape(-1, 1) * num_experts + selected_TK
    weights_T = torch.ones_like(draws.of_SN) if mask_SN is None else mask_SN.to(draws.of_SN.dtype)
    weights_TK = weights_T.reshape(-1, 1).expand_as(cells_TK)
    counts = selected_TK.new_zeros(draws.number * num_experts)
    return counts.scatter_add_(0, cells_TK.flatten(), weights_TK.flatten()).view(draws.number, num_experts)


def stack_layers(layers: Sequence[LayerSums], *, tokens_per_sequence: int, mask_SN: Tensor | None) -> Statistics:
    """The statistics of all layers; `tokens_per_sequence` counts where there is no mask."""
    counts, scores, squares, drawn = (torch.stack(parts) for parts in zip(*layers, strict=True))
    tokens_S = counts.new_full(counts.shape[1:2], tokens_per_sequence) if mask_SN is None else mask_SN.sum(dim=1)
    return Statistics(counts, scores, squares, tokens_S, drawn)
