"""What the intervals say, in words: one sentence for each contrast, and the verdict on the paper's main claim."""

from typing import Literal

from moe.analysis.statistics import PairedDifference
from moe.report import measures
from moe.report.records import Records
from moe.report.text import interval, p_value, seeds, signed

Verdict = Literal["holds", "refuted", "unresolved"]


def verdict(difference: PairedDifference | None) -> Verdict:
    """What an interval says of the claim that the first arm is lower than the second: the claim holds where the whole
    interval lies below zero, it is refuted where the whole interval lies above, and else it is unresolved."""
    sign = difference.sign if difference else 0
    return "holds" if sign < 0 else "refuted" if sign > 0 else "unresolved"


def comparison(first: str, second: str, difference: PairedDifference | None) -> str:
    """One sentence on the held-out loss of two arms."""
    if difference is None:
        return f"“{first}” and “{second}” share no seed, so they are not compared."
    outcome = {
        "holds": "is lower than",
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


def window_claim(records: Records, experiment: str) -> tuple[Verdict, str] | None:
    """The paper's claim that the largest window has a lower held-out loss than the smallest: verdict and a sentence.

    None where the arms of the experiment do not differ in their window.
    """
    curves = measures.window_groups(records, experiment)
    if not curves:
        return None
    longest = max(curves, key=len)
    (small, small_arm), (large, large_arm) = longest[0], longest[-1]
    difference = measures.arm_difference(measures.run_frame(records, experiment), "heldout_nats", large_arm, small_arm)
    outcome = verdict(difference)
    claim = f"Pooling the balance loss over {_sequences(large)} instead of {_sequences(small)}"
    if difference is None:
        return outcome, f"{claim}: the two arms share no seed, so the paper's claim is unresolved here."
    said = {
        "holds": f"lowers the held-out loss: {evidence(difference)}. The paper's claim holds at this scale.",
        "refuted": f"raises the held-out loss: {evidence(difference)}. The paper's claim is refuted at this scale.",
        "unresolved": f"is undecided: {evidence(difference)}. The paper's claim is unresolved at this scale.",
    }
    return outcome, f"{claim} {said[outcome]}"


def headline_claim(records: Records) -> tuple[str, Verdict | None, str]:
    """The experiment that the report opens with, its verdict and its sentence.

    The first experiment whose arms differ in their window; without one, the first contrast of the first experiment,
    which has no verdict, since no claim of the paper is behind it.
    """
    for experiment in records.table.experiments:
        claim = window_claim(records, experiment)
        if claim:
            return experiment, *claim
    first = next(iter(records.table.experiments))
    return first, None, " ".join(contrast_sentences(records, first)[:1]) or "One arm was run: nothing is compared."


def _sequences(window: int) -> str:
    return "one sequence" if window == 1 else f"{window} sequences"
