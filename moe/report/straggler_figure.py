"""Figure of step time against the number of expert-parallel devices."""

import pandas as pd
from matplotlib.figure import Figure

from moe.report import measures, text
from moe.report import straggler_measures as stragglers
from moe.report.records import Records
from moe.report.straggler_tables import model_note
from moe.report.style import GREY, WIDTH, ArmStyle, Drawing, arm_styles, legend_below, log2_axis


def straggler_figure(frame: pd.DataFrame, styles: dict[str, ArmStyle]) -> Figure:
    """Step time and time of experts and all-to-all alone, both relative to perfect balance; line: mean over seeds,
    points: seeds."""
    figure = Figure(figsize=(WIDTH, 6.4))
    panels = figure.subplots(2, 1, sharex=True)
    titles = {"ratio": "Whole step", "layer_ratio": "Experts and all-to-all alone"}
    for axes, (column, title) in zip(panels, titles.items(), strict=True):
        axes.axhline(1, color=GREY, linestyle="--", linewidth=1.1)
        random = frame[frame["arm"] == stragglers.RANDOM].groupby("devices")[column].mean()
        axes.plot(random.index, random, color=GREY, linestyle=":", label=stragglers.RANDOM)
        for arm, style in styles.items():
            rows = frame[frame["arm"] == arm]
            mean = rows.groupby("devices")[column].mean()
            axes.plot(
                rows["devices"], rows[column], color=style.colour, marker=".", markersize=4, alpha=0.4, linestyle=""
            )
            axes.plot(
                mean.index, mean, color=style.colour, linestyle=style.line, marker=style.marker, markersize=4.5,
                label=text.wrapped(arm),
            )  # fmt: skip
        axes.set_title(title)
        axes.set_ylabel("time / balanced time")
    log2_axis(panels[-1], list(stragglers.DEVICES))
    panels[-1].set_xlabel("devices")
    legend_below(figure, panels[0])
    return figure


def straggler_drawing(records: Records, experiment: str) -> Drawing | None:
    """The figure with what is said of it, or None where no run of the experiment has recorded its choices."""
    frame = stragglers.straggler_frame(records, experiment)
    if frame.empty:
        return None
    frame = frame[(frame["preset"] == stragglers.PRESET) & (frame["capacity_factor"] == 0)]
    known = set(frame["arm"])
    styles = {arm: s for arm, s in arm_styles(measures.shown_arms(records, experiment)).items() if arm in known}
    apart = stragglers.all_apart(records, experiment)
    caption = (
        f"Step time on {stragglers.PRESET} relative to perfect balance, dropless: every device has a micro-batch of "
        "its own, and a group of devices shares the experts, so that the load that counts is that of all micro-batches "
        "of a group and not of one. Points: seeds, lines: their mean; intervals of the differences are in the table. "
        f"{model_note(records, experiment)} {stragglers.check_sentence(records)} {text.paper_note('Table 5')}"
    )
    far = frame[frame["devices"] == apart].groupby("arm", sort=False)["ratio"].mean()
    alt = f"Step time on {apart} devices relative to balance: "
    alt += "; ".join(f"{arm} {text.number(value)}" for arm, value in far.items()) + "."
    title, data = "Step time under expert parallelism", (f"{experiment}-stragglers",)
    return Drawing("stragglers", experiment, "latency", title, caption, alt, data, straggler_figure(frame, styles))
