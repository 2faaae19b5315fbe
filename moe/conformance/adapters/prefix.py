"""The buffer of the paper."""

import torch
from torch import Tensor

from moe.conformance.kit import Adapter, Routing, Step

# T tokens, E experts


class Prefix(Adapter):
    """arXiv:2501.11873, Algorithm 1, re-implemented from the paper: choices are summed over the ranks and over the
    accumulation steps *so far*, f is their share, and the buffer is emptied after the optimizer step. The second loss
    counts f per micro-batch (its Table 5). Losses are averaged over layers, ranks and accumulation steps."""

    not_applicable = dict.fromkeys(("uneven", "uneven_padding", "padding"), "the paper takes whole, equal sequences")

    def begin(self, step: Step) -> None:
        super().begin(step)
        self.buffer_LE = torch.zeros(step.num_layers, step.num_experts, dtype=torch.float64)

    def losses(self, pass_index: int, ranks: list[list[Routing]]) -> list[Tensor]:
        local_RLE = torch.stack([torch.stack([_counts(layer) for layer in layers]) for layers in ranks])
        if torch.is_grad_enabled():
            self.buffer_LE += local_RLE.sum(dim=0)
        f_LE = _share(self.buffer_LE)
        losses = []
        for layers, own_LE in zip(ranks, local_RLE, strict=True):
            p_LE = torch.stack([layer.logits_TE.softmax(dim=-1).mean(dim=0) for layer in layers])
            weighted_LE = self.global_weight * f_LE + self.micro_weight * _share(own_LE)
            loss = self.step.num_experts * (weighted_LE * p_LE).sum() / len(layers)
            losses.append(loss / (self.step.num_ranks * self.step.num_passes))
        return losses


def _counts(routing: Routing) -> Tensor:
    return torch.zeros_like(routing.logits_TE.detach()).scatter_(1, routing.selected_TK, 1.0).sum(dim=0)


def _share(counts_LE: Tensor) -> Tensor:
    return counts_LE / counts_LE.sum(dim=-1, keepdim=True)
