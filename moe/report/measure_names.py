"""Measures of one run that arms are compared in. It imports nothing, so that a plan can check names against it."""

MEASURES = {
    "heldout_nats": "held-out loss (nats/token)",
    "bits_per_byte": "bits per byte",
    "perplexity": "Avg PPL",
    "divergence": "JSD between domains (nats)",
    "information": "mutual information domain–expert (nats)",
    "hot_experts": "hot experts of a domain (number)",
    "hot_overlap": "overlap of hot experts between domains (Jaccard)",
    "largest_frequency": "largest selection frequency (share)",
    "top_k_score_sum": "top-K score sum (probability)",
    "max_vio": "MaxVio",
    "load_entropy": "load entropy / log E",
    "max_vio_micro": "MaxVio inside a micro-batch, in training",
    "dead_experts": "dead experts per layer, in training",
    "dropped": "choices that capacity drops, in training (share)",
    "router_cosine": "cosine between router rows (absolute)",
    "own_damage": "own damage without an own expert (nats/token)",
    "other_damage": "damage to others without it (nats/token)",
    "damage_gap": "own damage − damage to others (nats/token)",
    "stability": "experts that keep their domain (share)",
}
"""Column of the runs frame -> name in tables. From `divergence` on: means over layers of the held-out routing; from
`max_vio_micro` on, of training batches: see `training_loads` of `moe/report/measures.py`; from `router_cosine` on, see
`moe/report/specialisation_measures.py`: not of every run."""
