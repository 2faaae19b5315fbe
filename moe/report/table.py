"""A table, for machines and for people, before it is written."""

from dataclasses import dataclass

import pandas as pd

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
