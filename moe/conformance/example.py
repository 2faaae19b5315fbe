"""Our loss as our training loop calls it: f is summed over the ranks, micro-batch by micro-batch."""

import torch

from moe.conformance import Adapter


class Mine(Adapter):
    """My framework 1.2: DDP averages the ranks, and the loop divides by its accumulation steps."""

    not_applicable = {"hybrid": "there is one loss only"}

    def losses(self, pass_index, ranks):
        step, losses = self.step, []
        for layer in zip(*ranks, strict=True):  # the routings of one layer, rank beside rank
            masks = [routing.mask_SN.flatten() for routing in layer]
            chosen = torch.cat([routing.selected_TK[mask] for routing, mask in zip(layer, masks, strict=True)])
            counts = torch.bincount(chosen.flatten(), minlength=step.num_experts)  # an all-reduce in real life
            for routing, mask in zip(layer, masks, strict=True):
                p = routing.logits_TE[mask].softmax(dim=-1).mean(dim=0)
                loss = step.num_experts * (counts / counts.sum() * p).sum()
                losses.append(loss / (step.num_layers * step.num_ranks * step.num_passes))
        return losses
