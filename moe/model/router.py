"""Which experts does each token go to, and how do we get to see it?"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from moe.balance.capacity import Capacity, has_room
from moe.balance.statistics import Draws, Gate, LayerSums, gate_scores, layer_sums, sums_of_logits, widened

# S sequences, N tokens of a sequence, T tokens, E experts, K choices, H hidden units


@dataclass(frozen=True)
class Routing:
    """What one layer's router decided in one forward pass."""

    logits_TE: Tensor
    """Router logits, fp32, with gradient."""
    selected_TK: Tensor
    """Chosen experts, best first."""
    gate: Gate = "softmax"
    """What makes scores of the logits."""


class Router(nn.Module):
    """Gate with top-K, a drop-in for the router of transformers' Qwen2-MoE and Qwen3-MoE.

    y = Σ_{i in topK(g)} g_i(x) E_i(x) with g = softmax(W x) (arXiv:2501.11873, section 2), or the sigmoid of each
    logit. Same parameter name as the stock one, so checkpoints are plain.

    `forced_balance` replaces the choice by round robin over the tokens of a pass, which loads every expert equally
    whatever was learned: the lower end of what latency can be. `by_position` replaces it by round robin over the
    positions of a sequence, which a model can be trained with: a position has its experts in every batch.

    `capacity` limits, in training, how many selections each expert takes of every window of sequences: the gates of
    the others are 0, and what is left is not normalised again. A pass is one window where it is smaller than one.

    `positions_SN`: position of each token in its sequence, one row for all sequences where they agree;
    `follow_positions` sets it in every forward pass.

    `bias` [E], where `use_bias` has given one, is added to the scores that the experts are chosen by, and not to the
    gates (arXiv:2408.15664, equation 3). It is state, not a parameter: no gradient reaches it.

    `recorded` is what was decided in the last forward pass while `recording`, or its sums over the tokens of each
    sequence where `num_sequences` is set; `record_routing` and `record_sums` set and read these.
    """

    bias: Tensor | None
    recorded: Routing | LayerSums | None
    num_sequences: int | None
    mask_SN: Tensor | None
    draws: Draws | None
    capacity: Capacity | None
    positions_SN: Tensor | None

    def __init__(self, weight: nn.Parameter, top_k: int, normalize_top_k: bool, gate: Gate = "softmax") -> None:
        super().__init__()
        self.weight = weight
        self.top_k = self.experts_per_turn = top_k
        self.normalize_top_k = normalize_top_k
        self.gate: Gate = gate
        self.forced_balance = self.by_position = False
        self.capacity = self.positions_SN = None
        self.recording = False
        self.num_sequences = self.mask_SN = self.draws = self.recorded = None
        self.register_buffer("bias", None, persistent=False)

    def use_bias(self) -> None:
        """Choose by scores plus a bias, which starts at zero."""
        zeros_E = torch.zeros(len(self.weight), device=self.weight.device)
        self.register_buffer("bias", zeros_E, persistent=False)

    @classmethod
    def like(cls, stock: Any, gate: Gate = "softmax") -> "Router":
        """A router with the parameters and settings of a stock one, of whichever model."""
        return cls(stock.weight, stock.top_k, stock.norm_topk_prob, gate)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[..., H] -> logits [T, E], gates [T, K] and selected experts [T, K]; logits are fp32 or wider, also under
        autocast."""
        hidden_TH = hidden.reshape(-1, hidden.shape[-1])
        with without_autocast(hidden.device):
            logits_TE = F.linear(widened(hidden_TH), widened(self.weight))
            scores_TE, shares_TE = gate_scores(logits_TE, self.gate)
            if self.forced_balance or self.by_position:
                first_T = self._turns(len(hidden_TH)) * self.experts_per_turn
                selected_TK = round_robin(first_T, self.top_k, num_experts=len(self.weight))
            else:
                ranked_TE = scores_TE.detach() if self.bias is None else scores_TE.detach() + self.bias
                selected_TK = top_experts(ranked_TE, self.top_k)
            gates_TK = scores_TE.gather(1, selected_TK)
            if self.normalize_top_k:
                gates_TK = gates_TK / gates_TK.sum(dim=-1, keepdim=True)
            if self.capacity is not None and self.training:
                gates_TK = gates_TK * self._has_room(selected_TK)
        # Not a hook: compiled code does not notice when a hook is added or removed. And here, where the scores are and
        # compiled code fuses the sums and their gradients with the gates' own.
        if self.recording and self.num_sequences is not None:
            at = {"num_sequences": self.num_sequences, "mask_SN": self.mask_SN, "draws": self.draws}
            self.recorded = layer_sums(logits_TE, shares_TE, selected_TK, **at)
        elif self.recording:
            self.recorded = Routing(logits_TE, selected_TK, self.gate)
        return logits_TE, gates_TK.to(hidden.dtype), selected_TK

    def _turns(self, num_tokens: int) -> Tensor:
        """The turn of every token in the round robin, [T]."""
        if self.forced_balance:
            return torch.arange(num_tokens, device=self.weight.device)
        assert self.positions_SN is not None
        length = self.positions_SN.shape[-1]
        return self.positions_SN.expand(num_tokens // length, length).reshape(num_tokens)

    def _has_room(self, selected_TK: Tensor) -> Tensor:
        assert self.capacity is not None and self.positions_SN is not None
        window_tokens = min(self.capacity.window * self.positions_SN.shape[-1], len(selected_TK))
        return has_room(
            selected_TK, num_experts=len(self.weight), window_tokens=window_tokens, factor=self.capacity.factor
        )


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Where no autocast acts, nothing: compiled code that switches it is not cached."""
    return torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()


def top_experts(scores_TE: Tensor, top_k: int) -> Tensor:
    """Experts of the K highest scores, highest first, [T, K].

    Compiled code for the CPU looks K times for the highest score, of equal ones the first: faster than `topk`, which
    sorts (docs/lab-notes.md).
    """
    if not (torch.compiler.is_compiling() and scores_TE.device.type == "cpu"):
        return scores_TE.topk(top_k, dim=-1).indices
    # As floats: vector instructions find the smallest of those, and not of whole numbers.
    experts_E = torch.arange(scores_TE.shape[-1], dtype=scores_TE.dtype)
    selected_T1, left_TE = [], scores_TE
    for _ in range(top_k):
        # Not "equal to the highest": where that is not a number, no score equals it.
        below_TE = left_TE < left_TE.amax(dim=-1, keepdim=True)
        selected_T1.append(experts_E.masked_fill(below_TE, torch.inf).amin(dim=-1, keepdim=True))
        left_TE = left_TE.masked_fill(experts_E == selected_T1[-1], -torch.inf)
    return torch.cat(selected_T1, dim=-1).long()


def round_robin(first_T: Tensor, top_k: int, *, num_experts: int) -> Tensor:
    """Selected experts [T, K]: each token takes K experts in a row from `first_T` on, modulo N_E."""
    return (first_T[:, None] + torch.arange(top_k, device=first_T.device)) % num_experts


def follow_positions(model: PreTrainedModel) -> None:
    """Tell every router, from now on, at which position of its sequence each token stands, also behind a cache or
    padding on the left."""
    routers = [module for module in model.modules() if isinstance(module, Router)]

    def tell(_rotary: nn.Module, _inputs: tuple, keywords: dict[str, Tensor]) -> None:
        for router in routers:
            router.positions_SN = keywords["position_ids"]

    # The only part that is given the positions once in a pass, outside of what is compiled or recomputed.
    model.model.rotary_emb.register_forward_pre_hook(tell, with_kwargs=True)


class _AllRouted(Exception):
    """Ends a forward pass behind its last router."""


@contextmanager
def record_routing(model: nn.Module, *, stop: bool = False) -> Iterator[list[Routing]]:
    """A list that holds, after the block, a `Routing` of each layer, first layer first, of the forward pass inside it.

    Recording ends with the block, so that the recomputation of activation checkpointing is not counted again. With
    `stop` the forward pass ends behind the last router, whose experts and what follows are not computed.
    """
    routers = [module for module in model.modules() if isinstance(module, Router)]
    for router in routers:
        router.recording = True
    routing: list[Routing] = []
    try:
        with _until_routed(routers) if stop else nullcontext():
            yield routing
    finally:
        routing += [recorded for recorded in _taken(routers) if isinstance(recorded, Routing)]


@contextmanager
def record_sums(
    model: PreTrainedModel,
    *,
    num_sequences: int,
    mask_SN: Tensor | None,
    draws: Draws | None = None,
    stop: bool = False,
) -> Iterator[list[LayerSums]]:
    """A list that holds, after the block, the `LayerSums` of each layer, first layer first, of the forward pass inside
    it; `num_sequences` and `mask_SN` as in `sequence_statistics`, `stop` as in `record_routing`; with
    `draws` they count those too."""
    # Recomputation comes after the block, and must find the operations that the forward pass has done.
    inside = not (model.is_activation_checkpointing and torch.is_grad_enabled())
    routers = [module for module in model.modules() if isinstance(module, Router)]
    for router in routers:
        router.recording = True
        router.num_sequences, router.mask_SN = (num_sequences, mask_SN) if inside else (None, None)
        router.draws = draws if inside else None
    sums: list[LayerSums] = []
    try:
        with _until_routed(routers) if stop else nullcontext():
            yield sums
    finally:
        for recorded in _taken(routers):
            if isinstance(recorded, Routing):
                at = {"num_sequences": num_sequences, "mask_SN": mask_SN, "draws": draws, "gate": recorded.gate}
                recorded = sums_of_logits(recorded.logits_TE, recorded.selected_TK, **at)
            sums.append(recorded)


@contextmanager
def _until_routed(routers: Sequence[Router]) -> Iterator[None]:
    """End the forward pass in the block behind the last router."""
    handle = routers[-1].register_forward_hook(_stop)
    try:
        # The end is an exception, which compiled code cannot raise.
        with torch.compiler.set_stance("force_eager"):
            yield
    except _AllRouted:
        pass
    finally:
        handle.remove()


def _taken(routers: Sequence[Router]) -> list[Routing | LayerSums]:
    """What the routers have recorded; they record no longer."""
    recorded = [router.recorded for router in routers if router.recorded is not None]
    for router in routers:
        router.recording = False
        router.num_sequences = router.mask_SN = router.draws = router.recorded = None
    return recorded


def _stop(_router: nn.Module, _inputs: tuple, _output: tuple) -> None:
    raise _AllRouted
