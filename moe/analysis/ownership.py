"""Which experts are a domain's own, what is lost without them, and do they stay its own? Pure functions.

Shape suffixes: D domains, L layers, E experts. Domains weigh the same everywhere.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moe.analysis.specialisation import Array, hot_experts, selection_frequency


def own_experts(frequency_DLE: ArrayLike, *, multiple: float) -> NDArray[np.bool_]:
    """Which experts are a domain's own, [D, L, E]: its `hot_experts`, and the one that it selects most often in each
    layer, the first of equals.

    Uniform routing leaves each domain one expert; a domain that always takes the same K <= E / `multiple` has those K.
    """
    f = np.asarray(frequency_DLE, dtype=np.float64)
    own = hot_experts(f, multiple=multiple)
    np.put_along_axis(own, f.argmax(axis=-1)[..., None], True, axis=-1)
    return own


class Damage(NamedTuple):
    """What leaving out a domain's own experts does, in nats per token, one value for each domain."""

    own_D: Array
    """Increase of the loss of the domain itself, mean over its own experts of all layers."""
    other_D: Array
    """Mean increase of the other domains, over the same experts."""


def damage(increase_LED: ArrayLike, own_DLE: ArrayLike) -> Damage:
    """Does leaving out a domain's own experts hurt that domain and no other?

    `increase_LED`: increase of a domain's loss where one expert is left out; `own_DLE`: see `own_experts`. Where every
    expert is missed by all domains alike, own and other are equal; where each expert is used by one domain alone,
    other is 0. Raises `ValueError` for fewer than two domains, or one without an own expert.
    """
    increase_DLE = np.moveaxis(np.asarray(increase_LED, dtype=np.float64), -1, 0)
    own = np.asarray(own_DLE, dtype=bool)
    if len(own) < 2 or not own.any(axis=(1, 2)).all():
        raise ValueError("damage needs two domains, and an own expert of each")
    # [d, g]: what domain g loses, mean over the own experts of domain d.
    loss_DD = np.einsum("dle,gle->dg", own, increase_DLE) / own.sum(axis=(1, 2))[:, None]
    own_D = np.diagonal(loss_DD)
    return Damage(own_D, (loss_DD.sum(axis=1) - own_D) / (len(own) - 1))


class Stability(NamedTuple):
    """How far experts keep their domain between two moments of training, one value for each layer."""

    share_L: Array
    """Share of experts whose strongest domain is the same at both moments."""
    chance_L: Array
    """That share if the domains were dealt to the experts anew, as many experts to each domain as there are at either
    moment: sum_d p_d q_d, 1 / D where all domains have as many experts."""


def stability(first_DLE: ArrayLike, second_DLE: ArrayLike) -> Stability:
    """Is an expert's strongest domain at one moment still its strongest at another?

    Both are selection counts. The strongest domain of an expert is the one that selects it with the highest frequency,
    the first of equals; experts that no domain has selected at one of the moments are left out. Equal counts give 1;
    where the domains have exchanged all their experts it is 0. Raises `ValueError` for a layer without such experts.
    """
    first, second = selection_frequency(first_DLE), selection_frequency(second_DLE)
    used_LE = first.any(axis=0) & second.any(axis=0)
    if not used_LE.any(axis=-1).all():
        raise ValueError("stability needs an expert in every layer that is selected at both moments")
    one_LE, other_LE = first.argmax(axis=0), second.argmax(axis=0)
    num_used_L = used_LE.sum(axis=-1)
    share_L = (used_LE & (one_LE == other_LE)).sum(axis=-1) / num_used_L
    domains_D = np.arange(len(first))[:, None, None]
    one_DL, other_DL = ((used_LE & (found == domains_D)).sum(axis=-1) / num_used_L for found in (one_LE, other_LE))
    return Stability(share_L, (one_DL * other_DL).sum(axis=0))
