"""Table of the estimators of f and the data files behind it: one of each for a scale."""

import pandas as pd

from moe.report import estimator_measures as estimators
from moe.report import text
from moe.report.records import Records
from moe.report.table import Table


def estimator_tables(records: Records) -> list[Table]:
    """The table and its data files; none where no estimator was measured."""
    record = records.estimators
    if record is None:
        return []
    gradients, steps = estimators.gradient_frame(record), estimators.step_frame(record)
    frame = estimators.summary_frame(record)
    shown = []
    for row in frame.to_dict("records"):
        name = row["estimator"]
        ratio = text.ratio(estimators.cost(record, name, row["passes"]))
        line = {
            "estimator": name,
            "passes": str(row["passes"]),
            "relative error [lowest, highest step]": "reference" if name == "exact" else _error(row),
            "cosine [lowest, highest step]": "reference" if name == "exact" else _cosine(row),
            "step time over that of “prefix” [95 %]": "reference" if name == "prefix" else ratio,
        }
        shown.append(line | {"status": "measured"})
    caption = (
        "Gradient of the balance loss with respect to the router's weight, beside that with exact counts: cosine and "
        "relative error |g − g_exact| / |g_exact|, which is 1 without any balance loss. Mean over "
        f"{gradients['layer'].nunique()} layers and {gradients['step'].nunique()} steps of one run, {record.run} (seed "
        f"{record.seed}), trained with exact counts in batches of {record.batch_sequences} sequences. Brackets: lowest "
        "and highest step, mean over layers; a spread, no confidence interval, since steps of one run depend on each "
        "other and no other run was measured. The data file has each layer's means. Passes: accumulation passes of an "
        "optimizer step. The f of “previous” and “ema” (half-life in steps) does not depend on them: their error is "
        "one measurement, repeated at every number of passes. With one pass “prefix” is exact. Step time: geometric "
        f"mean over {steps['repetition'].nunique()} repetitions of the time divided by that of “prefix” at the same "
        "passes in the same repetition, which ran beside it, with the 95 % t interval of its logarithm; it holds for "
        "this machine. The paper prints no such value."
    )
    return [
        Table("estimators", "estimators", "Estimators of f", caption, _measured(frame), pd.DataFrame(shown)),
        _data("gradients", gradients, estimators.gradient_frame.__doc__),
        _data("steps", steps, estimators.step_frame.__doc__),
    ]


def _data(name: str, frame: pd.DataFrame, caption: str | None) -> Table:
    return Table(f"estimators_{name}", "data", f"Data: estimators, {name}", caption or "", _measured(frame))


def _measured(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(status="measured")


def _error(row: dict[str, float]) -> str:
    mean, low, high = (text.significant(row[f"relative_error{end}"]) for end in ("", "_low", "_high"))
    return mean if mean == text.NOT_RUN else f"{mean} [{low}, {high}]"


def _cosine(row: dict[str, float]) -> str:
    mean, low, high = (text.number(row[f"cosine{end}"], 4) for end in ("", "_low", "_high"))
    return mean if mean == text.NOT_RUN else f"{mean} [{low}, {high}]"
