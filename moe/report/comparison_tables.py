"""Tables that compare the arms of an experiment, paired over seeds."""

from itertools import pairwise

import pandas as pd

from moe.analysis.statistics import holm, paired_difference
from moe.report import measures, text
from moe.report.measure_names import MEASURES
from moe.report.records import Records
from moe.report.table import Table, difference_columns

INTERVAL = (
    "Intervals are 95 % t intervals of the difference paired over seeds (at a seed, arms with the same data and batch "
    "settings have the same data order, and arms with the same model settings the same initialisation)"
)
ROUTING = "measured on the held-out text, mean over layers"


def headline_table(records: Records, experiment: str) -> Table:
    """Every arm: held-out loss, its paired difference to its reference arm, and the measures of the routing."""
    frame, references = measures.run_frame(records, experiment), records.references(experiment)
    heading, rows, shown = f"difference to {records.reference_name(experiment)} [95 %]", [], []
    differences = measures.arm_differences(frame, "heldout_nats", references.items())
    for (arm, runs), difference in zip(frame.groupby("arm", sort=False), differences, strict=True):
        is_reference = arm == references[arm]
        difference = None if is_reference else difference
        means = {measure: float(runs[measure].mean()) for measure in MEASURES}
        windows = runs["windows"].iloc[0]
        head = {"arm": arm, "windows": windows, "seeds": len(runs)}
        rows.append(head | means | difference_columns(difference) | {"status": "measured"})
        shown.append(
            {
                "arm": arm,
                "Balance BSZ (sequences)": windows,
                "seeds": str(len(runs)),
                "held-out loss (nats/token)": text.number(means["heldout_nats"], 4),
                heading: "reference" if is_reference else text.interval(difference),
                "p (not adjusted)": "–" if is_reference else text.p_value(difference.p if difference else None),
                "bits per byte": text.number(means["bits_per_byte"], 4),
                "Avg PPL": text.number(means["perplexity"], 3),
                "JSD (nats)": text.number(means["divergence"]),
                "mutual inf. (nats)": text.number(means["information"]),
                "MaxVio": text.number(means["max_vio"]),
                "status": "measured",
            }
        )
    caption = (
        f"Means over seeds. {INTERVAL}; p-values are of the paired t-test, not adjusted. Balance BSZ: sequences that "
        "each balance loss pools its counts over; two numbers are two losses. Avg PPL: mean of the domains' "
        f"perplexities. JSD between domains, mutual information of domain and expert, and MaxVio: {ROUTING}; all are 0 "
        f"for uniform routing. {text.paper_note(records.table.experiments[experiment].paper)}"
    )
    return Table("headline", "experiment", "Arms", caption, pd.DataFrame(rows), pd.DataFrame(shown), experiment)


def contrast_table(records: Records, experiment: str) -> Table:
    """Every contrast of the experiment in every measure, with p-values adjusted over the contrasts of one measure."""
    frame, contrasts = measures.run_frame(records, experiment), records.contrasts(experiment)
    rows, shown = [], []
    for measure, title in MEASURES.items():
        if frame[measure].isna().all():
            continue
        differences = measures.arm_differences(frame, measure, contrasts)
        adjusted = holm([difference.p if difference else None for difference in differences])
        for (first, second), difference, p_holm in zip(contrasts, differences, adjusted, strict=True):
            head = {"measure": measure, "first": first, "second": second}
            columns = difference_columns(difference)
            last = {"p_holm": columns["p"] if p_holm is None else p_holm, "status": "measured"}
            rows.append(head | columns | last)
            effect = difference.effect if difference else None
            shown.append(
                {
                    "contrast": f"{first} − {second}",
                    "measure": title,
                    "difference [95 %]": text.interval(difference),
                    "seeds": str(difference.n if difference else 0),
                    "p": text.p_value(difference.p if difference else None),
                    f"p (Holm, {len(contrasts)} contrasts)": text.p_value(p_holm),
                    "d_z": "none" if effect is None else text.number(effect, 1),
                    "status": "measured",
                }
            )
    caption = (
        f"First arm minus second. {INTERVAL}; they and p are not adjusted. p (Holm) is adjusted over the "
        f"{len(contrasts)} contrasts of one measure in this experiment; the verdicts rest on its predictions, a family "
        "of their own. d_z: mean over standard deviation of the paired differences."
    )
    return Table("contrasts", "contrasts", "Contrasts", caption, pd.DataFrame(rows), pd.DataFrame(shown), experiment)


def interaction_table(records: Records, experiment: str) -> Table | None:
    """How a contrast on one axis changes between neighbouring levels of the other axis, paired over seeds; None unless
    the experiment has two axes and such contrasts."""
    found = _interactions(records, experiment)
    if not found:
        return None
    losses = measures.run_frame(records, experiment).pivot(index="seed", columns="arm", values="heldout_nats")
    differences = []
    for item in found:
        four = losses[[item[name] for name in ("first", "second", "first_before", "second_before")]].dropna()
        first, second, first_before, second_before = four.to_numpy().T
        pairs = (first - second).tolist(), (first_before - second_before).tolist()
        differences.append(paired_difference(*pairs) if len(four) else None)
    adjusted = holm([difference.p if difference else None for difference in differences])
    rows, shown = [], []
    for item, difference, p_holm in zip(found, differences, adjusted, strict=True):
        columns = difference_columns(difference)
        rows.append(item | columns | {"p_holm": columns["p"] if p_holm is None else p_holm, "status": "measured"})
        later, earlier = (f"{item[f'first{end}']} − {item[f'second{end}']}" for end in ("", "_before"))
        shown.append(
            {
                "contrasts": f"({later}) − ({earlier})",
                "levels": f"{item['axis']}: {item['level']} against {item['before']}",
                "difference (nats/token) [95 %]": text.interval(difference),
                "seeds": str(difference.n if difference else 0),
                "p": text.p_value(difference.p if difference else None),
                f"p (Holm, {len(found)} rows)": text.p_value(p_holm),
                "status": "measured",
            }
        )
    caption = (
        "Does a contrast in held-out loss change between neighbouring levels of the other axis? Exploratory: not one "
        "of the predictions, and no verdict rests on it. Difference of the two differences: below 0, the first arm "
        "stands better to the second at the level that is named first. "
        f"{INTERVAL}; they and p are not adjusted, p (Holm) is, over the rows of this table."
    )
    frame, display = pd.DataFrame(rows), pd.DataFrame(shown)
    return Table("interactions", "contrasts", "Interactions", caption, frame, display, experiment)


def _interactions(records: Records, experiment: str) -> list[dict[str, str]]:
    """Pairs of contrasts of the same two labels on one axis, at a level of the other axis and at the level before it.

    Four arms that contrasts on both axes compare are one interaction, and named once.
    """
    labels = records.labels(experiment)
    axes = list(records.table.experiments[experiment].axes)
    if len(axes) != 2:
        return []
    found: dict[frozenset[str], dict[str, str]] = {}
    for axis, other in (axes[::-1], axes):
        compared: dict[tuple[str, str], dict[str, tuple[str, str]]] = {}
        for first, second in records.contrasts(experiment):
            if labels[first][axis] == labels[second][axis]:
                pair = labels[first][other], labels[second][other]
                compared.setdefault(pair, {})[labels[first][axis]] = first, second
        levels = dict.fromkeys(label[axis] for label in labels.values())
        for contrasts in compared.values():
            for before, level in pairwise(levels):
                if before in contrasts and level in contrasts:
                    arms = dict(zip(("first", "second"), contrasts[level], strict=True))
                    arms |= dict(zip(("first_before", "second_before"), contrasts[before], strict=True))
                    found.setdefault(frozenset(arms.values()), {"axis": axis, "level": level, "before": before} | arms)
    return list(found.values())
