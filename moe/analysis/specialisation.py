"""How differently are the experts used by the domains? Pure functions of routing counts.

Shape suffixes: D domains, L layers, E experts. Information is in nats. Domains weigh the same everywhere, however
many tokens each was measured on.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def selection_frequency(counts_DLE: ArrayLike) -> Array:
    """Share of a domain's selections in a layer that chose each expert: f[d, l, e] = c[d, l, e] / sum_e c[d, l, e].

    `counts_DLE`: selections, top-K for each token. Every [d, l] row sums to 1; uniform routing gives 1 / E, a domain
    that always takes the same K experts gives 1 / K for those. Raises `ValueError` for a row without selections.
    """
    counts = np.asarray(counts_DLE, dtype=np.float64)
    total = counts.sum(axis=-1, keepdims=True)
    if counts.min(initial=0) < 0 or not (total > 0).all():
        raise ValueError("counts must not be negative, and every domain needs selections in every layer")
    return counts / total


def top_k_score_sum(score_sum_DLE: ArrayLike, tokens_D: ArrayLike) -> Array:
    """Mean over tokens of the sum of the K chosen experts' score shares, [D, L] (arXiv:2501.11873, Figure 4a).

    `score_sum_DLE`: scores of the tokens that chose the expert, summed; `tokens_D`: tokens of each domain. A router
    with no preference gives K / E, one that puts all probability on K experts gives 1.
    """
    tokens = np.asarray(tokens_D, dtype=np.float64)
    return np.asarray(score_sum_DLE, dtype=np.float64).sum(axis=-1) / tokens[:, None]


def entropy(probability: ArrayLike) -> Array:
    """-sum_i p_i log p_i over the last axis; 0 for certainty, log n for n equal shares."""
    p = np.asarray(probability, dtype=np.float64)
    # log 1 = 0 stands in where p = 0, since p log p -> 0.
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=-1)


def mutual_information(frequency_DLE: ArrayLike) -> Array:
    """I(domain; expert) per layer, [L]: H(mean_d f_d) - mean_d H(f_d).

    With equally weighted domains this is also their generalised Jensen-Shannon divergence. It is 0 where all domains
    use the experts alike, and log D where no two domains share an expert; log E bounds it too. From n selections it is
    too high by about (D - 1)(E - 1) / (2 n) (Miller-Madow), alike for arms that are measured on the same tokens.
    """
    f = np.asarray(frequency_DLE, dtype=np.float64)
    return np.maximum(entropy(f.mean(axis=0)) - entropy(f).mean(axis=0), 0.0)


def pairwise_divergence(frequency_DLE: ArrayLike) -> Array:
    """Jensen-Shannon divergence of two domains, mean over all pairs of domains, per layer, [L].

    JSD(f, g) = H((f + g) / 2) - (H(f) + H(g)) / 2. 0 where all domains use the experts alike, log 2 where no two
    domains share an expert. Raises `ValueError` for fewer than two domains.
    """
    f = np.asarray(frequency_DLE, dtype=np.float64)
    first, second = np.triu_indices(len(f), k=1)
    if not len(first):
        raise ValueError("a divergence between domains needs two domains")
    own = entropy(f)
    pairs = entropy((f[first] + f[second]) / 2) - (own[first] + own[second]) / 2
    return np.maximum(pairs, 0.0).mean(axis=0)


def hot_experts(frequency_DLE: ArrayLike, *, multiple: float) -> NDArray[np.bool_]:
    """Which experts are hot in a domain, [D, L, E]: those that it selects at least `multiple` times as often as uniform
    routing would.

    arXiv:2501.11873, Figure 4b, shows the high-frequency experts of each domain; the border is ours. Uniform routing
    gives none for a `multiple` above 1, a domain that always takes the same K <= E / `multiple` experts has those K.
    """
    f = np.asarray(frequency_DLE, dtype=np.float64)
    return f >= multiple / f.shape[-1]


def hot_overlap(hot_DLE: ArrayLike) -> Array:
    """Jaccard index |A & B| / |A | B| of the hot experts of two domains, mean over pairs of domains, per layer, [L].

    1 where all domains share their hot experts, 0 where no two share one; a pair without any hot expert shares none and
    counts as 0, so that the number of hot experts belongs beside it. Raises `ValueError` for fewer than two domains.
    """
    hot = np.asarray(hot_DLE, dtype=bool)
    first, second = np.triu_indices(len(hot), k=1)
    if not len(first):
        raise ValueError("an overlap of domains needs two domains")
    shared = (hot[first] & hot[second]).sum(axis=-1)
    either = (hot[first] | hot[second]).sum(axis=-1)
    return (shared / np.maximum(either, 1)).mean(axis=0)


def max_violation(load_LE: ArrayLike) -> Array:
    """MaxVio per layer, [L]: max_e load / mean_e load - 1 (arXiv:2408.15664).

    Equal loads give 0; one expert that takes every selection gives E - 1.
    """
    load = np.asarray(load_LE, dtype=np.float64)
    return load.max(axis=-1) / load.mean(axis=-1) - 1


def load_entropy(load_LE: ArrayLike) -> Array:
    """Entropy of the load over log E, per layer, [L]: equal loads give 1, a single used expert gives 0.

    A layer of one expert is balanced by definition and gives 1.
    """
    load = np.asarray(load_LE, dtype=np.float64)
    if load.shape[-1] == 1:
        return np.ones(load.shape[:-1])
    return entropy(load / load.sum(axis=-1, keepdims=True)) / np.log(load.shape[-1])
