"""What the intervals say, in words: one sentence for each contrast, and the verdict on the paper's main claim."""

from collections.abc import Sequence

from moe.analysis.statistics import PairedDifference
from moe.report import measures
from moe.report.outcomes import Outcome, Verdict
from moe.report.records import Records
from moe.report.text import interval, p_value, seeds, signed


def verdict(difference: PairedDifference | None) -> Verdict:
    """What an interval alone says of the claim that the first arm is lower than the second: confirmed where the whole
    interval lies below zero, refuted where it lies above, else unresolved."""
    sign = difference.sign if difference else 0
    return "confirmed" if sign < 0 else "refuted" if sign > 0 else "unresolved"


def comparison(first: str, second: str, difference: PairedDifference | None) -> str:
    """One sentence on the held-out loss of two arms."""
    if difference is None:
        return f"“{first}” and “{second}” share no seed, so they are not compared."
    outcome = {
        "confirmed": "is lower than",
        "refuted": "is higher than",
        "unresolved": "is not told apart from",
    }[verdict(difference)]
    return f"The held-out loss of “{first}” {outcome} that of “{second}”: {evidence(difference)}."


def evidence(difference: PairedDifference) -> str:
    """Difference in nats per token with its interval, n and p-value."""
    if difference.p is None:
        return f"difference on one seed {signed(difference.mean)} nats/token, no interval"
    p = p_value(difference.p)
    p = p if p.startswith("<") else f"= {p}"
    return f"paired difference {interval(difference)} nats/token, 95 % interval over {seeds(difference.n)}, p {p}"


def contrast_sentences(records: Records, experiment: str) -> list[str]:
    """One sentence for each contrast of the experiment."""
    runs = measures.run_frame(records, experiment)
    pairs = records.contrasts(experiment)
    differences = measures.arm_differences(runs, "heldout_nats", pairs)
    return [comparison(*pair, difference) for pair, difference in zip(pairs, differences, strict=True)]


def window_claim(records: Records, experiment: str, found: Sequence[Outcome] = ()) -> tuple[Verdict, str] | None:
    """The paper's claim that the largest window has a lower held-out loss than the smallest: verdict and a sentence.

    Where `found` has the outcome of this very prediction, the verdict is its own, with its adjusted p-values; else
    it is that of the interval. None where the arms of the experiment do not differ in their window.
    """
    curves = measures.window_groups(records, experiment)
    if not curves:
        return None
    longest = max(curves, key=len)
    (small, small_arm), (large, large_arm) = longest[0], longest[-1]
    difference = measures.arm_difference(measures.run_frame(records, experiment), "heldout_nats", large_arm, small_arm)
    claim = f"Pooling the balance loss over {_sequences(large)} instead of {_sequences(small)}"
    if difference is None:
        return "unresolved", f"{claim}: the two arms share no seed, so the paper's claim is unresolved here."
    same = ("heldout_nats", large_arm, small_arm, "lower")
    stated = [
        outcome
        for outcome in found
        if outcome.experiment == experiment
        and same == tuple(getattr(outcome.expectation, key) for key in ("measure", "first", "second", "direction"))
    ]
    result, proof = verdict(difference), evidence(difference)
    if stated:
        result = stated[0].verdict
        own = sum(outcome.experiment == experiment for outcome in found)
        proof += f", adjusted for the {own} predictions of this experiment {p_value(stated[0].p_holm)}"
        proof += f", for all {len(found)} {p_value(stated[0].p_holm_all)}" if len(found) > own else ""
    said = {
        "confirmed": f"lowers the held-out loss: {proof}. The paper's claim holds at this scale.",
        "refuted": f"raises the held-out loss: {proof}. The paper's claim is refuted at this scale.",
        "unresolved": f"is undecided: {proof}. The paper's claim is unresolved at this scale.",
    }
    return result, f"{claim} {said[result]}"


def headline_claim(records: Records, found: Sequence[Outcome]) -> tuple[str, Verdict | None, str]:
    """The experiment that the report opens with, its verdict and its sentence; `found` are the outcomes of all.

    The first experiment whose arms differ in their window; without one, the first contrast of the first experiment,
    which has no verdict, since no claim of the paper is behind it.
    """
    for experiment in records.table.experiments:
        claim = window_claim(records, experiment, found)
        if claim:
            return experiment, *claim
    first = next(iter(records.table.experiments))
    return first, None, " ".join(contrast_sentences(records, first)[:1]) or "One arm was run: nothing is compared."


def _sequences(window: int) -> str:
    return "one sequence" if window == 1 else f"{window} sequences"
