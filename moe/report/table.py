"""A table, for machines and for people, before it is written."""

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from moe.analysis.statistics import PairedDifference
from moe.report import text


@dataclass(frozen=True)
class Table:
    """`frame` has bare numbers for machines, `display` has text for people; data without `display` is only linked."""

    name: str
    section: str
    title: str
    caption: str
    frame: pd.DataFrame
    display: pd.DataFrame | None = None
    experiment: str = ""

    @property
    def file(self) -> str:
        """Name of its files, without suffix."""
        return f"{self.experiment}-{self.name}" if self.experiment else self.name


def seeds_per_arm(frame: pd.DataFrame) -> str:
    """How many seeds the arms have, of a frame with the columns arm and seed."""
    counts = frame.groupby("arm")["seed"].nunique()
    low, high = counts.min(), counts.max()
    return f"{text.seeds(low)} per arm" if low == high else f"{low} to {high} seeds per arm"


def ratio_columns(logarithm: PairedDifference | None) -> dict[str, float]:
    """Columns of a ratio and its interval, from the paired difference of the logarithms; NaN for what is missing."""
    if logarithm is None:
        return dict.fromkeys(("ratio", "ratio_low", "ratio_high"), math.nan)
    ends = (math.nan if end is None else math.exp(end) for end in (logarithm.low, logarithm.high))
    return dict(zip(("ratio", "ratio_low", "ratio_high"), (math.exp(logarithm.mean), *ends), strict=True))


def difference_columns(difference: PairedDifference | None) -> dict[str, Any]:
    """Columns of a paired difference with its interval; what is missing is NaN or says why."""
    if difference is None:
        return dict.fromkeys(("difference", "low", "high", "p", "effect"), math.nan) | {"pairs": 0}
    # A missing interval is spelled out: an empty cell could be read as a failure.
    absent = "one seed: no interval" if difference.n == 1 else "none"
    values = {name: getattr(difference, name) for name in ("low", "high", "p", "effect")}
    named = {name: absent if value is None else value for name, value in values.items()}
    return {"difference": difference.mean, **named, "pairs": difference.n}
