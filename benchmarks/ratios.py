"""How do two take turns compare? The median of the ratios of neighbours, and the lowest and highest of them."""

import statistics
from collections.abc import Iterable


def summary(numerators: Iterable[float], denominators: Iterable[float]) -> dict[str, float]:
    """Median, lowest and highest ratio of pairs that were measured next to each other."""
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    return {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def spread(ratio: dict[str, float]) -> str:
    """A summary for a terminal: median (lowest..highest)."""
    return f"{ratio['median']:.2f} ({ratio['lowest']:.2f}..{ratio['highest']:.2f})"
