"""How every figure looks: fonts, colours, and files whose bytes depend on the data alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

WIDTH = 5.0
"""Inches: on a 390-pixel phone the text of a figure of this width is still read without zooming."""

# Okabe and Ito's palette, which stays apart under the common kinds of colour blindness; yellow is too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", (0, (5, 1.5)), (0, (1, 1)))
GREY = "#767676"
COLOUR_MAP = "PuOr_r"

SETTINGS = {
    "font.family": "sans-serif",
    # The first comes with matplotlib, so layouts agree everywhere; the others show SVG text where it is absent.
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 6,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    # Labels are the user's words: a dollar sign is no formula.
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "moe",
    "path.simplify": False,
}


@dataclass(frozen=True)
class ArmStyle:
    """Colour, marker and line of one arm, the same in every figure of its experiment that shows the same arms."""

    colour: str
    marker: str
    line: str | tuple[int, tuple[float, ...]]


def arm_styles(arms: list[str]) -> dict[str, ArmStyle]:
    """One style for each arm, in the order of the experiment; the line changes when the colours are used up."""
    size = len(COLOURS)
    return {
        arm: ArmStyle(COLOURS[i % size], MARKERS[i % size], LINES[i // size % len(LINES)]) for i, arm in enumerate(arms)
    }


@dataclass(frozen=True)
class Drawing:
    """A figure with all that the page says of it."""

    name: str
    experiment: str
    section: str
    title: str
    caption: str
    alt: str
    data: tuple[str, ...]
    """Data files, without suffix, that hold everything it shows."""
    figure: Figure

    @property
    def file(self) -> str:
        """Name of its files, without suffix."""
        return f"{self.experiment}-{self.name}" if self.experiment else self.name


def save(drawing: Drawing, folder: Path) -> None:
    """Write `<file>.svg`, with its text as text, and `<file>.png`; no date or version goes into either."""
    drawing.figure.savefig(folder / f"{drawing.file}.svg", metadata={"Date": None, "Creator": None})
    drawing.figure.set_layout_engine("none")  # the other keeps the places that this one has found
    drawing.figure.savefig(folder / f"{drawing.file}.png", dpi=160, metadata={"Software": None})


def context():
    """The settings above, on matplotlib's defaults whatever the user's own are; drawing and saving happen inside."""
    settings: dict[Any, Any] = {**matplotlib.rcParamsDefault, **SETTINGS}
    return matplotlib.rc_context(settings)


def uniform_line(axes: Axes, level: float, label: str) -> None:
    """Dashed line at the level of uniform routing."""
    axes.axhline(level, color=GREY, linestyle="--", linewidth=1.1, label=label, zorder=1)


def log2_axis(axes: Axes, ticks: list[int]) -> None:
    """Logarithmic x axis with the given ticks alone, as plain numbers."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.margins(x=0.08)


def legend_below(figure: Figure, axes: Axes, columns: int = 2) -> None:
    """One legend for the figure, below it, where it hides no data."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
