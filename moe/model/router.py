"""Which experts does each token go to, and how do we get to see it?"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from moe.balance.statistics import LayerSums, layer_sums, sums_of_logits, widened

# S sequences, N tokens of a sequence, T tokens, E experts, K choices, H hidden units


@dataclass(frozen=True)
class Routing:
    """What one layer's router decided in one forward pass."""

    logits_TE: Tensor
    """Router logits, fp32, with gradient."""
    selected_TK: Tensor
    """Chosen experts, best first."""


class Router(nn.Module):
    """Softmax gate with top-K, a drop-in for the router of transformers' Qwen2-MoE and Qwen3-MoE.

    y = Σ_{i in topK(g)} g_i(x) E_i(x) with g = softmax(W x) (arXiv:2501.11873, section 2). Same parameter name as the
    stock one, so checkpoints are plain. `forced_balance` replaces the choice by round robin, which loads every expert
    equally whatever was learned: the lower end of what latency can be.

    `bias` [E], where `use_bias` has given one, is added to the scores that the experts are chosen by, and not to the
    gates (arXiv:2408.15664, equation 3). It is state, not a parameter: no gradient reaches it.

    `recorded` is what was decided in the last forward pass while `recording`, or its sums over the tokens of each
    sequence where `num_sequences` is set; `record_routing` and `record_sums` set and read these.
    """

    bias: Tensor | None
    recorded: Routing | LayerSums | None
    num_sequences: int | None
    mask_SN: Tensor | None

    def __init__(self, weight: nn.Parameter, top_k: int, normalize_top_k: bool) -> None:
        super().__init__()
        self.weight = weight
        self.top_k = top_k
        self.normalize_top_k = normalize_top_k
        self.forced_balance = False
        self.recording = False
        self.num_sequences = self.mask_SN = self.recorded = None
        self.register_buffer("bias", None, persistent=False)

    def use_bias(self) -> None:
        """Choose by scores plus a bias, which starts at zero."""
        zeros_E = torch.zeros(len(self.weight), device=self.weight.device)
        self.register_buffer("bias", zeros_E, persistent=False)

    @classmethod
    def like(cls, stock: Any) -> "Router":
        """A router with the parameters and settings of a stock one, of whichever model."""
        return cls(stock.weight, stock.top_k, stock.norm_topk_prob)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[..., H] -> logits [T, E], gates [T, K] and selected experts [T, K]; logits are fp32 or wider, also under
        autocast."""
        hidden_TH = hidden.reshape(-1, hidden.shape[-1])
        with without_autocast(hidden.device):
            logits_TE = F.linear(widened(hidden_TH), widened(self.weight))
            scores_TE = logits_TE.softmax(dim=-1)
            if self.forced_balance:
                selected_TK = round_robin(scores_TE, self.top_k)
                gates_TK = scores_TE.gather(1, selected_TK)
            elif self.bias is not None:
                selected_TK = (scores_TE.detach() + self.bias).topk(self.top_k, dim=-1).indices
                gates_TK = scores_TE.gather(1, selected_TK)
            else:
                gates_TK, selected_TK = scores_TE.topk(self.top_k, dim=-1)
            if self.normalize_top_k:
                gates_TK = gates_TK / gates_TK.sum(dim=-1, keepdim=True)
        # Not a hook: compiled code does not notice when a hook is added or removed. And here, where the scores are and
        # compiled code fuses the sums and their gradients with the gates' own.
        if self.recording and self.num_sequences is not None:
            self.recorded = layer_sums(
                logits_TE, scores_TE, selected_TK, num_sequences=self.num_sequences, mask_SN=self.mask_SN
            )
        elif self.recording:
            self.recorded = Routing(logits_TE, selected_TK)
        return logits_TE, gates_TK.to(hidden.dtype), selected_TK


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Where no autocast acts, nothing: compiled code that switches it is not cached."""
    return torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()


def round_robin(scores_TE: Tensor, top_k: int) -> Tensor:
    """Selected experts [T, K] that load all experts equally: token t takes the next K experts in turn."""
    num_tokens, num_experts = scores_TE.shape
    return torch.arange(num_tokens * top_k, device=scores_TE.device).view(num_tokens, top_k) % num_experts


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
    model: PreTrainedModel, *, num_sequences: int, mask_SN: Tensor | None, stop: bool = False
) -> Iterator[list[LayerSums]]:
    """A list that holds, after the block, the `LayerSums` of each layer, first layer first, of the forward pass inside
    it; `num_sequences` and `mask_SN` as in `sequence_statistics`, `stop` as in `record_routing`."""
    # Recomputation comes after the block, and must find the operations that the forward pass has done.
    inside = not (model.is_activation_checkpointing and torch.is_grad_enabled())
    routers = [module for module in model.modules() if isinstance(module, Router)]
    for router in routers:
        router.recording = True
        router.num_sequences, router.mask_SN = (num_sequences, mask_SN) if inside else (None, None)
    sums: list[LayerSums] = []
    try:
        with _until_routed(routers) if stop else nullcontext():
            yield sums
    finally:
        for recorded in _taken(routers):
            if isinstance(recorded, Routing):
                at = {"num_sequences": num_sequences, "mask_SN": mask_SN}
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
        router.recording, router.num_sequences, router.mask_SN, router.recorded = False, None, None, None
    return recorded


def _stop(_router: nn.Module, _inputs: tuple, _output: tuple) -> None:
    raise _AllRouted
