"""The figure of the training part: how long a step takes, for every contender and shape."""

from typing import Any

from matplotlib.figure import Figure

from moe.report import style


def training_figure(measured: dict[str, Any]) -> Figure:
    """A panel for each shape: milliseconds of a step, the spread over rounds, and the matrix products alone.

    Call it inside `style.context()`.
    """
    shapes = measured["shapes"]
    figure = Figure(figsize=(style.WIDTH, 2.1 * len(shapes) + 0.5))
    for axes, (name, shape) in zip(figure.subplots(len(shapes), squeeze=False)[:, 0], shapes.items(), strict=True):
        parts = shape["contenders"]
        medians = [part["ms"] for part in parts.values()]
        lower = [part["ms"] - min(part["ms"], *part["ms_by_round"]) for part in parts.values()]
        upper = [max(part["ms"], *part["ms_by_round"]) - part["ms"] for part in parts.values()]
        colours = [style.COLOURS[0] if contender.startswith("ours") else style.COLOURS[4] for contender in parts]
        axes.barh(
            list(parts), medians, xerr=[lower, upper], color=colours, height=0.62, error_kw={"capsize": 3, "lw": 1}
        )
        floor = shape["floors"]["floor"]["ms"]
        axes.axvline(floor, color=style.GREY, linestyle="--", linewidth=1.3, label="matrix products alone")
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.grid(axis="y", visible=False)
        model = shape["config"]["model"]
        axes.set_title(
            f"{name}: {model['num_layers']} layers of {model['hidden_size']}, {model['num_experts']} experts"
        )
    axes.set_xlabel("time per step, ms (whiskers: rounds)")
    style.legend_below(figure, axes)
    return figure
