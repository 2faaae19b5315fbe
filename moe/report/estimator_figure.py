"""Figure of the estimators of f: how far each is from the exact gradient, and what exact counts cost."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from moe.report import estimator_measures as estimators
from moe.report.estimator_advice import AFFORDABLE, advice
from moe.report.record_types import EstimatorsRecord
from moe.report.records import Records
from moe.report.style import GREY, WIDTH, Drawing, arm_styles, legend_below, log2_axis
from moe.report.table import ratio_columns


def estimator_figure(record: EstimatorsRecord) -> Figure:
    """Relative error of every estimator against the passes, and below it the cost of exact counts."""
    figure = Figure(figsize=(WIDTH, 6.6))
    error, cost = figure.subplots(2, 1, height_ratios=(3, 2), sharex=True)
    passes = [row.passes for row in record.gradients if row.passes] + [row.passes for row in record.step_seconds]
    log2_axis(cost, sorted(set(passes)))
    _draw_errors(error, record, max(passes))
    _draw_costs(cost, record)
    cost.set_xlabel("accumulation passes of an optimizer step")
    figure.align_ylabels()
    legend_below(figure, error, columns=3)
    return figure


def _draw_errors(axes: Axes, record: EstimatorsRecord, most_passes: int) -> None:
    errors = estimators.error_frame(record).reset_index()
    # A logarithmic axis has no place for 0.
    errors = errors[errors["relative_error_low"] > 0]
    styles = arm_styles(list(dict.fromkeys(row.estimator for row in record.gradients)))
    beside = 0
    for name, rows in errors.groupby("estimator", sort=False):
        style = styles[str(name)]
        x, line = rows["passes"].tolist(), "-"
        if x == [estimators.ANY]:
            # Its line crosses all passes, its whisker stands beside them: no number of passes belongs to it.
            beside += 1
            x, line = [most_passes * 2 ** (0.4 * beside + 0.2)], (0, (3, 1.5))
            axes.axhline(rows["relative_error"].iloc[0], color=style.colour, linestyle=line, linewidth=1.2, alpha=0.8)
        mean = rows["relative_error"]
        axes.errorbar(
            x, mean, yerr=[mean - rows["relative_error_low"], rows["relative_error_high"] - mean], label=name,
            color=style.colour, linestyle=line, marker=style.marker, capsize=3, elinewidth=1.1, zorder=3,
        )  # fmt: skip
    axes.set_yscale("log")
    if len(errors):
        _plain_log_axis(axes, errors["relative_error_low"].min(), errors["relative_error_high"].max())
    axes.set_ylabel("relative error, against exact")
    axes.set_title("Balance gradient: mean and range over steps")


def _draw_costs(axes: Axes, record: EstimatorsRecord) -> None:
    steps = estimators.step_frame(record)
    axes.axhline(0, color=GREY, linestyle="--", linewidth=1.1)
    axes.axhline(100 * AFFORDABLE, color=GREY, linestyle=":", linewidth=1.3)
    axes.annotate(
        f"below {100 * AFFORDABLE:.0f} % exact is advised", (1, 100 * AFFORDABLE), xycoords=axes.get_yaxis_transform(),
        xytext=(0, 2), textcoords="offset points", ha="right", color=GREY, fontsize=9,
    )  # fmt: skip
    for passes in sorted(set(steps["passes"])):
        logarithm = estimators.cost(record, "exact", passes)
        if logarithm is None:
            continue
        seconds = steps[steps["passes"] == passes].pivot(index="repetition", columns="estimator", values="seconds")
        each = 100 * (seconds["exact"] / seconds["prefix"] - 1).dropna()
        # Left of the bar, which would hide them.
        axes.plot([passes * 2**-0.15] * len(each), each, color="#a8a8a8", marker=".", linestyle="", markersize=5)
        mean, low, high = (100 * (ratio - 1) for ratio in ratio_columns(logarithm).values())
        bars = [[mean - low], [high - mean]] if logarithm.n > 1 else None
        axes.errorbar(passes, mean, yerr=bars, color="#222222", marker="o", capsize=4, linewidth=1.8, zorder=3)
    axes.margins(y=0.15)
    axes.set_ylabel("step time above prefix (%)")
    several = steps["repetition"].nunique() > 1
    axes.set_title(f"Cost of exact counts: {'mean, 95 % interval' if several else 'one repetition, no interval'}")


def _plain_log_axis(axes: Axes, low: float, high: float) -> None:
    """Logarithmic y axis from the 1-2-5 step below `low` to the one above `high`, labelled with plain numbers; over
    more than three decades the steps are decades."""
    digits = (1, 2, 5) if high < 1000 * low else (1,)
    steps = [digit * 10.0**power for power in range(-18, 6) for digit in digits]
    first = max((i for i, step in enumerate(steps) if step < low), default=0)
    last = min((i for i, step in enumerate(steps) if step > high), default=len(steps) - 1)
    axes.yaxis.set_major_locator(FixedLocator(steps[first : last + 1]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(steps[first], steps[last])


def estimator_drawing(records: Records) -> Drawing | None:
    """The figure with what is said of it, or None where no estimator was measured."""
    record = records.estimators
    if record is None:
        return None
    gradients, steps = estimators.gradient_frame(record), estimators.step_frame(record)
    caption = (
        "Above: |g − g_exact| / |g_exact| of the balance gradient with respect to the router's weight, mean over "
        f"{gradients['layer'].nunique()} layers and {gradients['step'].nunique()} steps of the run {record.run}; "
        "whiskers: lowest to highest step, a spread within one run and no confidence interval. Dashed: estimators "
        "whose f does not depend on the passes, their whiskers beside them. Below: step time with exact counts over "
        f"that of “prefix”, geometric mean of {steps['repetition'].nunique()} paired repetitions (grey) with its 95 % "
        "t interval, on this machine. The paper prints no such value."
    )
    data = ("estimators", "estimators_gradients", "estimators_steps")
    title, alt = "What estimators of f lose and exact counts cost", " ".join(advice(record))
    return Drawing("estimators", "", "estimators", title, caption, alt, data, estimator_figure(record))
