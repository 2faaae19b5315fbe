"""Figures of training and time, each a function of the data frames of one experiment; and the writer of all.

`write_figures` writes `<experiment>-<figure>.svg` and `.png` and `index.json`, from which the page is made.
"""

from itertools import chain
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from moe.provenance import complete_folder, write_json
from moe.report import measures, routing_figures, text
from moe.report.drop_figure import drop_drawing
from moe.report.estimator_figure import estimator_drawing
from moe.report.loss_figures import forest_drawing, headline_drawing, shown_styles
from moe.report.records import Records
from moe.report.straggler_figure import straggler_drawing
from moe.report.style import GREY, WIDTH, ArmStyle, Drawing, context, legend_below, save


def training_figure(
    curves: pd.DataFrame, references: dict[str, str], reference_name: str, styles: dict[str, ArmStyle]
) -> Figure:
    """LM loss, its paired difference to the reference arms, which are called `reference_name`, balance loss and MaxVio
    over the steps; band: lowest to highest seed."""
    figure = Figure(figsize=(WIDTH, 8.4))
    panels = figure.subplots(4, 1, sharex=True)
    keys = ["arm", "seed", "step"]
    against = pd.MultiIndex.from_frame(curves[keys].assign(arm=curves["arm"].map(references)))
    matched = curves.set_index(keys)["lm_loss"].reindex(against).to_numpy()
    curves = curves.assign(lm_difference=curves["lm_loss"] - matched)
    curves = curves[curves["arm"].isin(list(styles))]
    late = curves[curves["step"] >= 0.1 * curves["step"].max()]
    plots = (
        ("lm_loss", "LM loss, without balance terms", "nats/token", None),
        ("lm_difference", f"LM loss minus that of {reference_name}", "nats/token", 0),
        ("balance", "Balance loss over the arm's own window", "1 = balanced", 1),
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


def training_drawing(records: Records, experiment: str) -> Drawing:
    """Training curves of every arm."""
    curves = measures.curve_frame(records, experiment)
    styles, room = shown_styles(records, experiment)
    shown = curves[curves["arm"].isin(list(styles))]
    caption = (
        f"Mean over seeds, band from the lowest to the highest of {text.seeds(shown['seed'].nunique())}, no interval; "
        "the axes fit the last 90 % of the steps. Balance loss: the first term of the arm that acts in a step, mean "
        "over layers, each over its own window, so levels of different windows are not comparable, nor those of one "
        f"arm before and after a switch; MaxVio is. {room}"
        f"{text.paper_note('Figure 3')}"
    )
    last = shown[shown["step"] == shown["step"].max()].groupby("arm", sort=False)["lm_loss"].mean()
    alt = "LM loss at the last step: " + "; ".join(f"{arm} {text.number(value)}" for arm, value in last.items()) + "."
    name = records.reference_name(experiment)
    figure = training_figure(curves, records.references(experiment), name, styles)
    return Drawing(
        "training", experiment, "experiment", "Training curves", caption, alt, (f"{experiment}-curves",), figure
    )


def latency_drawing(records: Records, experiment: str) -> Drawing | None:
    """Step time and decode latency, or None where no run was timed."""
    timing = measures.latency_frame(records, experiment)
    timing = timing.dropna(subset=["train_step_ms"])
    if timing.empty:
        return None
    styles, room = shown_styles(records, experiment)
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
    makers = (headline_drawing, forest_drawing, training_drawing, *routing_figures.DRAWINGS)
    makers = (*makers, drop_drawing, latency_drawing, straggler_drawing)
    with complete_folder(out) as folder, context():
        drawings = (make(book, experiment) for experiment in book.table.experiments for make in makers)
        for drawing in filter(None, chain(drawings, map(estimator_drawing, [book]))):
            save(drawing, folder)
            names = ("name", "file", "experiment", "section", "title", "caption", "alt", "data")
            entries.append({name: getattr(drawing, name) for name in names})
        write_json(folder / "index.json", entries)
