"""Which estimator of f is nearest and affordable? What `estimators.json` says, in words that follow from it by rule.

Its gradients are those of one run that `exact` balances; what an estimator does to the run that it balances itself,
they do not say.
"""

import math
from dataclasses import dataclass

from moe.analysis.statistics import PairedDifference
from moe.report import estimator_measures as estimators
from moe.report import text
from moe.report.record_types import EstimatorsRecord

AFFORDABLE = 0.05
"""Exact counting is advised where it makes a step longer by less than this share."""


@dataclass(frozen=True)
class Choice:
    """What can be chosen at a number of passes: `cost` of exact as in `cost`, and the other estimators' errors."""

    passes: int
    cost: PairedDifference | None
    errors: dict[str, float]

    @property
    def nearest(self) -> list[str]:
        """The estimators, exact aside, with the lowest error to two significant digits; `pass` is none, since it makes
        the window smaller, and is named beside them."""
        errors = {name: error for name, error in self.errors.items() if name != "pass"} or self.errors
        shown = {name: text.significant(error) for name, error in errors.items()}
        lowest = shown[min(errors, key=lambda name: errors[name])]
        return [name for name in shown if shown[name] == lowest]

    @property
    def advised(self) -> list[str]:
        """`exact` where it is affordable up to the end of its interval, else the nearest; nothing where exact was not
        timed."""
        if self.cost is None:
            return []
        highest = self.cost.mean if self.cost.high is None else self.cost.high
        return ["exact"] if math.expm1(highest) < AFFORDABLE else self.nearest


def choices(record: EstimatorsRecord) -> list[Choice]:
    """One choice for each number of passes above 1 that some gradient was measured with, else that was timed.

    One pass is left out: its own counts are those of the batch.
    """
    errors = estimators.error_frame(record)["relative_error"].to_dict()
    measured = {passes for _, passes in errors} - {estimators.ANY} or {row.passes for row in record.step_seconds}
    found = []
    for passes in sorted(measured - {1}):
        known = {name: error for (name, own), error in errors.items() if own in (passes, estimators.ANY)}
        found.append(Choice(passes, estimators.cost(record, "exact", passes), known))
    return found


def advice(record: EstimatorsRecord) -> list[str]:
    """Which estimator to use at which number of passes, with the rule; then what was found at each, a sentence each."""
    found = choices(record)
    if not found:
        return ["With one accumulation pass nothing is estimated: its counts are those of the whole batch."]
    return [_recommendation(found), *(_finding(choice) for choice in found)]


def _recommendation(found: list[Choice]) -> str:
    uses: dict[str, list[int]] = {}
    for choice in found:
        if choice.advised:
            uses.setdefault(_names(choice.advised, "or"), []).append(choice.passes)
    if not uses:
        return "Nothing is advised: “exact” was not timed at a number of passes whose gradients were measured."
    parts = [f"{names} at {_listed([str(passes) for passes in at], 'and')} passes" for names, at in uses.items()]
    return (
        f"By gradient: {_listed(parts, 'and', ', ')}. The rule: “exact” where all of the interval of its cost lies "
        f"below {AFFORDABLE:.0%} of a step with “prefix”, else the estimator of the whole window whose balance "
        "gradient comes nearest to that of “exact”, along a run that “exact” balances. What comes of a run that an "
        "estimator balances itself, where an f of past steps answers late, these gradients do not say: the experiment "
        "on estimators does."
    ).replace("%", " %")


def _finding(choice: Choice) -> str:
    nearest = choice.nearest
    others = [name for name in ("prefix", "pass") if name in choice.errors and name not in nearest]
    compared = ", ".join(f"“{name}” {text.significant(choice.errors[name])}" for name in others)
    comes = "comes nearest, with a" if len(nearest) == 1 else "come equally near, with a"
    return (
        f"At {choice.passes} passes “exact” {_cost_words(choice.cost)}; without its counting pass "
        f"{_names(nearest, 'and')} {comes} relative gradient error of {text.significant(choice.errors[nearest[0]])}"
        + (f" ({compared})." if compared else ".")
    )


def _cost_words(logarithm: PairedDifference | None) -> str:
    """What exact costs, after "exact ..."."""
    if logarithm is None:
        return "was not timed"
    mean = _percent(logarithm.mean)
    if logarithm.low is None or logarithm.high is None:
        return f"costs {mean} a step against “prefix” (one repetition: no interval)"
    shown = f"{mean} [{_percent(logarithm.low)}, {_percent(logarithm.high)}] a step"
    return {
        -1: f"takes less time than “prefix”: {shown}",
        0: f"is not told apart from “prefix” in time: {shown}",
        1: f"costs {shown} against “prefix”",
    }[logarithm.sign]


def _percent(logarithm: float) -> str:
    return text.signed(100 * math.expm1(logarithm), 1) + " %"


def _names(names: list[str], last: str) -> str:
    return _listed([f"“{name}”" for name in names], last)


def _listed(parts: list[str], last: str, before_last: str = " ") -> str:
    """a; a and b; a, b and c."""
    return f"{before_last}{last} ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]
