"""How even is the load? Functions of counts [..., E], all in fp64, none with gradient."""

import math

import torch
from torch import Tensor


def max_violation(counts: Tensor) -> Tensor:
    """MaxVio = (max load - mean load) / mean load, [...] (arXiv:2408.15664, equation 4); 0 when even, E - 1 when one
    expert takes all."""
    load = counts.double()
    return load.amax(dim=-1) / load.mean(dim=-1) - 1


def load_entropy(counts: Tensor) -> Tensor:
    """Entropy of the load shares over log E, [...]; 1 when even, 0 when one expert takes all."""
    shares = counts.double() / counts.sum(dim=-1, keepdim=True)
    return torch.special.entr(shares).sum(dim=-1) / math.log(counts.shape[-1])


def dead_experts(counts: Tensor) -> Tensor:
    """Number of experts that were never chosen, [...], int64."""
    return (counts == 0).sum(dim=-1)
