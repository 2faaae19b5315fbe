"""Which auxiliary losses keep the experts in use? Functions of the statistics, one value per layer.

Each gives the contribution of one pass of one rank to the loss of the global batch: contributions are summed over
passes and averaged over ranks, as data parallelism averages gradients. `tokens_per_rank` is the number of tokens of the
global batch that count, divided by the number of ranks; so the split may be uneven, and no other factor is needed.
"""

from torch import Tensor

from moe.balance.statistics import Statistics

# L layers, S sequences, W windows, E experts


def balance_coefficients(counts_LWE: Tensor, *, tokens_per_rank: float) -> Tensor:
    """N_E · f_wi / tokens, fp64 [L, W, E]: what `load_balancing_loss` multiplies each score sum with, no gradient. As
    it is linear in those, the coefficients of several terms may be added up before they meet the scores."""
    counts_LWE = counts_LWE.double()
    return counts_LWE * (counts_LWE.shape[-1] / tokens_per_rank / counts_LWE.sum(dim=-1, keepdim=True).clamp(min=1))


def load_balancing_loss(counts_LWE: Tensor, scores_LWE: Tensor, *, tokens_per_rank: float) -> Tensor:
    """N_E · Σ_w Σ_i f_wi · P_wi per layer, [L]; gradient through P alone (arXiv:2501.11873, section 2).

    counts_LWE: selections of expert i in window w, over all of the window that the estimator knows: f_wi is their
    share, so Σ_i f_wi = 1. (transformers sums f to K.)
    scores_LWE: sums of scores of expert i over the *local* tokens of window w; P_wi = scores / tokens. Windows thus
    count by their tokens, and each sequence may as well come by itself, with the counts of its window.

    Uniform routing gives 1. Always choosing the same K experts, with all probability on them, gives N_E / K.
    """
    coefficients_LWE = balance_coefficients(counts_LWE, tokens_per_rank=tokens_per_rank)
    return (coefficients_LWE.to(scores_LWE.dtype) * scores_LWE).sum(dim=(1, 2))


def z_loss(statistics: Statistics, *, tokens_per_rank: float) -> Tensor:
    """Mean over tokens of logsumexp(logits)^2 per layer, [L] (arXiv:2202.08906, equation 5); zero logits give
    log(N_E)^2."""
    return statistics.squares_LS.sum(dim=1) / tokens_per_rank
