"""Which experts does a trained model use for which domain? Counts and score sums over the held-out text.

Writes `routing.parquet`: one row per domain, layer and expert. A part of the evaluation, which has the model at hand.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from transformers import PreTrainedModel

from moe import provenance
from moe.config import RunConfig
from moe.data.packing import read_packed
from moe.model.router import Routing, record_routing
from moe.settings import digest

BATCH_SEQUENCES = 32

# D domains, L layers, E experts, T tokens, K choices


def probe(model: PreTrainedModel, *, run: str, config: RunConfig, data_folder: Path, out: Path) -> None:
    """Route the whole held-out stream of every domain through the trained model of `run` and write the sums.

    Columns: tokens, selections of the expert; score_sum, its softmax score summed over all tokens; top_k_score_sum,
    the same over the tokens that chose it.
    """
    names = [domain.name for domain in config.data.domains]
    sums_DLE3 = []
    tokens = {}
    for name in names:
        sequences = read_packed(data_folder, name, "heldout")
        tokens[name] = int(sequences.size)
        tokens_SN = torch.from_numpy(sequences.astype(np.int64)).to(model.device)
        sums_DLE3.append(domain_sums(model, tokens_SN).cpu())
    sums = torch.stack(sums_DLE3)
    shape = sums.shape[:3]
    domain, layer, expert = (index.flatten() for index in np.indices(shape))
    table = pa.table(
        {
            "run": pa.array([run] * len(domain)),
            "domain": pa.array([names[d] for d in domain]),
            "layer": pa.array(layer),
            "expert": pa.array(expert),
            "tokens": pa.array(sums[..., 0].flatten().long().numpy()),
            "score_sum": pa.array(sums[..., 1].flatten().numpy()),
            "top_k_score_sum": pa.array(sums[..., 2].flatten().numpy()),
        }
    )
    stamp = provenance.stamp(
        "moe-routing/1",
        device=provenance.device_name(model.device),
        run=run,
        seed=config.seed,
        config_hash=digest(config),
        num_experts=config.model.num_experts,
        top_k=config.model.top_k,
        heldout_tokens=tokens,
    )
    with provenance.complete_file(out) as temporary:
        pq.write_table(table.replace_schema_metadata({"moe": json.dumps(stamp)}), temporary)


@torch.inference_mode()
def domain_sums(model: PreTrainedModel, sequences_SN: Tensor) -> Tensor:
    """Selections, score sums and chosen-score sums of one domain, fp64 [L, E, 3]."""
    total = torch.zeros((), device=sequences_SN.device)
    for batch in sequences_SN.split(BATCH_SEQUENCES):
        with record_routing(model) as layers:
            model.model(input_ids=batch, use_cache=False)
        total = total + torch.stack([_layer_sums(layer) for layer in layers])
    return total


def _layer_sums(layer: Routing) -> Tensor:
    scores_TE = layer.logits_TE.double().softmax(dim=-1)
    chosen_TE = torch.zeros_like(scores_TE).scatter_(1, layer.selected_TK, 1.0)
    return torch.stack([chosen_TE.sum(dim=0), scores_TE.sum(dim=0), (scores_TE * chosen_TE).sum(dim=0)], dim=-1)
