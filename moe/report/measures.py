"""Tidy frames of one experiment, from the records alone: one row per run, domain, layer, step or task.

Every frame starts with `arm` and `seed`. What a run does not have is NaN here and "not run" once it is written.
"""

import math
import re
from collections.abc import Collection, Iterable
from functools import lru_cache
from itertools import chain, islice
from typing import Any

import numpy as np
import pandas as pd

from moe.analysis import specialisation
from moe.analysis.statistics import PairedDifference, paired_difference
from moe.report.measure_names import MEASURES
from moe.report.records import Records, Run
from moe.report.specialisation_measures import HOT_MULTIPLE, ownership

MOST_ARMS = 21
"""Arms that can be told apart in one figure: as many have a style of their own."""


@lru_cache(maxsize=64)  # nearly every table and figure asks for it
def run_frame(records: Records, experiment: str) -> pd.DataFrame:
    """One row per run: its windows and the columns of `MEASURES`; read it, do not write into it."""
    layers = layer_frame(records, experiment)
    means = layers.groupby(["arm", "seed"], sort=False)[[name for name in MEASURES if name in layers]].mean()
    rows = []
    for arm, seed, run in records.runs_of(experiment):
        average = run.evaluation.average
        rows.append(
            {
                "arm": arm,
                "seed": seed,
                "windows": " + ".join(str(window) for window in run.windows) or "none",
                "heldout_nats": average.nats,
                "bits_per_byte": average.bits_per_byte,
                "perplexity": average.perplexity,
                **means.loc[(arm, seed)],
                **training_loads(run),
                **ownership(run),
            }
        )
    return pd.DataFrame(rows)


def training_loads(run: Run) -> dict[str, float]:
    """Means over layers and over the logged steps of the second half of the training, NaN where no line has a value.

    max_vio_micro   MaxVio of a micro-batch, mean over those of the batch
    dead_experts    experts of a layer that no token of the batch chose
    dropped         share of the choices that capacity drops; NaN without a capacity
    """
    lines = [line for line in run.curve if 2 * line.step > run.train.steps]
    columns = {
        "max_vio_micro": [line.max_vio_micro for line in lines],
        "dead_experts": [line.dead_experts for line in lines],
        "dropped": [line.dropped for line in lines if line.dropped is not None],
    }
    return {name: float(np.mean(values)) if values else math.nan for name, values in columns.items()}


def domain_frame(records: Records, experiment: str) -> pd.DataFrame:
    """One row per run and domain: held-out loss, perplexity, bits per byte, tokens."""
    return pd.DataFrame(
        {"arm": arm, "seed": seed, "domain": domain, **values.model_dump()}
        for arm, seed, run in records.runs_of(experiment)
        for domain, values in run.evaluation.heldout.items()
    )


def layer_frame(records: Records, experiment: str) -> pd.DataFrame:
    """One row per run and layer: measures of specialisation and load on the held-out text."""
    rows = []
    for arm, seed, run in records.runs_of(experiment):
        routing = run.routing
        frequency = specialisation.selection_frequency(routing.counts_DLE)
        # Mean of the domains' frequencies: domains weigh the same in the load, too.
        load = frequency.mean(axis=0)
        several = len(routing.domains) > 1
        hot, absent = specialisation.hot_experts(frequency, multiple=HOT_MULTIPLE), np.full(len(load), np.nan)
        columns = {
            "divergence": specialisation.pairwise_divergence(frequency) if several else absent,
            "information": specialisation.mutual_information(frequency),
            "hot_experts": hot.sum(axis=-1).mean(axis=0),
            "hot_overlap": specialisation.hot_overlap(hot) if several else absent,
            "top_k_score_sum": specialisation.top_k_score_sum(routing.scores_DLE, routing.tokens_D).mean(axis=0),
            "largest_frequency": frequency.max(axis=-1).mean(axis=0),
            "max_vio": specialisation.max_violation(load),
            "load_entropy": specialisation.load_entropy(load),
        }
        for layer, values in enumerate(zip(*columns.values(), strict=True)):
            rows.append({"arm": arm, "seed": seed, "layer": layer, **dict(zip(columns, values, strict=True))})
    return pd.DataFrame(rows)


def score_frame(records: Records, experiment: str) -> pd.DataFrame:
    """One row per run, layer and domain: mean sum of the top-K scores, and its uniform level K / E."""
    rows = []
    for arm, seed, run in records.runs_of(experiment):
        routing = run.routing
        uniform = routing.top_k / routing.counts_DLE.shape[-1]
        for d, sums in enumerate(specialisation.top_k_score_sum(routing.scores_DLE, routing.tokens_D)):
            base = {"arm": arm, "seed": seed, "domain": routing.domains[d]}
            rows += [base | {"layer": i, "top_k_score_sum": value, "uniform": uniform} for i, value in enumerate(sums)]
    return pd.DataFrame(rows)


def selection_frame(records: Records, experiment: str, arms: Collection[str] = ()) -> pd.DataFrame:
    """One row per run, layer, domain and expert: the share of the domain's selections that chose the expert.

    Of `arms` alone, where some are named: it is the largest of the frames.
    """
    frames = []
    for arm, seed, run in records.runs_of(experiment, arms):
        frequency = specialisation.selection_frequency(run.routing.counts_DLE)
        domain, layer, expert = (index.ravel() for index in np.indices(frequency.shape))
        columns = {
            "arm": arm,
            "seed": seed,
            "layer": layer,
            "domain": np.array(run.routing.domains, dtype=object)[domain],
            "expert": expert,
            "selection_frequency": frequency.ravel(),
            "uniform": 1 / frequency.shape[-1],
        }
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def curve_frame(records: Records, experiment: str) -> pd.DataFrame:
    """One row per run and logged step; the balance losses, `balance` of the first term that acts in the step and those
    of each term, and MaxVio are means over layers."""
    rows = []
    for arm, seed, run in records.runs_of(experiment):
        for line in run.curve:
            terms = {f"balance_{i}": np.nan if x is None else np.mean(x) for i, x in enumerate(line.balance)}
            terms = {"balance": next((x for x in terms.values() if not np.isnan(x)), np.nan), **terms}
            loads = {"max_vio_global": np.mean(line.max_vio_global), "max_vio_micro": np.mean(line.max_vio_micro)}
            rows.append({"arm": arm, "seed": seed, "step": line.step, "lm_loss": line.lm_loss, **terms, **loads})
    return pd.DataFrame(rows)


CHANCE = {
    r"hellaswag|arc_|mmlu|ceval|heldout_continuation|openbookqa|sciq": 0.25,
    r"piqa|winogrande|boolq|copa": 0.5,
    r"lambada|gsm8k|heldout_last_word": 0.0,
}
"""Accuracy of guessing, by the name of the task."""


def task_frame(records: Records, experiment: str) -> pd.DataFrame:
    """One row per run, lm-eval task and metric: value, standard error over documents, documents, chance level.

    `part_of` names the group that a task is averaged into, or is "none".
    Empty where no task was run. NaN stands where a metric has no chance level, or lm-eval gives no error.
    """
    rows = []
    for arm, seed, run in records.runs_of(experiment):
        record = run.evaluation.lm_eval or {}
        members = record.get("group_subtasks") or {}
        parents = {task: group for group, tasks in members.items() for task in tasks}
        for task, results in ((record.get("results") or {}) | (record.get("groups") or {})).items():
            chance = next((level for pattern, level in CHANCE.items() if re.match(pattern, task)), math.nan)
            for key, value in results.items():
                metric, _, rule = key.partition(",")
                if not _is_number(value) or metric.endswith("_stderr") or not rule:
                    continue
                error = results.get(f"{metric}_stderr,{rule}")
                rows.append(
                    {
                        "arm": arm,
                        "seed": seed,
                        "task": task,
                        "part_of": parents.get(task, "none"),
                        "metric": metric if rule == "none" else f"{metric} ({rule})",
                        "value": value,
                        "stderr": error if _is_number(error) else math.nan,
                        "documents": _documents(record, task),
                        "chance": chance if metric in ("acc", "acc_norm", "exact_match") else math.nan,
                    }
                )
    columns = ["arm", "seed", "task", "part_of", "metric", "value", "stderr", "documents", "chance"]
    return pd.DataFrame(rows, columns=columns)


def _documents(record: dict[str, Any], task: str) -> float:
    """Documents of a task, or of all tasks of a group; NaN where the record does not say."""
    count = (record.get("n-samples") or {}).get(task)
    if count:
        return count["effective"]
    parts = (record.get("group_subtasks") or {}).get(task)
    return sum(_documents(record, part) for part in parts) if parts else math.nan


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def latency_frame(records: Records, experiment: str) -> pd.DataFrame:
    """One row per run: medians and 95th percentiles in milliseconds, NaN where the run was not timed."""
    rows = []
    for arm, seed, run in records.runs_of(experiment):
        row: dict[str, object] = {"arm": arm, "seed": seed}
        timing = run.timing
        steps = timing.train_step_seconds if timing else [math.nan]
        row |= {"train_step_ms": 1e3 * float(np.median(steps)), "repetitions": len(steps) if timing else 0}
        for routing in ("learned", "balanced"):
            for phase in ("prefill", "decode"):
                seconds = getattr(getattr(timing, routing), f"{phase}_seconds") if timing else [math.nan]
                p50, p95 = 1e3 * np.percentile(seconds, (50, 95))
                row |= {f"{phase}_{routing}_p50_ms": p50, f"{phase}_{routing}_p95_ms": p95}
        rows.append(row)
    return pd.DataFrame(rows)


def step_frame(records: Records, experiment: str) -> pd.DataFrame:
    """One row per timed training step: `seconds` of each repetition of each run that was timed."""
    rows = [
        {"arm": arm, "seed": seed, "repetition": i, "seconds": seconds}
        for arm, seed, run in records.runs_of(experiment)
        for i, seconds in enumerate(run.timing.train_step_seconds if run.timing else [])
    ]
    return pd.DataFrame(rows, columns=["arm", "seed", "repetition", "seconds"])


def arm_difference(
    frame: pd.DataFrame, measure: str, first: str, second: str, *, pairs: tuple[str, ...] = ("seed",)
) -> PairedDifference | None:
    """`arm_differences` of two arms."""
    return arm_differences(frame, measure, [(first, second)], pairs=pairs)[0]


def arm_differences(
    frame: pd.DataFrame, measure: str, contrasts: Iterable[tuple[str, str]], *, pairs: tuple[str, ...] = ("seed",)
) -> list[PairedDifference | None]:
    """First minus second arm of each contrast in a column, paired over the seeds that both have; None without any.

    `frame` has one row per arm and value of the `pairs` columns; rows without a value are left out.
    """
    known = frame.dropna(subset=[measure])
    values: dict[str, dict[Any, float]] = {}
    for arm, pair, value in zip(
        known["arm"], zip(*(known[name] for name in pairs), strict=True), known[measure], strict=True
    ):
        values.setdefault(arm, {})[pair] = value
    differences = []
    for a, b in ((values.get(first, {}), values.get(second, {})) for first, second in contrasts):
        both = sorted(a.keys() & b.keys())
        differences.append(paired_difference([a[i] for i in both], [b[i] for i in both]) if both else None)
    return differences


def window_groups(records: Records, experiment: str) -> list[list[tuple[int, str]]]:
    """Curves over the balance window: lists of (window, arm) of the arms that differ in nothing but one term's window.

    Empty unless at least two windows can be compared.
    """
    groups: dict[str, list[tuple[int, str]]] = {}
    for arm in records.arms(experiment):
        run = records.run(experiment, arm)
        if len(run.windows) == 1:
            term = run.config.balance.terms[0].model_copy(update={"window": "global"})
            balance = run.config.balance.model_copy(update={"terms": (term,)})
            rest = run.config.model_copy(update={"balance": balance, "seed": 0}).model_dump_json()
            groups.setdefault(rest, []).append((run.windows[0], arm))
    curves = [sorted(group) for group in groups.values()]
    return curves if any(group[0][0] != group[-1][0] for group in curves) else []


def shown_arms(records: Records, experiment: str) -> list[str]:
    """Arms that a figure has room for, in the order of the experiment: of more than `MOST_ARMS` the reference, the end
    arms, those of the contrasts, those of the longest curve over the window, then those of the lowest held-out loss."""
    arms = list(records.arms(experiment))
    if len(arms) <= MOST_ARMS:
        return arms
    losses = run_frame(records, experiment).groupby("arm", sort=False)["heldout_nats"].mean()
    contrasts = records.table.experiments[experiment].contrasts
    curve = max(window_groups(records, experiment), key=len, default=[])
    ends = end_arms(records, experiment)
    first = [records.reference(experiment), *ends, *chain(*contrasts), *(arm for _, arm in curve)]
    chosen = set(islice(dict.fromkeys([*first, *losses.sort_values(kind="stable").index]), MOST_ARMS))
    return [arm for arm in arms if arm in chosen]


def end_arms(records: Records, experiment: str) -> tuple[str, str]:
    """The two arms that pictures of routing compare: smallest and largest window, else the first contrast, else the
    first and the last arm."""
    curves = window_groups(records, experiment)
    if curves:
        longest = max(curves, key=len)
        return longest[0][1], longest[-1][1]
    contrasts = records.contrasts(experiment)
    arms = list(records.arms(experiment))
    return (contrasts[0][1], contrasts[0][0]) if contrasts else (arms[0], arms[-1])
