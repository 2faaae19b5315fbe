"""Measures of one run beyond its routing: alikeness of router rows, damage without own experts, stability of domains.

What a run does not have is NaN here and "not run" once it is written.
"""

import math
from collections.abc import Collection
from itertools import pairwise

import numpy as np
import pandas as pd

from moe.analysis.ownership import damage, own_experts, stability
from moe.analysis.specialisation import Array, selection_frequency
from moe.report.records import Records, Run

HOT_MULTIPLE = 2.0
"""How many times as often as uniform routing would a domain selects an expert that is hot there, at the least."""
HOT = (
    "Hot experts of a domain, as in the paper's Figure 4b with a border of our own: those that it selects at least "
    f"{HOT_MULTIPLE:g} times as often as uniform routing would, mean over domains; overlap: Jaccard index of the hot "
    "experts of two domains, mean over pairs, 0 also for two domains without any."
)
"""For the captions of tables."""

# D domains, L layers, E experts


def ownership(run: Run) -> dict[str, float]:
    """Means over layers and domains.

    router_cosine   see `router_cosine`
    own_damage      nats per token that a domain loses without one of its own experts (`damage`)
    other_damage    what the other domains lose without the same experts
    damage_gap      own minus other: above 0 where a domain's experts are missed by it more than by others
    stability       share of experts whose strongest domain at a recorded step is so at the next
    stability_chance    that share if domains were dealt to the experts anew
    """
    cosine = run.evaluation.router_cosine
    found = {"router_cosine": float(np.mean(cosine)) if cosine else math.nan}
    losses = {"own_damage": math.nan, "other_damage": math.nan}
    increase_DLE = increases(run)
    if increase_DLE is not None and len(increase_DLE) > 1:
        own_DLE = own_experts(selection_frequency(run.routing.counts_DLE), multiple=HOT_MULTIPLE)
        lost = damage(np.moveaxis(increase_DLE, 0, -1), own_DLE)
        losses = {"own_damage": float(lost.own_D.mean()), "other_damage": float(lost.other_D.mean())}
    found |= losses | {"damage_gap": losses["own_damage"] - losses["other_damage"]}
    kept = [stability(first, second) for first, second in pairwise(domain_counts(run))]
    shares = [(part.share_L.mean(), part.chance_L.mean()) for part in kept] or [(math.nan, math.nan)]
    share, chance = np.mean(shares, axis=0)
    return found | {"stability": float(share), "stability_chance": float(chance)}


def domain_counts(run: Run) -> list[Array]:
    """Selections in the batch of each recorded step, [D, L, E], of the domains that all of these batches hold; empty
    where there are not two. Sequences of several domains tell of none."""
    counts = run.counts
    if counts is None:
        return []
    everywhere = set.intersection(*map(set, counts.domains_SB)) & set(run.routing.domains)
    sums = [
        np.array([counts_LBE[:, domains_B == name].sum(axis=1) for name in run.routing.domains if name in everywhere])
        for counts_LBE, domains_B in zip(counts.counts_SLBE, counts.domains_SB, strict=True)
    ]
    return sums if len(everywhere) > 1 else []


def increases(run: Run) -> Array | None:
    """Increase of each domain's loss without each expert, [D, L, E], domains as in the run's routing; None where it was
    not measured."""
    dropped = run.evaluation.drop_expert
    if dropped is None:
        return None
    nats_LED, measured = np.array(dropped.nats), list(dropped.sequences)
    return np.moveaxis(nats_LED, -1, 0)[[measured.index(name) for name in run.routing.domains]]


def drop_frame(records: Records, experiment: str, arms: Collection[str] = ()) -> pd.DataFrame:
    """One row per run, layer, domain and expert: what the domain loses without the expert (nats per token), and the
    share of its selections that chose the expert.

    Of `arms` alone, where some are named. Empty where it was not measured.
    """
    columns = ["arm", "seed", "layer", "domain", "expert", "increase_nats", "selection_frequency"]
    frames = [pd.DataFrame(columns=columns)]
    for arm, seed, run in records.runs_of(experiment, arms):
        increase_DLE = increases(run)
        if increase_DLE is None:
            continue
        domain, layer, expert = (index.ravel() for index in np.indices(increase_DLE.shape))
        frequency = selection_frequency(run.routing.counts_DLE).ravel()
        names = np.array(run.routing.domains, dtype=object)[domain]
        values = (arm, seed, layer, names, expert, increase_DLE.ravel(), frequency)
        frames.append(pd.DataFrame(dict(zip(columns, values, strict=True))))
    return pd.concat(frames[1:] or frames, ignore_index=True)
