"""One forward pass: the language-model loss and the routing statistics that balance works on."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from moe.balance.statistics import Draws, Statistics, draw_counts, sequence_counts, stack_layers, widened
from moe.model.router import record_routing, record_sums

# L layers, D draws, E experts, S sequences, N tokens of a sequence, H hidden units

IGNORED = -100  # a target that is not predicted
LOSS_TOKENS = 256
"""Tokens whose logits are held at once: few enough for the cache, also of a large vocabulary."""


class Pass(NamedTuple):
    """Results of one forward pass."""

    nats: Tensor
    """Next-token loss, summed over the predicted tokens, without auxiliary terms."""
    statistics: Statistics
    """Counts and score sums per layer and sequence."""


class Objective(nn.Module):
    """The model as training calls it: tokens in, loss and statistics out."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens_SN: Tensor, mask_SN: Tensor | None = None, draws: Draws | None = None) -> Pass:
        """int64 [S, N] -> loss of predicting every token but the first, and statistics of all tokens, of `draws` too.

        `mask_SN`: true where a token counts. Padding stands at the end of a sequence, where causal attention keeps it
        from being seen.
        """
        with record_sums(self.model, num_sequences=len(tokens_SN), mask_SN=mask_SN, draws=draws) as layers:
            hidden_SNH = self.model.model(input_ids=tokens_SN, use_cache=False).last_hidden_state
        statistics = stack_layers(layers, tokens_per_sequence=tokens_SN.shape[1], mask_SN=mask_SN)
        targets_SN = tokens_SN[:, 1:]
        if mask_SN is not None:
            targets_SN = targets_SN.masked_fill(~mask_SN[:, 1:], IGNORED)
        # Chunked, so that the logits of all tokens are never held at once. In fp32 or wider, since under autocast the
        # sum itself would be bf16.
        with torch.autocast(tokens_SN.device.type, enabled=False):
            nats = F.linear_cross_entropy(
                widened(hidden_SNH[:, :-1].flatten(0, 1)),
                self.model.lm_head.weight,
                targets_SN.flatten(),
                reduction="sum",
                ignore_index=IGNORED,
                options=torch.nn.LinearCrossEntropyOptions(batch_chunk_size=LOSS_TOKENS),
            )
        return Pass(nats, statistics)

    @torch.no_grad()
    def count(
        self, tokens_SN: Tensor, mask_SN: Tensor | None = None, draws: Draws | None = None
    ) -> tuple[Tensor, Tensor]:
        """The counts of the statistics alone, [L, S, E] and [L, D, E]; nothing behind the last router is computed."""
        with record_routing(self.model, stop=True) as layers:
            self.model.model(input_ids=tokens_SN, use_cache=False)
        at = {"num_sequences": len(tokens_SN), "mask_SN": mask_SN}
        num_experts = layers[0].logits_TE.shape[1]
        counts_LSE = torch.stack([sequence_counts(layer.selected_TK, num_experts, **at) for layer in layers])
        drawn = [draw_counts(layer.selected_TK, num_experts, draws, mask_SN=mask_SN) for layer in layers]
        return counts_LSE, torch.stack(drawn)

    def route(self, tokens_SN: Tensor, mask_SN: Tensor | None = None) -> Statistics:
        """The statistics alone, with gradient; nothing behind the last router is computed."""
        with record_sums(self.model, num_sequences=len(tokens_SN), mask_SN=mask_SN, stop=True) as layers:
            self.model.model(input_ids=tokens_SN, use_cache=False)
        return stack_layers(layers, tokens_per_sequence=tokens_SN.shape[1], mask_SN=mask_SN)
