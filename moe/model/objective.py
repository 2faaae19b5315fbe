"""One forward pass: the language-model loss and the routing statistics that balance works on."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from moe.balance.statistics import Statistics, sequence_statistics
from moe.model.router import record_routing

# S sequences, N tokens of a sequence, H hidden units


class Pass(NamedTuple):
    """Results of one forward pass."""

    lm_loss: Tensor
    """Mean next-token loss in nats, without auxiliary terms."""
    statistics: Statistics
    """Counts and score sums per layer and sequence."""


class Objective(nn.Module):
    """The model as training calls it: tokens in, loss and statistics out."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens_SN: Tensor) -> Pass:
        """int64 [S, N] -> loss of predicting every token but the first, and statistics of all tokens."""
        hidden_SNH, statistics = self._trunk(tokens_SN)
        # Chunked, so that the logits of all tokens are never held at once.
        lm_loss = F.linear_cross_entropy(
            hidden_SNH[:, :-1].flatten(0, 1),
            self.model.lm_head.weight,
            tokens_SN[:, 1:].flatten(),
            options=torch.nn.LinearCrossEntropyOptions(),
        )
        return Pass(lm_loss, statistics)

    @torch.no_grad()
    def count(self, tokens_SN: Tensor) -> Statistics:
        """The statistics alone, without gradient and without logits."""
        return self._trunk(tokens_SN)[1]

    def _trunk(self, tokens_SN: Tensor) -> tuple[Tensor, Statistics]:
        with record_routing(self.model) as layers:
            hidden_SNH = self.model.model(input_ids=tokens_SN, use_cache=False).last_hidden_state
        statistics = sequence_statistics(
            [layer.logits_TE for layer in layers],
            [layer.selected_TK for layer in layers],
            num_sequences=len(tokens_SN),
        )
        return hidden_SNH, statistics
