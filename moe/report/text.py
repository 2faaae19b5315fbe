"""Numbers as text: one spelling for tables, captions, page and terminal."""

import math
import textwrap

from moe.analysis.statistics import PairedDifference
from moe.report.paper import NOTES, named_items

NOT_RUN = "not run"


def number(value: float | None, digits: int = 3) -> str:
    """Fixed digits with a true minus sign, whole above 1,000; "not run" for a value that is missing."""
    if value is None or math.isnan(value):
        return NOT_RUN
    digits = 0 if abs(value) >= 1000 else digits
    return f"{value:,.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 4) -> str:
    """A difference, always with its sign."""
    return f"{value:+.{digits}f}".replace("-", "−")


def significant(value: float) -> str:
    """A value above 0 with two significant digits, never in powers of ten."""
    if math.isnan(value) or value == 0:
        return number(value, 0)
    if value < 1e-5:
        return "< 0.00001"
    return number(value, max(0, 1 - math.floor(math.log10(value))))


def p_value(p: float | None) -> str:
    """A p-value with two significant digits."""
    if p is None:
        return "none"
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def interval(difference: PairedDifference | None, digits: int = 4) -> str:
    """Mean and 95 % interval of a paired difference, or why there is none."""
    if difference is None:
        return "no paired seed"
    if difference.low is None or difference.high is None:
        return f"{signed(difference.mean, digits)} (one seed: no interval)"
    return f"{signed(difference.mean, digits)} [{signed(difference.low, digits)}, {signed(difference.high, digits)}]"


def ratio(logarithm: PairedDifference | None) -> str:
    """A ratio with its 95 % interval, from the paired difference of the logarithms over repetitions."""
    if logarithm is None:
        return NOT_RUN
    if logarithm.low is None or logarithm.high is None:
        return f"{math.exp(logarithm.mean):.3f} (one repetition: no interval)"
    return f"{math.exp(logarithm.mean):.3f} [{math.exp(logarithm.low):.3f}, {math.exp(logarithm.high):.3f}]"


def paper_note(items: str) -> str:
    """What the paper prints in the named items, in one sentence for a caption."""
    names = [name for name in named_items(items) if name in NOTES]
    if not names:
        return "The paper prints no such value."
    return "Paper (quoted): " + "; ".join(f"{name}: {NOTES[name]}" for name in names) + "."


def wrapped(label: str, width: int = 26) -> str:
    """A label on several lines, so that a long one does not squeeze the plot."""
    return textwrap.fill(label, width)


def seeds(count: int) -> str:
    """A number of seeds, in words."""
    return "1 seed" if count == 1 else f"{count} seeds"
