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
    """Adjusted by Holm over the predictions of the experiment; it decides."""
    p_holm_all: float | None
    """Adjusted by Holm over all predictions of the report: the stricter reading."""

    @property
    def verdict(self) -> Verdict:
        """Unresolved unless `p_holm` is at most `LEVEL`; then confirmed or refuted by the side of the mean.

        Adjusting only raises a p-value, so the whole 95 % interval lies on that side too.
        """
        return self._at(self.p_holm)

    @property
    def verdict_all(self) -> Verdict:
        """The same by `p_holm_all`."""
        return self._at(self.p_holm_all)

    @property
    def contrast(self) -> str:
        """The two arms, in words."""
        return f"{self.expectation.first} − {self.expectation.second}"

    @property
    def predicted(self) -> str:
        """Direction, and margin of an equality, in words."""
        item = self.expectation
        return item.direction if item.margin is None else f"equal ± {item.margin:g}"

    def _at(self, p: float | None) -> Verdict:
        if self.difference is None or p is None or p > LEVEL:
            return "unresolved"
        mean, margin = self.difference.mean, self.expectation.margin
        sides = {"lower": mean < 0, "higher": mean > 0, "equal": margin is not None and abs(mean) < margin}
        return "confirmed" if sides[self.expectation.direction] else "refuted"


def outcomes(records: Records) -> list[Outcome]:
    """Every prediction of every experiment of the report.

    An experiment is a family of Holm's adjustment, so that no verdict hangs on what else a report shows.
    """
    found, adjusted = [], []
    for name, experiment in records.table.experiments.items():
        frame = measures.run_frame(records, name) if experiment.expect else pd.DataFrame()
        tested = []
        for item in experiment.expect:
            difference = measures.arm_difference(frame, item.measure, item.first, item.second)
            p = margin_p(difference, item.margin or 0.0) if difference else None
            tested.append((name, item, difference, p))
        found += tested
        adjusted += holm([p for *_, p in tested])
    return [
        Outcome(name, item, difference, p, p_holm, p_holm_all)
        for (name, item, difference, p), p_holm, p_holm_all in zip(
            found, adjusted, holm([p for *_, p in found]), strict=True
        )
    ]


RULE = (
    "Rule: a prediction is confirmed or refuted where its p-value, adjusted by Holm over the predictions of its "
    f"experiment, is at most {LEVEL}; the side of the mean tells which, and the whole 95 % interval lies there then. "
    "Else it is unresolved. The family is the experiment, so that no verdict hangs on what else a report shows; "
    "adjusted over all predictions of the report is the stricter reading. p is that of a true difference on the "
    "border: 0, or for “equal” the margin."
)


def count_sentence(found: Sequence[Outcome]) -> str:
    """How many predictions have which verdict, and how many would have it by the stricter reading."""
    if len(found) == 1:
        return f"1 prediction: {found[0].verdict}"
    counts, strict = (Counter(getattr(outcome, by) for outcome in found) for by in ("verdict", "verdict_all"))
    said = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
    return f"{len(found)} predictions: {said} (adjusted over all: {', '.join(str(strict[v]) for v in VERDICTS)})"


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
