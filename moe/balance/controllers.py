"""What balances without a loss? Updates of a router's state from the counts of the global batch."""

from torch import Tensor

# L layers, W windows, E experts


def bias_update(counts_LWE: Tensor, *, rate: float) -> Tensor:
    """What to add to the selection bias of every expert after an optimizer step, [L, E]: u · sign(mean load - load),
    averaged over the windows of the batch (arXiv:2408.15664, Algorithm 1, where one window is the whole batch).

    counts_LWE: selections of each expert in each window. An expert that has more than the mean in every window loses
    `rate`, one that has less gains it, one at the mean keeps its bias.
    """
    load_LWE = counts_LWE.double()
    return rate * (load_LWE.mean(dim=-1, keepdim=True) - load_LWE).sign().mean(dim=1)
