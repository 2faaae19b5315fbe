"""What became of the predictions: confirmed, refuted or unresolved, by one rule for all of them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from moe.analysis.statistics import MeanRatio, PairedDifference, holm, margin_p, mean_ratio
from moe.report import measures
from moe.report.records import Records
from moe.scale import Expectation, Recovery

LEVEL = 0.05
Verdict = Literal["confirmed", "refuted", "unresolved"]
VERDICTS: tuple[Verdict, ...] = ("confirmed", "refuted", "unresolved")


@dataclass(frozen=True)
class Outcome:
    """One prediction beside what was measured."""

    experiment: str
    expectation: Expectation
    difference: PairedDifference | None
    """First minus second arm; None where they share no seed, or the measure was not taken."""
    p: float | None
    """Of the hypothesis that the difference lies on the border of what is predicted: 0, or the margin of `equal`."""
    p_holm: float | None
    """Adjusted by Holm over all predictions of the report."""

    @property
    def verdict(self) -> Verdict:
        """Unresolved unless the adjusted p-value is at most `LEVEL`; then confirmed or refuted by the side of the mean.

        Adjusting only raises a p-value, so the whole 95 % interval lies on that side too.
        """
        return self._at(self.p_holm)

    @property
    def alone(self) -> Verdict:
        """What the 95 % interval would say without adjustment, as if this were the only prediction."""
        return self._at(self.p)

    def _at(self, p: float | None) -> Verdict:
        if self.difference is None or p is None or p > LEVEL:
            return "unresolved"
        mean, margin = self.difference.mean, self.expectation.margin
        sides = {"lower": mean < 0, "higher": mean > 0, "equal": margin is not None and abs(mean) < margin}
        return "confirmed" if sides[self.expectation.direction] else "refuted"


def outcomes(records: Records) -> list[Outcome]:
    """Every prediction of every experiment of the report, which together are the family of Holm's adjustment."""
    found = []
    for name, experiment in records.table.experiments.items():
        frame = measures.run_frame(records, name) if experiment.expect else pd.DataFrame()
        for item in experiment.expect:
            difference = measures.arm_difference(frame, item.measure, item.first, item.second)
            p = margin_p(difference, item.margin or 0.0) if difference else None
            found.append((name, item, difference, p))
    adjusted = holm([p for *_, p in found])
    return [
        Outcome(name, item, difference, p, p_holm)
        for (name, item, difference, p), p_holm in zip(found, adjusted, strict=True)
    ]


def rule(count: int) -> str:
    """How the verdicts of `count` predictions are reached, for captions."""
    return (
        f"Rule: a prediction is confirmed or refuted where its p-value, adjusted by Holm over all {count} predictions "
        f"of the report, is at most {LEVEL}; the side of the mean tells which, and the whole 95 % interval lies there "
        "then. Else it is unresolved. p is that of a true difference on the border: 0, or for “equal” the margin."
    )


def count_sentence(found: Sequence[Outcome]) -> str:
    """How many predictions have which verdict."""
    counts = Counter(outcome.verdict for outcome in found)
    said = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
    return f"{len(found)} predictions: {said}" if len(found) != 1 else f"1 prediction: {found[0].verdict}"


def recovered_shares(runs: pd.DataFrame, recovery: Recovery) -> dict[str, MeanRatio | None]:
    """Share of the gain in held-out loss that each arm recovers, (from - arm) / (from - to), over the seeds that the
    three arms have; None without any. `runs` is the frame of runs."""
    losses = runs.pivot(index="seed", columns="arm", values="heldout_nats")
    found: dict[str, MeanRatio | None] = {}
    for arm in recovery.by:
        rows = losses[list(dict.fromkeys([recovery.from_, recovery.to, arm]))].dropna()
        start = rows[recovery.from_]
        found[arm] = mean_ratio(start - rows[arm], start - rows[recovery.to]) if len(rows) else None
    return found
