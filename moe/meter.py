"""What one global batch looked like to the model, as a line of `train.jsonl` says it."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from moe.balance.capacity import Capacity, dropped_share
from moe.balance.estimators import WindowPool
from moe.balance.metrics import dead_experts, load_entropy, max_violation

# L layers, T terms, W windows, E experts


class Meter:
    """Metrics of one global batch, summed up over its passes and then averaged over the ranks."""

    def __init__(self, micro_sequences: int, capacity: Capacity | None) -> None:
        self.micro_sequences = micro_sequences
        self.capacity = capacity
        self.similarity_L: Tensor | None = None
        """Equal on all ranks, and not summed over passes."""
        self.values: list[Tensor] = []

    def add(self, lm_loss: Tensor, z_L: Tensor, balance_TL: list[Tensor]) -> None:
        """Take the contributions of one pass."""
        rows = [lm_loss.detach().expand_as(z_L), z_L.detach(), *(value_L.detach() for value_L in balance_TL)]
        self.values.append(torch.stack([row.double() for row in rows]))

    def metrics(self, accelerator: Accelerator, pool: WindowPool) -> dict[str, Any]:
        """Metrics of the batch, after its last pass."""
        values = accelerator.reduce(torch.stack(self.values).sum(dim=0), reduction="mean")
        lm_loss, z, *balance = values.tolist()
        micro_LWE = pool.totals(self.micro_sequences)
        counts_LE = micro_LWE.sum(dim=1)
        optional = {}
        if self.similarity_L is not None:
            optional["similarity"] = self.similarity_L.tolist()
        if self.capacity is not None:
            counts_LWE = pool.totals(self.capacity.window)
            optional["dropped"] = dropped_share(counts_LWE, factor=self.capacity.factor).tolist()
        return {
            "lm_loss": lm_loss[0],
            "z_loss": z,
            "balance": balance,
            "max_vio_global": max_violation(counts_LE).tolist(),
            "max_vio_micro": max_violation(micro_LWE).mean(dim=1).tolist(),
            "load_entropy": load_entropy(counts_LE).tolist(),
            "dead_experts": dead_experts(counts_LE).tolist(),
            **optional,
        }
