"""Which domains lose by which expert? A picture of the loss without each expert."""

import numpy as np
import pandas as pd
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from moe.report import measures, text
from moe.report.records import Records
from moe.report.specialisation_measures import drop_frame
from moe.report.style import COLOUR_MAP, WIDTH, Drawing

CLIPPED = 0.02
"""Share of the increases that are beyond the colours: one expert may matter ten times as much as all others."""


def drop_figure(drops: pd.DataFrame, arms: tuple[str, str]) -> Figure:
    """Domains by experts, colour: increase of the domain's loss without the expert; one panel for each arm and one
    scale for both.

    `drops` is of one layer and one seed. Experts are sorted by the domain that selects them most, which is measured
    apart: damage to that domain alone is a staircase from the upper left to the lower right.
    """
    domains = list(dict.fromkeys(drops["domain"]))
    figure = Figure(figsize=(WIDTH, 1.9 + 0.52 * len(domains)))
    panels = figure.subplots(2, 1)
    increase = drops["increase_nats"]
    top = max(float(increase.quantile(1 - CLIPPED)), 1e-6)
    norm = Normalize(-top, top)
    for axes, arm in zip(panels, arms, strict=True):
        rows = drops[drops["arm"] == arm]
        increase_DE, share_DE = (
            rows.pivot(index="domain", columns="expert", values=column).loc[domains].to_numpy()
            for column in ("increase_nats", "selection_frequency")
        )
        main = share_DE.argmax(axis=0)
        order = np.lexsort((-share_DE.max(axis=0), main))
        image = axes.pcolormesh(increase_DE[:, order], cmap=COLOUR_MAP, norm=norm, edgecolors="white", linewidth=0.3)
        for column, domain in enumerate(main[order]):
            axes.plot(column + 0.5, domain + 0.5, marker=".", markersize=2.5, color="black", linestyle="")
        axes.set_yticks(np.arange(len(domains)) + 0.5, [text.wrapped(domain, 16) for domain in domains])
        axes.invert_yaxis()
        axes.set_xticks([])
        axes.set_ylabel("domain")
        axes.set_title(text.wrapped(arm, 44))
        axes.grid(visible=False)
        axes.tick_params(length=0)
    panels[-1].set_xlabel("expert, sorted by the domain that selects it most (dot)")
    bar = figure.colorbar(image, ax=list(panels), label="increase of the loss (nats/token)", aspect=35, extend="max")
    bar.ax.set_ylim(min(max(float(increase.min()), -top), -0.05 * top), top)
    return figure


def drop_drawing(records: Records, experiment: str) -> Drawing | None:
    """Increase of every domain's loss without each expert in the two end arms; None where it was not measured."""
    ends = measures.end_arms(records, experiment)
    drops = drop_frame(records, experiment, ends)
    seeds = set.intersection(*(set(drops.loc[drops["arm"] == arm, "seed"]) for arm in ends))
    if not seeds:
        return None
    one = drops[drops["seed"] == min(seeds)]
    layers = one.groupby("layer")["increase_nats"].mean()
    layer = layers.idxmax()
    one = one[one["layer"] == layer]
    caption = (
        f"Increase of the held-out loss of every domain where one expert of layer {layer} is never chosen, seed "
        f"{min(seeds)}: one run for each arm, no interval; layer {layer} is that of {len(layers)} whose experts are "
        "missed most. Dot: the domain that selects the expert most; damage to it alone would be a staircase of dots "
        f"on white. The highest {100 * CLIPPED:g} % lie beyond the colours, up to {one['increase_nats'].max():.2f}. "
        "The paper prints no such figure."
    )
    tops = one.groupby("arm")["increase_nats"].max()
    alt = "Largest loss by one expert: " + "; ".join(f"{arm} {tops[arm]:.2f} nats per token" for arm in ends) + "."
    figure = drop_figure(one, ends)
    title = "Which domains miss each expert"
    return Drawing("drop", experiment, "routing", title, caption, alt, (f"{experiment}-drop",), figure)
