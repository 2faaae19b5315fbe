"""The auxiliary loss of Hugging Face transformers."""

from typing import Any

from torch import Tensor
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from moe.conformance.kit import Adapter, Routing


class Transformers(Adapter):
    """The `load_balancing_loss_func` of the installed transformers, called as Qwen3-MoE's forward calls it, under the
    defaults of its Trainer: the model's loss is multiplied by the number of processes
    (`average_tokens_across_devices`, issue 48690) and is not divided by the accumulation steps, since the model takes
    `num_items_in_batch`, which its auxiliary loss does not use; data parallelism averages. The logged value is the
    loss's part in Trainer's `loss`."""

    not_applicable = {"hybrid": "there is one loss only"}
    # It sums in fp32.
    tolerance = 1e-5

    def losses(self, pass_index: int, ranks: list[list[Routing]]) -> list[Tensor]:
        factor_of_trainer, mean_of_ranks = self.step.num_ranks, 1 / self.step.num_ranks
        return [factor_of_trainer * mean_of_ranks * self._loss(layers) for layers in ranks]

    def _loss(self, layers: list[Routing]) -> Tensor:
        mask_SN = layers[0].mask_SN
        logits: Any = tuple(routing.logits_TE for routing in layers)  # annotated there as a tuple of one
        mask = None if mask_SN.all() else mask_SN
        loss = load_balancing_loss_func(logits, self.step.num_experts, self.step.top_k, mask)
        assert isinstance(loss, Tensor)
        return loss
