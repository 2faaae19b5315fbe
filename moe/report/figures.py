"""Figures of loss, training and time, each a function of the data frames of one experiment; and the writer of all.

`write_figures` writes `<experiment>-<figure>.svg` and `.png` and `index.json`, from which the page is made.
"""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from moe.provenance import complete_folder, write_json
from moe.report import claims, measures, paper, routing_figures, text
from moe.report.estimator_figure import estimator_drawing
from moe.report.records import Records
from moe.report.style import GREY, WIDTH, ArmStyle, Drawing, arm_styles, context, legend_below, log2_axis, save


def window_figure(
    runs: pd.DataFrame,
    curves: list[list[tuple[int, str]]],
    others: dict[str, int],
    reference: str,
    styles: dict[str, ArmStyle],
) -> Figure:
    """Held-out loss against the balance window; beside it the paper's curve.

    `curves`: (window, arm) of the arms that differ in their window alone; `others`: the remaining arms and the window
    that they are drawn at.
    """
    figure = Figure(figsize=(WIDTH, 6.2))
    ours, theirs = figure.subplots(2, 1, height_ratios=(3, 2))
    placed = {arm: float(window) for curve in curves for window, arm in curve}
    # Beside the curve, not on it.
    placed |= {arm: window * 1.25 ** (1 + i) for i, (arm, window) in enumerate(others.items())}
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
    differences = measures.arm_differences(runs, "heldout_nats", [(arm, reference) for arm in placed])
    for (arm, x), difference in zip(placed.items(), differences, strict=True):
        style = styles[arm]
        difference = None if arm == reference else difference
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
    ours.legend(loc="best")

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


def difference_figure(runs: pd.DataFrame, reference: str, styles: dict[str, ArmStyle]) -> Figure:
    """Paired difference of the held-out loss of every arm to the reference arm: one point a seed, mean and interval."""
    arms = list(styles)
    figure = Figure(figsize=(WIDTH, 1.6 + 0.42 * len(arms)))
    axes = figure.subplots()
    losses = runs.pivot(index="seed", columns="arm", values="heldout_nats")
    axes.axvline(0, color=GREY, linestyle="--", linewidth=1.1)
    differences = measures.arm_differences(runs, "heldout_nats", [(arm, reference) for arm in arms])
    for y, (arm, difference) in enumerate(zip(arms, differences, strict=True)):
        style = styles[arm]
        if arm == reference:
            axes.plot(0, y, color=style.colour, marker=style.marker, markersize=8, linestyle="")
            continue
        seeds = (losses[arm] - losses[reference]).dropna()
        axes.plot(seeds, [y] * len(seeds), color="#a8a8a8", marker=".", linestyle="", markersize=7)
        if difference:
            half = difference.high - difference.mean if difference.high is not None else None
            axes.errorbar(
                difference.mean, y, xerr=half, color=style.colour, marker=style.marker, markersize=8, linestyle="",
                capsize=4, linewidth=1.8,
            )  # fmt: skip
    axes.set_yticks(range(len(arms)), [text.wrapped(f"{arm} (reference)" if arm == reference else arm) for arm in arms])
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_ylabel("arm")
    axes.set_xlabel("difference of held-out loss (nats/token)")
    axes.locator_params(axis="x", nbins=6)
    return figure


def training_figure(curves: pd.DataFrame, reference: str, styles: dict[str, ArmStyle]) -> Figure:
    """LM loss, its paired difference to the reference arm, balance loss and MaxVio over the steps; band: lowest to
    highest seed."""
    figure = Figure(figsize=(WIDTH, 8.4))
    panels = figure.subplots(4, 1, sharex=True)
    base = curves[curves["arm"] == reference].set_index(["seed", "step"])["lm_loss"]
    matched = base.reindex(pd.MultiIndex.from_frame(curves[["seed", "step"]])).to_numpy()
    curves = curves.assign(lm_difference=curves["lm_loss"] - matched)
    late = curves[curves["step"] >= 0.1 * curves["step"].max()]
    plots = (
        ("lm_loss", "LM loss, without balance terms", "nats/token", None),
        ("lm_difference", f"LM loss minus that of “{reference}”", "nats/token", 0),
        ("balance_0", "Balance loss over the arm's own window", "1 = balanced", 1),
        ("max_vio_global", "MaxVio over the global batch", "0 = balanced", 0),
    )
    for axes, (column, title, label, level) in zip(panels, plots, strict=True):
        for arm, style in styles.items():
            rows = curves[curves["arm"] == arm]
            if column not in rows or rows[column].isna().all():
                continue
            steps = rows.groupby("step")[column]
            middle = steps.mean()
            axes.plot(
                middle.index, middle, color=style.colour, linestyle=style.line, linewidth=1.4, label=text.wrapped(arm)
            )
            axes.fill_between(middle.index, steps.min(), steps.max(), color=style.colour, alpha=0.15, linewidth=0)
        if level is not None:
            axes.axhline(level, color=GREY, linestyle="--", linewidth=1.1)
        if column in late and late[column].notna().any():
            # The first steps would flatten the rest; they are in the data file.
            ends = [late[column].min(), late[column].max(), *([] if level is None else [level])]
            margin = 0.05 * (max(ends) - min(ends)) + 1e-3
            axes.set_ylim(min(ends) - margin, max(ends) + margin)
        axes.set_title(text.wrapped(title, 48))
        axes.set_ylabel(label)
    panels[-1].set_xlabel("optimizer step")
    figure.align_ylabels()
    legend_below(figure, panels[0])
    return figure


def latency_figure(timing: pd.DataFrame, steps: pd.DataFrame, styles: dict[str, ArmStyle]) -> Figure:
    """Median training step, one tick a repetition, and median decode time, its whisker up to the 95th percentile."""
    arms = list(styles)
    figure = Figure(figsize=(WIDTH, 2.4 + 0.75 * len(arms)))
    train, decode = figure.subplots(2, 1, height_ratios=(2, 3))
    for y, arm in enumerate(arms):
        colour = styles[arm].colour
        milliseconds = 1e3 * steps.loc[steps["arm"] == arm, "seconds"]
        train.barh(y, milliseconds.median(), 0.6, color=colour)
        train.plot(milliseconds, [y] * len(milliseconds), color="#222222", marker="|", linestyle="", markeredgewidth=1)
        medians = timing[timing["arm"] == arm].median(numeric_only=True)
        looks = {"learned": {"color": colour}, "balanced": {"color": "white", "edgecolor": colour, "hatch": "////"}}
        for shift, (routing, look) in zip((-0.19, 0.19), looks.items(), strict=True):
            middle, high = (medians[f"decode_{routing}_{level}_ms"] for level in ("p50", "p95"))
            label = None if y else {"learned": "learned routing", "balanced": "forced-balanced routing"}[routing]
            decode.barh(y + shift, middle, 0.36, label=label, **look)
            decode.errorbar(middle, y + shift, xerr=[[0], [high - middle]], color="#222222", capsize=2.5, linewidth=1)
    for axes in (train, decode):
        axes.set_yticks(range(len(arms)), [text.wrapped(arm) for arm in arms])
        axes.set_ylim(len(arms) - 0.4, -0.6)
        axes.set_ylabel("arm")
        axes.grid(axis="y", visible=False)
    train.set_xlabel("training step (ms)")
    train.set_title("Training step: median, ticks: repetitions")
    decode.set_xlabel("time per decoded position (ms)")
    decode.set_title("Decoding: median, whisker: 95th percentile")
    legend_below(figure, decode)
    return figure


def _shown(records: Records, experiment: str) -> tuple[dict[str, ArmStyle], str]:
    """Styles of the arms that a figure has room for, and what its caption says where that is not all of them."""
    styles, arms = arm_styles(measures.shown_arms(records, experiment)), records.arms(experiment)
    chosen = "the reference, those of the contrasts and the lowest held-out losses"
    return styles, f"Shown are {len(styles)} of {len(arms)} arms: {chosen}. " * (len(styles) < len(arms))


def headline_drawing(records: Records, experiment: str) -> Drawing:
    """The result of an experiment in one picture: a curve where the arms differ in their window, else differences."""
    runs, reference = measures.run_frame(records, experiment), records.reference(experiment)
    styles, room = _shown(records, experiment)
    seeds = runs["seed"].nunique()
    curves = [[place for place in curve if place[1] in styles] for curve in measures.window_groups(records, experiment)]
    curves = [curve for curve in curves if curve]
    how = (
        f"Bars: 95 % t interval of the difference to “{reference}”, paired over {text.seeds(seeds)}, around the mean"
        if seeds > 1
        else "One seed: no interval"
    )
    answers = text.paper_note(records.table.experiments[experiment].paper)
    said = claims.contrast_sentences(records, experiment)[: measures.MOST_ARMS]
    alt = " ".join(said) or "Held-out loss of one arm."
    title = "Held-out loss and balance window" if curves else "Held-out loss of every arm"
    if curves:
        drawn = {arm for curve in curves for _, arm in curve}
        others = {}
        for arm in styles:
            run = next(iter(records.arms(experiment)[arm].values()))
            if arm not in drawn and run.windows:
                heaviest = max(zip(run.config.balance.terms, run.windows, strict=True), key=lambda pair: pair[0].weight)
                others[arm] = heaviest[1]
        figure = window_figure(runs, curves, others, reference, styles)
        caption = (
            "Held-out loss, mean over domains, against the sequences that a balance loss pools its counts over. Grey: "
            f"one line a seed. {how}. {room}Arms with several losses stand beside the window of their heaviest. Lower "
            f"panel: the printed points of the paper's curve, one run each. {answers}"
        )
    else:
        figure = difference_figure(runs, reference, styles)
        caption = (
            f"Held-out loss, mean over domains, minus that of “{reference}”. Grey: one point a seed. {how}. "
            f"{room}{answers}"
        )
    data = (f"{experiment}-runs", "paper") if curves else (f"{experiment}-runs",)
    return Drawing("headline", experiment, "experiment", title, caption, alt, data, figure)


def training_drawing(records: Records, experiment: str) -> Drawing:
    """Training curves of every arm."""
    curves = measures.curve_frame(records, experiment)
    styles, room = _shown(records, experiment)
    curves = curves[curves["arm"].isin(list(styles))]
    caption = (
        f"Mean over seeds, band from the lowest to the highest of {text.seeds(curves['seed'].nunique())}, no interval; "
        "the axes fit the last 90 % of the steps. Balance loss: the first term of each arm, mean over layers, each "
        f"over its own window, so levels of different windows are not comparable; MaxVio is. {room}"
        f"{text.paper_note('Figure 3')}"
    )
    last = curves[curves["step"] == curves["step"].max()].groupby("arm", sort=False)["lm_loss"].mean()
    alt = "LM loss at the last step: " + "; ".join(f"{arm} {text.number(value)}" for arm, value in last.items()) + "."
    figure = training_figure(curves, records.reference(experiment), styles)
    return Drawing(
        "training", experiment, "experiment", "Training curves", caption, alt, (f"{experiment}-curves",), figure
    )


def latency_drawing(records: Records, experiment: str) -> Drawing | None:
    """Step time and decode latency, or None where no run was timed."""
    timing = measures.latency_frame(records, experiment)
    timing = timing.dropna(subset=["train_step_ms"])
    if timing.empty:
        return None
    styles, room = _shown(records, experiment)
    timed = set(timing["arm"])
    styles = {arm: style for arm, style in styles.items() if arm in timed}
    timing = timing[timing["arm"].isin(list(styles))]
    caption = (
        f"Medians of {text.seeds(timing['seed'].nunique())} per arm, warm-up excluded; intervals of the ratios are in "
        f"the table. Forced-balanced: the same model with equal loads, what perfect balance would give. {room}"
        f"{text.paper_note('Table 5')}"
    )
    medians = timing.groupby("arm", sort=False)["train_step_ms"].median()
    alt = (
        "Median training step: "
        + "; ".join(f"{arm} {text.number(value, 1)} ms" for arm, value in medians.items())
        + "."
    )
    figure = latency_figure(timing, measures.step_frame(records, experiment), styles)
    return Drawing(
        "latency",
        experiment,
        "latency",
        "Step time and decode latency",
        caption,
        alt,
        (f"{experiment}-timing", f"{experiment}-steps"),
        figure,
    )


def write_figures(records: Path, runs: Path, out: Path) -> None:
    """Draw every figure of every experiment, and that of the estimators, below `out`, which is replaced as a whole;
    `records` is `runs.json`.

    Equal records give equal bytes. Raises `ConfigError` for a record that is missing or damaged.
    """
    book, entries = Records(records, runs), []
    makers = (headline_drawing, training_drawing, *routing_figures.DRAWINGS, latency_drawing)
    with complete_folder(out) as folder, context():
        drawings = (make(book, experiment) for experiment in book.table.experiments for make in makers)
        for drawing in filter(None, (*drawings, estimator_drawing(book))):
            save(drawing, folder)
            names = ("name", "file", "experiment", "section", "title", "caption", "alt", "data")
            entries.append({name: getattr(drawing, name) for name in names})
        write_json(folder / "index.json", entries)
