"""Held-out text once through a trained model: the loss of its tokens, and which experts each domain's text is sent to.

Writes `routing.parquet`: one row per domain, layer and expert. A part of the evaluation, which has the model at hand.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from moe import provenance
from moe.balance.statistics import gate_scores
from moe.config import RunConfig
from moe.model.objective import LOSS_TOKENS
from moe.model.router import Routing, record_routing

# D domains, L layers, E experts, S sequences, N tokens of a sequence, T tokens, K choices, H hidden units


class HeldoutPass(NamedTuple):
    """Sums over the held-out sequences of one domain."""

    nats: float
    """-ln p of every token but the first of each sequence, given the tokens before it in the sequence."""
    sums_LE3: Tensor
    """Of all tokens, fp64: selections of the expert, its share of the scores, and that where it was chosen."""


@torch.inference_mode()
def heldout_pass(model: PreTrainedModel, sequences_SN: np.ndarray, *, batch_size: int) -> HeldoutPass:
    """Sums over the sequences, `batch_size` of which go through the model at once."""
    nats, sums = torch.zeros((2, 1), dtype=torch.float64, device=model.device)
    for start in range(0, len(sequences_SN), batch_size):
        tokens_SN = torch.from_numpy(sequences_SN[start : start + batch_size].astype(np.int64)).to(model.device)
        with record_routing(model) as layers:
            hidden_SNH = model.model(input_ids=tokens_SN, use_cache=False).last_hidden_state
        nats = nats + token_nats(model, hidden_SNH, tokens_SN).sum()
        sums = sums + torch.stack([_layer_sums(layer) for layer in layers])
    return HeldoutPass(nats.item(), sums)


def token_nats(model: PreTrainedModel, hidden_SNH: Tensor, tokens_SN: Tensor) -> Tensor:
    """-ln p of every token but the first of each sequence, fp64 [S, N - 1], from the last hidden states."""
    return nats_of(model, hidden_SNH[:, :-1].flatten(0, 1), tokens_SN[:, 1:].flatten()).view(len(tokens_SN), -1)


def nats_of(model: PreTrainedModel, hidden_TH: Tensor, targets_T: Tensor) -> Tensor:
    """-ln p of each target, fp64 [T], from the last hidden state before it."""
    # Chunked, so that the logits of all tokens are never held at once.
    chunks = zip(hidden_TH.split(LOSS_TOKENS), targets_T.split(LOSS_TOKENS), strict=True)
    nats = [F.cross_entropy(model.lm_head(hidden).float(), targets, reduction="none") for hidden, targets in chunks]
    return torch.cat(nats).double()


def _layer_sums(layer: Routing) -> Tensor:
    _, scores_TE = gate_scores(layer.logits_TE.double(), layer.gate)
    chosen_TE = torch.zeros_like(scores_TE).scatter_(1, layer.selected_TK, 1.0)
    return torch.stack([chosen_TE.sum(dim=0), scores_TE.sum(dim=0), (scores_TE * chosen_TE).sum(dim=0)], dim=-1)


def write_routing(
    passes: dict[str, HeldoutPass], tokens: dict[str, int], *, run: str, config: RunConfig, device: str, out: Path
) -> None:
    """Write the routing sums of every domain of `run`; `tokens`: how many tokens each domain's pass has read.

    Columns: tokens, selections of the expert; score_sum, its share of each token's scores, summed over all tokens;
    top_k_score_sum, the same over the tokens that chose it.
    """
    names = list(passes)
    sums_DLE3 = torch.stack([found.sums_LE3 for found in passes.values()]).cpu()
    domain, layer, expert = (index.flatten() for index in np.indices(sums_DLE3.shape[:3]))
    table = pa.table(
        {
            "run": pa.array([run] * len(domain)),
            "domain": pa.array([names[d] for d in domain]),
            "layer": pa.array(layer),
            "expert": pa.array(expert),
            "tokens": pa.array(sums_DLE3[..., 0].flatten().long().numpy()),
            "score_sum": pa.array(sums_DLE3[..., 1].flatten().numpy()),
            "top_k_score_sum": pa.array(sums_DLE3[..., 2].flatten().numpy()),
        }
    )
    stamp = provenance.run_stamp(
        "moe-routing/1",
        config,
        run=run,
        device=device,
        num_experts=config.model.num_experts,
        top_k=config.model.top_k,
        heldout_tokens=tokens,
    )
    with provenance.complete_file(out) as temporary:
        pq.write_table(table.replace_schema_metadata({"moe": json.dumps(stamp)}), temporary)
