"""The global auxiliary loss of Megatron-LM, as a formula."""

from collections import defaultdict

import torch
from torch import Tensor

from moe.conformance.kit import Adapter, Routing, Step

# T tokens, E experts


class Megatron(Adapter):
    """Megatron-LM's `global_aux_loss` (second loss: `aux_loss`), re-implemented from what its router, schedule and
    metrics tracker do at commit d98e8a64 (2026-08-22) with `calculate_per_token_loss` off; none of its code runs here.
    Per layer, inside the recomputed region and only where gradients are on, each rank backpropagates
    N_E / (K T²) Σ_i c_i Σ_t p_ti / steps, which data parallelism averages. T are the tokens of all ranks in the current
    pass, c the choices of all ranks averaged over the passes so far. It logs the sum over ranks and the mean over
    passes and layers. Issues 3672 and 7213."""

    not_applicable = {"uneven": "the global batch must be a multiple of micro-batch x data-parallel size"}
    # Its checkpointing runs the first forward without gradient.
    reentrant = True

    def __init__(self, *, global_weight: float = 1.0, micro_weight: float = 0.0) -> None:
        super().__init__(global_weight=global_weight, micro_weight=micro_weight)
        self.seen: defaultdict[int, list[Tensor]] = defaultdict(list)
        """By layer, the choices of all ranks in the passes so far."""

    def begin(self, step: Step) -> None:
        super().begin(step)
        self.total = 0.0

    def inside(self, pass_index: int, layer: int, ranks: list[Routing]) -> list[Tensor]:
        if not torch.is_grad_enabled():
            return []
        counts_RE = torch.stack([_counts(routing) for routing in ranks])
        self.seen[layer].append(counts_RE.sum(dim=0))
        mean_E = torch.stack(self.seen[layer]).mean(dim=0)
        num_ranks, losses = len(ranks), []
        for routing, own_E in zip(ranks, counts_RE, strict=True):
            shared = self.global_weight * self._loss(routing, mean_E, counts_RE.sum())
            alone = self.micro_weight * self._loss(routing, own_E, own_E.sum())
            # The first is logged as a sum over ranks, the second as a mean.
            self.total += float((shared + alone / num_ranks).detach())
            losses.append((shared + alone) / (self.step.num_passes * num_ranks))
        return losses

    def end(self) -> None:
        self.seen.clear()

    def logged(self) -> float:
        return self.total / (self.step.num_passes * self.step.num_layers)

    def _loss(self, routing: Routing, counts_E: Tensor, choices: Tensor) -> Tensor:
        """`choices`: how many the tokens of this pass have made, at the level that `counts_E` is counted at."""
        tokens = choices / self.step.top_k
        scores_TE = routing.logits_TE.softmax(dim=-1) * routing.mask_SN.flatten()[:, None]
        return self.step.num_experts * (scores_TE.sum(dim=0) * counts_E).sum() / (self.step.top_k * tokens**2)


def _counts(routing: Routing) -> Tensor:
    chosen_TE = torch.zeros_like(routing.logits_TE.detach()).scatter_(1, routing.selected_TK, 1.0)
    return (chosen_TE * routing.mask_SN.flatten()[:, None]).sum(dim=0)
