"""Which losses see the routers' weights and no token? They have no window, and one value in an optimizer step.

A loss of weights is added once, whatever the number of passes; every rank adds all of it, since gradients are averaged.
"""

import torch
from torch import Tensor

# L layers, E experts, H hidden units


def similarity_loss(weights_LEH: Tensor) -> Tensor:
    """SimBal: Σ_ij |RᵀR - I|_ij per layer, [L] (arXiv:2506.14038), where R [H, E] holds the experts' rows of the router
    weight as columns, so that experts are compared with experts.

    The entrywise 1-norm, a sum and no mean. Orthonormal rows give 0, which needs E <= H; a zero matrix gives E; E equal
    rows of length 1 give E (E - 1).
    """
    gram_LEE = weights_LEH @ weights_LEH.transpose(1, 2)
    identity_EE = torch.eye(weights_LEH.shape[1], dtype=gram_LEE.dtype, device=gram_LEE.device)
    return (gram_LEE - identity_EE).abs().sum(dim=(1, 2))
