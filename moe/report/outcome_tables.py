"""Tables of the predictions and of the recovered shares."""

import math
from collections.abc import Sequence

import pandas as pd

from moe.analysis.statistics import MeanRatio
from moe.report import measures, paper_effects, text
from moe.report.measure_names import MEASURES
from moe.report.outcomes import RULE, VERDICTS, Outcome, recovered_shares
from moe.report.records import Records
from moe.report.table import Table, difference_columns

QUOTED = (
    "The paper's: ln of the ratio of the two Avg PPL that it prints for the same comparison, one run each, without "
    "error; – where it prints none."
)


def prediction_table(records: Records, experiment: str, found: Sequence[Outcome]) -> Table | None:
    """The predictions of one experiment with their verdicts, or without a name those of all, verdict by verdict and
    beside the paper; None where there is none.

    `found` are the outcomes of all experiments.
    """
    chosen = [outcome for outcome in found if experiment in ("", outcome.experiment)]
    if not chosen:
        return None
    if not experiment:
        chosen.sort(key=lambda outcome: VERDICTS.index(outcome.verdict))
    rows, shown = [], []
    for outcome in chosen:
        item, difference = outcome.expectation, outcome.difference
        head = {"experiment": outcome.experiment, "claim": item.claim, "verdict": outcome.verdict}
        compared = {"measure": item.measure, "first": item.first, "second": item.second, "predicted": item.direction}
        margin = {"margin": "none" if item.margin is None else item.margin}
        tested = {"p_border": _number(outcome.p), "p_holm": _number(outcome.p_holm)}
        tested |= {"p_holm_all": _number(outcome.p_holm_all)}
        rows.append(head | compared | margin | difference_columns(difference) | tested | {"status": "measured"})
        measure = MEASURES[item.measure]
        if experiment:
            said = {"prediction": item.claim, "contrast": outcome.contrast, "measure": measure}
            said |= {"predicted": outcome.predicted}
            last = {"status": "measured"}
        else:
            said = {"prediction": f"{item.claim} ({outcome.contrast}: {outcome.predicted}; {measure})"}
            quoted = paper_effects.quoted_contrast(records, outcome.experiment, item.first, item.second, item.measure)
            last = {"the paper's (nats/token, quoted)": quoted}
        shown.append(
            {
                "verdict": outcome.verdict,
                **said,
                "difference [95 %]": text.interval(difference),
                "seeds": str(difference.n if difference else 0),
                "p": text.p_value(outcome.p),
                "p (Holm, experiment)": text.p_value(outcome.p_holm),
                f"p (Holm, all {len(found)})": text.p_value(outcome.p_holm_all),
                **last,
            }
        )
    caption = (
        f"{RULE} Intervals are 95 % t intervals of the difference paired over seeds, not adjusted. "
        f"{'' if experiment else QUOTED}"
    )
    title = "Predictions and outcomes"
    return Table(
        "predictions", "predictions", title, caption, pd.DataFrame(rows), pd.DataFrame(shown), experiment
    )  # fmt: skip


def recovery_table(records: Records, experiment: str) -> Table | None:
    """Shares of a gain that arms recover, beside the paper's; None where the experiment asks for none."""
    definition = records.table.experiments[experiment]
    recovery = definition.recovery
    if recovery is None:
        return None
    rows, shown = [], []
    for arm, share in recovered_shares(measures.run_frame(records, experiment), recovery).items():
        columns = {"share": share.value, "low": share.low, "high": share.high} if share else {}
        rows.append(
            {"arm": arm, **dict.fromkeys(("share", "low", "high"), math.nan), **columns}
            | {"unbounded": bool(share and share.unbounded), "pairs": share.n if share else 0, "status": "measured"}
        )
        shown.append(
            {
                "arm": arm,
                "share of the gain [95 %]": share_text(share),
                "seeds": str(share.n if share else 0),
                "source": "this scale",
                "status": "measured",
            }
        )
    for row in paper_effects.shares(definition.paper).itertuples():
        rows.append({"arm": row.arm, "share": row.share, "pairs": 1, "status": "quoted"})
        source = f"{row.item}, {row.model}, {row.tokens}"
        cells = {"arm": row.arm, "share of the gain [95 %]": _percent(row.share), "seeds": "one run"}
        shown.append(cells | {"source": source, "status": "quoted"})
    caption = (
        f"(“{recovery.from_}” − arm) / (“{recovery.from_}” − “{recovery.to}”) in held-out loss: 0 % is that of "
        f"“{recovery.from_}”, 100 % that of “{recovery.to}”. Interval by Fieller's theorem for a ratio of two means "
        "paired over seeds, unbounded where the gain itself is not told apart from 0; not adjusted for the number of "
        "arms. Quoted: from printed Avg PPL, in nats."
    )
    title = "Share of the gain"
    return Table("recovery", "experiment", title, caption, pd.DataFrame(rows), pd.DataFrame(shown), experiment)


def share_text(share: MeanRatio | None) -> str:
    """A share in per cent with its interval, or why it has none."""
    if share is None:
        return "no paired seed"
    if share.value is None:
        return "no gain to share"
    if share.unbounded:
        return f"{_percent(share.value)} (interval unbounded: no gain is told apart from 0)"
    if share.low is None or share.high is None:
        return f"{_percent(share.value)} (one seed: no interval)"
    return f"{_percent(share.value)} [{_percent(share.low)}, {_percent(share.high)}]"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %".replace("-", "−")


def _number(p: float | None) -> float | str:
    return "none" if p is None else p
