"""Figures of the held-out loss: its curve over the balance window, and the difference of every arm to its reference."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moe.report import claims, measures, paper, paper_effects, text
from moe.report.records import Records
from moe.report.style import GREY, WIDTH, ArmStyle, Drawing, arm_styles, log2_axis

CURVE_WINDOWS = 3
"""Windows that a curve needs: two are told better as a difference."""
MOST_INSIDE = 5
"""Arms whose legend has room inside the axes."""


def window_figure(
    runs: pd.DataFrame,
    curves: list[list[tuple[int, str]]],
    others: dict[str, int],
    references: dict[str, str],
    styles: dict[str, ArmStyle],
) -> Figure:
    """Held-out loss against the balance window; beside it the paper's curve.

    `curves`: (window, arm) of the arms that differ in their window alone; `others`: the remaining arms and the window
    that they are drawn at.
    """
    placed = {arm: float(window) for curve in curves for window, arm in curve}
    # Beside the curve, not on it.
    placed |= {arm: window * 1.25 ** (1 + i) for i, (arm, window) in enumerate(others.items())}
    # One line of the legend for two arms and one for the seeds, where it is below the axes.
    figure = Figure(figsize=(WIDTH, 6.2 + (0.13 * len(placed) + 0.3) * (len(placed) > MOST_INSIDE)))
    ours, theirs = figure.subplots(2, 1, height_ratios=(3, 2))
    losses = runs.pivot(index="seed", columns="arm", values="heldout_nats")
    means = losses.mean()
    for i, curve in enumerate(curves):
        arms = [arm for _, arm in curve]
        x = [placed[arm] for arm in arms]
        for seed, row in losses[arms].iterrows():
            label = "one seed" if i == 0 and seed == losses.index[0] else None
            ours.plot(
                x, row.to_numpy(), color="#b8b8b8", linewidth=0.9, marker=".", markersize=5, label=label, zorder=2
            )
        ours.plot(x, means[arms].to_numpy(), color="#444444", linewidth=1.6, zorder=3)
    differences = measures.arm_differences(runs, "heldout_nats", [(arm, references[arm]) for arm in placed])
    for (arm, x), difference in zip(placed.items(), differences, strict=True):
        style = styles[arm]
        difference = None if arm == references[arm] else difference
        half = difference.high - difference.mean if difference and difference.high is not None else None
        if arm in others:
            ours.plot([x] * len(losses), losses[arm], color="#b8b8b8", linestyle="", marker=".", markersize=5, zorder=2)
        ours.errorbar(
            x, means[arm], yerr=half, color=style.colour, marker=style.marker, markersize=8, linestyle="",
            capsize=4, linewidth=1.8, label=text.wrapped(arm), zorder=4,
        )  # fmt: skip
    log2_axis(ours, sorted({window for curve in curves for window, _ in curve} | set(others.values())))
    ours.set_ylabel("held-out loss (nats/token)")
    ours.set_xlabel("Balance BSZ (sequences)")
    seeds = len(losses)
    ours.set_title(
        f"Measured: mean of {seeds} seeds, paired 95 % interval" if seeds > 1 else "Measured: one seed, no interval"
    )
    if len(placed) <= MOST_INSIDE:
        ours.legend(loc="best")
    else:
        ours.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)

    quoted = paper.window_curve()
    plain, buffer = quoted[~quoted["buffer"]], quoted[quoted["buffer"]]
    theirs.plot(plain["window"], plain["perplexity"], color=GREY, marker="o", label="LBL, synchronised above 4")
    theirs.plot(
        buffer["window"],
        buffer["perplexity"],
        color=GREY,
        marker="s",
        fillstyle="none",
        linestyle="",
        markersize=9,
        label="LBL + buffer",
    )
    log2_axis(theirs, [2, 4, 8, 16, 32, 64, 128, 256, 512])
    theirs.set_ylabel("Avg PPL")
    theirs.set_xlabel("Balance BSZ (sequences)")
    theirs.set_title("Quoted: the paper's Figure 2, 3.4B, one run each")
    theirs.legend(loc="upper right")
    return figure


Row = tuple[str, str, str, ArmStyle]  # label, first arm, second arm, style


def forest_figure(
    runs: pd.DataFrame,
    references: dict[str, str],
    styles: dict[str, ArmStyle],
    others: list[tuple[str, str]],
    quoted: pd.DataFrame,
) -> Figure:
    """Paired differences of the held-out loss on one axis, one point a seed, mean and interval: every arm minus its
    reference, the contrasts `others`, then the effects that the paper prints."""
    labels = {arm: f"{arm} (reference)" if arm == references[arm] else arm for arm in styles}
    every: list[Row] = [(text.wrapped(labels[arm]), arm, references[arm], styles[arm]) for arm in styles]
    panels = [("Measured: arm minus reference", every)]
    if others:
        rows = [(f"{text.wrapped(a)}\n− {text.wrapped(b)}", a, b, styles[a]) for a, b in others]
        panels.append(("Measured: other contrasts", rows))
    lines = [len(label.splitlines()) for _, rows in panels for label, *_ in rows]
    heights = [len(rows) + 1.0 for _, rows in panels] + [0.75 * len(quoted) + 1] * (len(quoted) > 0)
    figure = Figure(figsize=(WIDTH, 1 + 0.16 * (sum(lines) - len(lines)) + 0.4 * sum(heights)))
    drawn = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (title, rows) in zip(drawn, panels, strict=False):
        _difference_rows(axes, runs, rows)
        axes.set_title(title)
        axes.set_ylabel("arm" if title == panels[0][0] else "first − second")
    if len(quoted):
        drawn[-1].plot(quoted["nats"], range(len(quoted)), color=GREY, marker="d", linestyle="", markersize=6)
        names = [f"{row.comparison} ({row.model.split('-')[0]}, {row.tokens})" for row in quoted.itertuples()]
        drawn[-1].set_yticks(range(len(quoted)), names, fontsize=8)
        drawn[-1].set_ylim(len(quoted) - 0.5, -0.5)
        drawn[-1].set_title(text.wrapped(f"Quoted: the paper's {', '.join(quoted['item'].unique())}, one run each", 34))
    for axes in drawn:
        axes.axvline(0, color=GREY, linestyle="--", linewidth=1.1, zorder=1)
    drawn[-1].set_xlabel("difference of held-out loss (nats/token)")
    drawn[-1].locator_params(axis="x", nbins=5)
    return figure


def _difference_rows(axes: Axes, runs: pd.DataFrame, rows: list[Row]) -> None:
    """One row for each pair of arms, from above."""
    losses = runs.pivot(index="seed", columns="arm", values="heldout_nats")
    differences = measures.arm_differences(runs, "heldout_nats", [(first, second) for _, first, second, _ in rows])
    for y, ((_, first, second, style), difference) in enumerate(zip(rows, differences, strict=True)):
        if first == second:
            axes.plot(0, y, color=style.colour, marker=style.marker, markersize=8, linestyle="")
        elif difference:
            seeds = (losses[first] - losses[second]).dropna()
            half = difference.high - difference.mean if difference.high is not None else None
            axes.plot(seeds, [y] * len(seeds), color="#a8a8a8", marker=".", linestyle="", markersize=7)
            axes.errorbar(
                difference.mean, y, xerr=half, color=style.colour, marker=style.marker, markersize=8, linestyle="",
                capsize=4, linewidth=1.8,
            )  # fmt: skip
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)


def shown_styles(records: Records, experiment: str) -> tuple[dict[str, ArmStyle], str]:
    """Styles of the arms that a figure has room for, and what its caption says where that is not all of them."""
    styles, arms = arm_styles(measures.shown_arms(records, experiment)), records.arms(experiment)
    chosen = "the reference, those of the contrasts and the lowest held-out losses"
    return styles, f"Shown are {len(styles)} of {len(arms)} arms: {chosen}. " * (len(styles) < len(arms))


def headline_drawing(records: Records, experiment: str) -> Drawing | None:
    """The result of an experiment in one picture: a curve where the arms differ in their window, else differences."""
    styles, room = shown_styles(records, experiment)
    curves = _curves(records, experiment, styles)
    if not curves:
        return _forest(records, experiment, "headline")
    runs, references = measures.run_frame(records, experiment), records.references(experiment)
    others = {}
    for arm in styles:
        run = records.run(experiment, arm)
        if len(run.windows) > 1:
            heaviest = max(zip(run.config.balance.terms, run.windows, strict=True), key=lambda pair: pair[0].weight)
            others[arm] = heaviest[1]
    caption = (
        "Held-out loss, mean over domains, against the sequences that a balance loss pools its counts over. Grey: "
        f"one line a seed. {_bars(runs, f'difference to {records.reference_name(experiment)}')}, around the mean. "
        f"{room}Arms with several losses stand beside the window of their heaviest; the other figure has every "
        "arm. Lower panel: the printed points of the paper's curve, one run each. "
        f"{text.paper_note(records.table.experiments[experiment].paper)}"
    )
    title, data = "Held-out loss and balance window", (f"{experiment}-runs", "paper")
    figure = window_figure(runs, curves, others, references, styles)
    return Drawing("headline", experiment, "experiment", title, caption, _alt(records, experiment), data, figure)


def forest_drawing(records: Records, experiment: str) -> Drawing | None:
    """The differences to the reference arms, where the headline is the curve over the window."""
    styles, _ = shown_styles(records, experiment)
    return _forest(records, experiment, "forest") if _curves(records, experiment, styles) else None


def _curves(records: Records, experiment: str, styles: dict[str, ArmStyle]) -> list[list[tuple[int, str]]]:
    """Curves over the window, of the arms that are shown, that are worth a figure of their own."""
    curves = [[place for place in curve if place[1] in styles] for curve in measures.window_groups(records, experiment)]
    return [curve for curve in curves if len(curve) >= CURVE_WINDOWS]


def _forest(records: Records, experiment: str, name: str) -> Drawing | None:
    """Every arm's difference to its reference; None where it is the only arm."""
    runs, references = measures.run_frame(records, experiment), records.references(experiment)
    styles, room = shown_styles(records, experiment)
    if len(styles) == 1:
        return None
    paper_items = records.table.experiments[experiment].paper
    quoted = paper_effects.effects(paper_items)
    pairs = [(a, b) for a, b in records.contrasts(experiment) if b != references[a] and {a, b} <= set(styles)]
    caption = (
        f"Held-out loss, mean over domains, minus that of {records.reference_name(experiment)}"
        + "; below it the contrasts with another second arm" * (len(pairs) > 0)
        + ". Grey: one point a seed. "
        f"{_bars(runs, 'difference')}, not adjusted for their number. {room}"
        + "Lowest panel: ln of the ratio of two Avg PPL that the paper prints, on the same axis, without error bars. "
        * (len(quoted) > 0)
        + text.paper_note(paper_items)
    )
    data = (f"{experiment}-runs", "paper-effects") if len(quoted) else (f"{experiment}-runs",)
    title = "Held-out loss of every arm, against the reference"
    figure = forest_figure(runs, references, styles, pairs, quoted)
    return Drawing(name, experiment, "experiment", title, caption, _alt(records, experiment), data, figure)


def _bars(runs: pd.DataFrame, difference: str) -> str:
    seeds = runs["seed"].nunique()
    if seeds == 1:
        return "One seed: no interval"
    return f"Bars: 95 % t interval of the {difference}, paired over {text.seeds(seeds)}"


def _alt(records: Records, experiment: str) -> str:
    return " ".join(claims.contrast_sentences(records, experiment)[: measures.MOST_ARMS])
