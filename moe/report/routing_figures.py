"""Figures of the held-out routing: which expert each domain chooses, and how surely."""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from moe.report import measures, text
from moe.report.records import Records
from moe.report.style import COLOUR_MAP, WIDTH, ArmStyle, Drawing, arm_styles, legend_below, uniform_line

MOST_LINES = 7
"""Lines in one panel; with more arms a panel shows the two end arms alone."""


def heatmap_figure(selection: pd.DataFrame, arms: tuple[str, str]) -> Figure:
    """Domains by experts, colour: selection frequency, one panel for each arm and one scale for both.

    `selection` is of one layer and one seed. Experts are sorted by the domain that chooses them most, since their
    numbers mean nothing across arms.
    """
    domains = list(dict.fromkeys(selection["domain"]))
    figure = Figure(figsize=(WIDTH, 1.9 + 0.52 * len(domains)))
    panels = figure.subplots(2, 1)
    uniform, top = float(selection["uniform"].iloc[0]), float(selection["selection_frequency"].max())
    # White is uniform: what a domain avoids and what it prefers differ in hue.
    norm = TwoSlopeNorm(uniform, vmin=0, vmax=max(top, 1.01 * uniform))
    for axes, arm in zip(panels, arms, strict=True):
        wide = selection[selection["arm"] == arm].pivot(index="domain", columns="expert", values="selection_frequency")
        share = wide.loc[domains].to_numpy()
        order = np.lexsort((-share.max(axis=0), share.argmax(axis=0)))
        image = axes.pcolormesh(share[:, order], cmap=COLOUR_MAP, norm=norm, edgecolors="white", linewidth=0.3)
        axes.set_yticks(np.arange(len(domains)) + 0.5, [text.wrapped(domain, 16) for domain in domains])
        axes.invert_yaxis()
        # More numbers than this do not fit side by side.
        numbers = [str(expert) for expert in wide.columns[order]] if len(order) <= 16 else []
        axes.set_xticks(np.arange(len(numbers)) + 0.5, numbers, fontsize=7)
        axes.set_ylabel("domain")
        axes.set_title(text.wrapped(arm, 44))
        axes.grid(visible=False)
        axes.tick_params(length=0)
    panels[-1].set_xlabel("expert, sorted by its main domain")
    bar = figure.colorbar(
        image, ax=list(panels), label="selection frequency (share of a domain's selections)", aspect=35
    )
    bar.ax.axhline(uniform, color="black", linewidth=1.3, linestyle="--")
    ticks = [0, uniform, *(tick for tick in MaxNLocator(5).tick_values(0, top) if 1.3 * uniform < tick <= top)]
    bar.set_ticks(ticks, labels=["0", f"uniform\n{uniform:.3g}", *(f"{tick:.3g}" for tick in ticks[2:])])
    return figure


def profile_figure(selection: pd.DataFrame, arms: tuple[str, str], styles: dict[str, ArmStyle]) -> Figure:
    """Selection frequency of a domain's experts from the busiest on, as bars; one panel for each domain.

    `selection` is of one layer. Ranks can be averaged over seeds, expert numbers cannot.
    """
    domains = list(dict.fromkeys(selection["domain"]))
    figure, panels = _domain_grid(domains)
    selection = selection.sort_values("selection_frequency", ascending=False)
    selection = selection.assign(rank=selection.groupby(["arm", "seed", "domain"]).cumcount() + 1)
    uniform = float(selection["uniform"].iloc[0])
    for axes, domain in zip(panels, domains, strict=True):
        for i, arm in enumerate(arms):
            rows = selection[(selection["domain"] == domain) & (selection["arm"] == arm)]
            ranks = rows.groupby("rank")["selection_frequency"]
            mean = ranks.mean()
            spread = np.array([mean - ranks.min(), ranks.max() - mean]) if rows["seed"].nunique() > 1 else None
            axes.bar(
                mean.index + (i - 0.5) * 0.42, mean, 0.42, color=styles[arm].colour, label=text.wrapped(arm),
                yerr=spread, error_kw={"elinewidth": 0.7, "ecolor": "#333333"},
            )  # fmt: skip
        uniform_line(axes, uniform, "uniform (1/E)")
        axes.set_title(text.wrapped(domain, 24))
        axes.grid(axis="x", visible=False)
    _label_grid(figure, panels, "experts, busiest first (rank)", "selection frequency (share)")
    legend_below(figure, panels[0], columns=3)
    return figure


def score_figure(scores: pd.DataFrame, styles: dict[str, ArmStyle]) -> Figure:
    """Mean sum of the top-K scores against the layer, one panel for each domain; points: seeds, line: mean."""
    domains = list(dict.fromkeys(scores["domain"]))
    figure, panels = _domain_grid(domains)
    for axes, domain in zip(panels, domains, strict=True):
        _layer_lines(axes, scores[scores["domain"] == domain], "top_k_score_sum", styles)
        uniform_line(axes, float(scores["uniform"].iloc[0]), "uniform (K/E)")
        axes.set_title(text.wrapped(domain, 24))
    _label_grid(figure, panels, "layer", "top-K score sum (probability)")
    legend_below(figure, panels[0])
    return figure


def layer_figure(layers: pd.DataFrame, num_domains: int, styles: dict[str, ArmStyle]) -> Figure:
    """JSD between domains and mutual information of domain and expert against the layer."""
    figure = Figure(figsize=(WIDTH, 5.4))
    divergence, information = figure.subplots(2, 1, sharex=True)
    _layer_lines(divergence, layers, "divergence", styles)
    _layer_lines(information, layers, "information", styles)
    for axes in (divergence, information):
        uniform_line(axes, 0, "uniform (0)")
    divergence.set_title(f"JSD between domains (at most log 2 = {math.log(2):.2f})")
    divergence.set_ylabel("JSD (nats)")
    information.set_title(f"Mutual information (at most log D = {math.log(num_domains):.2f})")
    information.set_ylabel("mutual information (nats)")
    information.set_xlabel("layer")
    legend_below(figure, divergence)
    return figure


def _layer_lines(axes: Axes, frame: pd.DataFrame, column: str, styles: dict[str, ArmStyle]) -> None:
    for arm, style in styles.items():
        rows = frame[frame["arm"] == arm]
        mean = rows.groupby("layer")[column].mean()
        axes.plot(rows["layer"], rows[column], color=style.colour, marker=".", markersize=4, alpha=0.45, linestyle="")
        axes.plot(
            mean.index,
            mean,
            color=style.colour,
            linestyle=style.line,
            marker=style.marker,
            markersize=4.5,
            label=text.wrapped(arm),
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _domain_grid(domains: list[str]) -> tuple[Figure, list[Axes]]:
    rows = math.ceil(len(domains) / 2)
    figure = Figure(figsize=(WIDTH, 1.3 + 1.5 * rows))
    panels = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False).ravel().tolist()
    for spare in panels[len(domains) :]:
        spare.set_visible(False)
    return figure, panels[: len(domains)]


def _label_grid(figure: Figure, panels: list[Axes], x: str, y: str) -> None:
    for axes in panels[-2:]:
        axes.set_xlabel(x)
        # The panel above a gap in the last row is the lowest of its column.
        axes.tick_params(labelbottom=True)
    figure.supylabel(y, fontsize=10)


def _few(records: Records, experiment: str) -> dict[str, ArmStyle]:
    arms = list(records.arms(experiment))
    return arm_styles(arms if len(arms) <= MOST_LINES else list(measures.end_arms(records, experiment)))


def _middle_layer(records: Records, experiment: str, ends: tuple[str, str]) -> tuple[pd.DataFrame, str, int]:
    """Selections of the end arms in the middle layer (of an even number the one behind the middle), what captions call
    it, and the arms' first common seed."""
    selection = measures.selection_frame(records, experiment, ends)
    last = int(selection.groupby("arm")["layer"].max().min())
    layer = (last + 1) // 2
    rows = selection[selection["layer"] == layer]
    seeds = [set(rows.loc[rows["arm"] == arm, "seed"]) for arm in ends]
    name = f"layer {layer} " + ("(the middle one)" if 2 * layer == last else f"of 0 to {last}")
    return rows, name, min(seeds[0] & seeds[1] or seeds[0])


def heatmap_drawing(records: Records, experiment: str) -> Drawing:
    """Selection frequency of every domain and expert in the two end arms."""
    ends = measures.end_arms(records, experiment)
    rows, layer, seed = _middle_layer(records, experiment, ends)
    caption = (
        f"Selection frequency on held-out text, {layer}, seed {seed}: one run for each arm, no interval. "
        f"Each row sums to 1; dashed on the colour bar: the uniform level 1/E. {text.paper_note('Figure 1')}"
    )
    one = rows[rows["seed"] == seed]
    tops = one.groupby("arm")["selection_frequency"].max()
    alt = "Largest selection frequency of one expert: " + "; ".join(f"{arm} {tops[arm]:.2f}" for arm in ends) + "."
    figure = heatmap_figure(one, ends)
    title = "Which experts each domain chooses"
    return Drawing("selection", experiment, "routing", title, caption, alt, (f"{experiment}-selection",), figure)


def profile_drawing(records: Records, experiment: str) -> Drawing:
    """How concentrated each domain's selections are, as in the paper's Figure 1b."""
    ends = measures.end_arms(records, experiment)
    rows, layer, _ = _middle_layer(records, experiment, ends)
    seeds = rows["seed"].nunique()
    caption = (
        f"Selection frequency of each domain's experts in {layer}, ranked in every run; bars: mean over "
        f"{text.seeds(seeds)}, whiskers: lowest to highest seed. Dashed: uniform. {text.paper_note('Figure 1')}"
    )
    busiest = rows.groupby(["arm", "seed", "domain"])["selection_frequency"].max().groupby("arm").mean()
    alt = (
        "Share of the busiest expert, mean over domains: "
        + "; ".join(f"{arm} {busiest[arm]:.2f}" for arm in ends)
        + "."
    )
    figure = profile_figure(rows, ends, _few(records, experiment))
    title = "How concentrated the choices are"
    return Drawing("profile", experiment, "routing", title, caption, alt, (f"{experiment}-selection",), figure)


def score_drawing(records: Records, experiment: str) -> Drawing:
    """Top-K score sum per layer and domain, as in the paper's Figure 4a."""
    scores = measures.score_frame(records, experiment)
    caption = (
        "Mean over held-out tokens of the sum of the chosen experts' shares of the scores. Points: "
        f"{text.seeds(scores['seed'].nunique())}, lines: their mean, no interval. Dashed: uniform, K/E. "
        f"{text.paper_note('Figure 4')}"
    )
    means = scores.groupby("arm", sort=False)["top_k_score_sum"].mean()
    alt = (
        "Top-K score sum, mean over layers and domains: "
        + "; ".join(f"{arm} {value:.3f}" for arm, value in means.items())
        + "."
    )
    figure = score_figure(scores, _few(records, experiment))
    title = "How sure the router is"
    return Drawing("scores", experiment, "routing", title, caption, alt, (f"{experiment}-scores",), figure)


def layer_drawing(records: Records, experiment: str) -> Drawing:
    """JSD and mutual information per layer."""
    layers, scores = measures.layer_frame(records, experiment), measures.score_frame(records, experiment)
    caption = (
        "From the held-out selection frequencies, domains weighed equally. Points: "
        f"{text.seeds(layers['seed'].nunique())}, lines: their mean; paired intervals of the mean over layers are in "
        "the contrasts. Dashed: all domains route alike. The paper prints no such measure."
    )
    means = layers.groupby("arm", sort=False)["information"].mean()
    alt = (
        "Mutual information, mean over layers: "
        + "; ".join(f"{arm} {value:.3f} nats" for arm, value in means.items())
        + "."
    )
    figure = layer_figure(layers, scores["domain"].nunique(), _few(records, experiment))
    title = "Specialisation per layer"
    return Drawing("layers", experiment, "routing", title, caption, alt, (f"{experiment}-routing",), figure)


DRAWINGS = (heatmap_drawing, profile_drawing, score_drawing, layer_drawing)
