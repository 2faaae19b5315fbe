"""What if an expert had room for so many tokens only? Which selections are dropped, and how many.

An expert takes the first selections of a window in the order of the tokens, as many as it has room for; the window is a
run of neighbouring tokens. The counts of the balance losses are those of all selections, dropped or not, as in GShard
and Switch (arXiv:2006.16668, Algorithm 1; arXiv:2101.03961, section 2.2).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

# L layers, W windows, M tokens of a window, T = W·M tokens, E experts, K choices


class Capacity(NamedTuple):
    """How much room there is."""

    factor: float
    """Room of an expert relative to its even share."""
    window: int
    """Sequences that share it."""


def room(factor: float, selections: int, num_experts: int) -> int:
    """Selections that an expert takes of a window with `selections` = K · M: ceil(factor · K · M / N_E)."""
    # 1.1 is a little more than 11 / 10 in floating point, and must not make room for one more.
    return math.ceil(factor * selections / num_experts * (1 - 1e-12))


def has_room(selected_TK: Tensor, *, num_experts: int, window_tokens: int, factor: float) -> Tensor:
    """Whether each selection is taken, bool [T, K]; `window_tokens`, M, divides T. With a factor of N_E / K or more all
    are."""
    num_tokens, top_k = selected_TK.shape
    chosen_TE = torch.zeros(num_tokens, num_experts, dtype=torch.int32, device=selected_TK.device)
    chosen_WME = chosen_TE.scatter(1, selected_TK, 1).view(-1, window_tokens, num_experts)
    place_TE = chosen_WME.cumsum(dim=1, dtype=torch.int32).view(num_tokens, num_experts)
    return place_TE.gather(1, selected_TK) <= room(factor, window_tokens * top_k, num_experts)


def dropped_share(counts_LWE: Tensor, *, factor: float) -> Tensor:
    """Share of all selections that found no room, fp64 [L].

    counts_LWE: selections of each expert in each window, dropped or not; the windows are of one size.
    """
    num_layers, num_windows, num_experts = counts_LWE.shape
    total_L = counts_LWE.sum(dim=(1, 2))
    # The windows are alike in every layer, and so is K · M.
    limit = room(factor, int(total_L[0]) // num_windows, num_experts)
    return (counts_LWE - limit).clamp(min=0).sum(dim=(1, 2)).double() / total_L
