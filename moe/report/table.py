"""A table, for machines and for people, before it is written."""

import math
from dataclasses import dataclass

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
