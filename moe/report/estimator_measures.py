"""Tidy frames of `estimators.json`: how near each estimator of f comes to the exact balance gradient, and step times.

Rows keep the order of the record.
"""

import math

import pandas as pd

from moe.analysis.statistics import PairedDifference
from moe.report import measures
from moe.report.record_types import EstimatorsRecord
from moe.report.table import ratio_columns

ANY = "any"
"""The passes of an estimator whose f does not depend on them."""
MEASURES = ["relative_error", "cosine"]


def gradient_frame(record: EstimatorsRecord) -> pd.DataFrame:
    """One row per estimator, passes, measured step and layer: cosine and relative error of the balance gradient."""
    frame = pd.DataFrame(row.model_dump() for row in record.gradients)
    frame["passes"] = [ANY if row.passes is None else row.passes for row in record.gradients]
    return frame[["estimator", "passes", "step", "layer", *MEASURES]]


def step_frame(record: EstimatorsRecord) -> pd.DataFrame:
    """One row per timed optimizer step: estimator, passes, repetition, seconds."""
    return pd.DataFrame(
        {"estimator": row.estimator, "passes": row.passes, "repetition": i, "seconds": seconds}
        for row in record.step_seconds
        for i, seconds in enumerate(row.seconds)
    )


def error_frame(record: EstimatorsRecord) -> pd.DataFrame:
    """One row per estimator and passes, its index: mean over layers and steps of the columns of `MEASURES`, the lowest
    and highest step (mean over layers), and each layer's mean over steps."""
    gradients = gradient_frame(record)
    keys = ["estimator", "passes"]
    steps = gradients.groupby([*keys, "step"], sort=False)[MEASURES].mean().groupby(level=keys, sort=False)
    ends = steps.agg(["min", "max"])
    ends.columns = [f"{measure}_{'low' if end == 'min' else 'high'}" for measure, end in ends.columns]
    layers = gradients.pivot_table(MEASURES, keys, "layer", sort=False)[MEASURES]
    layers.columns = [f"{measure}_layer_{layer}" for measure, layer in layers.columns]
    return steps.mean().join([ends, layers])


def cost(record: EstimatorsRecord, estimator: str, passes: int | str) -> PairedDifference | None:
    """Logarithm of a step's time divided by that of `prefix` at the same passes, paired over the repetitions; None
    where one of the two was not timed."""
    steps = step_frame(record)
    steps = steps[steps["passes"] == passes].rename(columns={"estimator": "arm"})
    steps = steps.assign(log_seconds=steps["seconds"].map(math.log))
    return measures.arm_difference(steps, "log_seconds", estimator, "prefix", pairs=("repetition",))


def summary_frame(record: EstimatorsRecord) -> pd.DataFrame:
    """One row per estimator and passes: the columns of `error_frame`, then `ratio` of the step times with its interval.

    An estimator that does not depend on the passes has the same error at all passes that it was timed with. The error
    of `exact` is 0 by definition.
    """
    errors = error_frame(record)
    known = errors.to_dict("index")
    timed = step_frame(record).groupby("estimator")["passes"].unique().map(list).to_dict()
    rows = []
    for estimator in dict.fromkeys(["exact", *(row.estimator for row in [*record.gradients, *record.step_seconds])]):
        measured = {passes for name, passes in known if name == estimator}
        for passes in sorted({*measured, *timed.get(estimator, [])} - {ANY}) or [ANY]:
            row = {"estimator": estimator, "passes": passes}
            row |= known.get((estimator, passes)) or known.get((estimator, ANY)) or {}
            if estimator == "exact":
                row |= {name: float(name.startswith("cosine")) for name in errors}
            row |= ratio_columns(cost(record, estimator, passes))
            rows.append(row)
    return pd.DataFrame(rows, columns=["estimator", "passes", *errors, "ratio", "ratio_low", "ratio_high"])
