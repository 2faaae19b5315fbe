"""The table that answers: do experts belong to domains, in which arms more, and do they stay so?"""

import math

import pandas as pd

from moe.report import measures, text
from moe.report.measure_names import MEASURES
from moe.report.records import Records
from moe.report.specialisation_measures import HOT
from moe.report.table import Table, difference_columns, seeds_per_arm

SHOWN = (
    "divergence", "information", "hot_experts", "hot_overlap", "router_cosine", "own_damage", "other_damage",
    "damage_gap", "stability",
)  # fmt: skip
"""Measures of specialisation, of the columns of the runs frame."""


def specialisation_table(records: Records, experiment: str) -> Table:
    """Every measure of specialisation and every arm: the mean, and its paired difference to its reference arm."""
    frame, references = measures.run_frame(records, experiment), records.references(experiment)
    heading, rows, shown = f"difference to {records.reference_name(experiment)} [95 %]", [], []
    for measure in SHOWN:
        means = frame.groupby("arm")[measure].mean()
        differences = measures.arm_differences(frame, measure, references.items())
        for arm, difference in zip(references, differences, strict=True):
            is_reference = arm == references[arm]
            difference = None if is_reference else difference
            missing = math.isnan(means[arm])
            status = text.NOT_RUN if missing else "measured"
            row = {"measure": measure, "arm": arm, "mean": float(means[arm])}
            rows.append(row | difference_columns(difference) | {"status": status})
            compared = text.NOT_RUN if missing else text.interval(difference)
            shown.append(
                {
                    "measure": MEASURES[measure],
                    "arm": arm,
                    "mean": text.number(means[arm], 4),
                    heading: "reference" if is_reference else compared,
                    "seeds": str(frame.loc[frame["arm"] == arm, measure].count()),
                    "p": "–" if is_reference else text.p_value(difference.p if difference else None),
                    "status": status,
                }
            )
    caption = (
        f"Mean over {seeds_per_arm(frame)}; 95 % t intervals of the difference paired over seeds, p-values of the "
        f"paired t-test, not adjusted. JSD and mutual information: 0 where all domains route alike. {HOT} Cosine: mean "
        "absolute cosine between two rows of a router, mean over layers. Damage: increase of the held-out loss where "
        "one expert is never chosen and the next-best takes its place; a domain's own experts are its hot ones and "
        "its most selected one in each layer; own: what the domain loses without one of them, other: what the other "
        "domains lose without the same. Experts that everybody needs give a gap of 0; experts that only "
        f"their domain needs give no damage to others. {_stability_note(frame)} The paper prints no such measure."
    )
    title = "Do experts belong to domains?"
    return Table("specialisation", "routing", title, caption, pd.DataFrame(rows), pd.DataFrame(shown), experiment)


def _stability_note(frame: pd.DataFrame) -> str:
    chance = frame["stability_chance"].mean()
    if math.isnan(chance):
        return "Stability needs the counts of two steps of the training."
    return (
        "Stability: share of experts whose strongest domain in the batch of a recorded training step is their "
        f"strongest at the next recorded step; {chance:.2f} by chance, and less than 1 also where experts stay as they "
        "are, since a batch is a sample."
    )
