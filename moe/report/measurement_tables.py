"""Tables of what was measured on every arm: perplexities, tasks, routing by layer, time."""

import math

import pandas as pd

from moe.report import measures, text
from moe.report.records import Records
from moe.report.specialisation_measures import HOT
from moe.report.table import Table, ratio_columns, seeds_per_arm


def perplexity_table(records: Records, experiment: str) -> Table:
    """Held-out perplexity per domain and arm, and the paper's mean of them."""
    frame = measures.domain_frame(records, experiment)
    wide = frame.pivot_table("perplexity", "domain", "arm", sort=False)[list(records.arms(experiment))]
    wide.loc["Avg PPL"] = wide.mean()
    rows = wide.rename_axis(columns=None).reset_index().assign(status="measured")
    shown = wide.map(text.number).rename_axis(columns=None).reset_index().assign(status="measured")
    spread = frame.groupby(["arm", "domain"])["perplexity"].std().mean()
    caption = (
        f"Perplexity per token of held-out documents, mean over {seeds_per_arm(frame)}; standard deviation between "
        f"seeds: {text.number(spread) if not math.isnan(spread) else 'one seed: none'} on average. Avg PPL is the mean "
        f"of the rows. {text.paper_note('Table 1')} The paper's domains and vocabulary are others: compare orders and "
        "relative differences, not levels."
    )
    return Table("perplexity", "evaluation", "Perplexity per domain", caption, rows, shown, experiment)


def downstream_table(records: Records, experiment: str) -> Table:
    """lm-eval tasks per arm with standard error and chance level."""
    frame = measures.task_frame(records, experiment)
    frame = frame[frame["part_of"] == "none"]
    arms = list(records.arms(experiment))
    means = frame.groupby(["task", "metric", "arm"], sort=False)[["value", "stderr", "documents", "chance"]].mean()
    rows = means.reset_index().assign(status="measured")
    # No sampling error means no test against chance, so no note either.
    rows["near_chance"] = (rows["value"] - rows["chance"]).abs() <= 2 * rows["stderr"]
    lines = []
    for (task, metric), group in rows.groupby(["task", "metric"], sort=False):
        cells = {
            row.arm: _with_error(row.value, row.stderr) + " †" * bool(row.near_chance) for row in group.itertuples()
        }
        chance, documents = float(group["chance"].iloc[0]), float(group["documents"].iloc[0])
        line = {"task": task, "metric": metric, "chance": "none" if math.isnan(chance) else text.number(chance, 2)}
        line |= {"documents": text.number(documents, 0), **{arm: cells.get(arm, text.NOT_RUN) for arm in arms}}
        lines.append(line | {"status": "measured"})
    shown = pd.DataFrame(lines, columns=["task", "metric", "chance", "documents", *arms, "status"])
    if rows.empty:
        shown.loc[0] = [text.NOT_RUN] * len(shown.columns)
    caption = (
        f"lm-eval's own task definitions, mean over {seeds_per_arm(frame) if len(frame) else 'no seed'}; ± is "
        "lm-eval's standard error over documents, mean of the runs. † near chance: within two standard errors of "
        "guessing; such a cell tells arms apart by luck only, so conclusions rest on the held-out loss. "
        f"{text.paper_note('Table 1')}"
    )
    return Table("downstream", "evaluation", "Downstream tasks", caption, rows, shown, experiment)


def layer_table(records: Records, experiment: str) -> Table:
    """Measures of specialisation per layer and arm."""
    frame = measures.layer_frame(records, experiment)
    rows = (
        frame.drop(columns="seed").groupby(["layer", "arm"], sort=False).mean().reset_index().assign(status="measured")
    )
    rows = rows.sort_values("layer", kind="stable")
    names = {
        "divergence": "JSD (nats)",
        "information": "mutual inf. (nats)",
        "hot_experts": "hot experts",
        "hot_overlap": "overlap of hot experts",
        "top_k_score_sum": "top-K score sum",
        "largest_frequency": "largest frequency",
        "max_vio": "MaxVio",
        "load_entropy": "load entropy / log E",
    }
    shown = rows.rename(columns=names)
    for column in names.values():
        shown[column] = shown[column].map(text.number)
    shown["layer"] = shown["layer"].astype(str)
    routing = records.run(experiment, records.reference(experiment)).routing
    domains, _, experts = routing.counts_DLE.shape
    caption = (
        f"Held-out routing, mean over {seeds_per_arm(frame)}. Uniform routing gives JSD 0, mutual information 0 (at "
        f"most log D = {math.log(domains):.3f}), hot experts 0, top-K score sum K/E = {routing.top_k / experts:.3f}, "
        f"largest frequency 1/E = {1 / experts:.4f} (mean over domains of the busiest expert's share), MaxVio 0, load "
        "entropy 1. With domains weighed equally, mutual information is also their generalised Jensen-Shannon "
        f"divergence; JSD here is the mean over pairs. {HOT} The paper prints no such measure."
    )
    return Table("layers", "routing", "Specialisation per layer", caption, rows, shown, experiment)


def latency_table(records: Records, experiment: str) -> Table:
    """Training step time and inference latency per arm, with learned and with forced-balanced routing."""
    frame, references = measures.latency_frame(records, experiment), records.references(experiment)
    steps = measures.step_frame(records, experiment)
    steps = steps.assign(log_seconds=steps["seconds"].map(math.log))
    ratios = measures.arm_differences(steps, "log_seconds", references.items(), pairs=("seed", "repetition"))
    rows, shown = [], []
    for (arm, runs), ratio in zip(frame.groupby("arm", sort=False), ratios, strict=True):
        means, seeds = runs.drop(columns=["arm", "seed"]).median(), int(runs["train_step_ms"].count())
        status = "measured" if seeds else text.NOT_RUN
        rows.append({"arm": arm, "seeds": seeds, **means, **ratio_columns(ratio), "status": status})
        line = {
            "arm": arm,
            "seeds": str(seeds),
            "train step p50 (ms)": text.number(means["train_step_ms"], 1),
        }
        line[f"ratio to {records.reference_name(experiment)} [95 %]"] = (
            "reference" if arm == references[arm] else text.ratio(ratio)
        )
        for phase in ("prefill", "decode"):
            for kind in ("learned", "balanced"):
                pair = (text.number(means[f"{phase}_{kind}_{level}_ms"], 2) for level in ("p50", "p95"))
                line[f"{phase} {kind} p50 / p95 (ms)"] = " / ".join(pair)
        shown.append(line | {"status": status})
    caption = (
        f"{_timing_settings(records)} Ratio: geometric mean over the repetitions of the step time divided by that of "
        "its reference arm in the same repetition, which ran beside it, on the same batch where both have the same "
        "data, with the 95 % t interval of its logarithm; it holds for this machine and these runs. Balanced: the same "
        f"model with every expert forced to an equal load. {text.paper_note('Table 5')}"
    )
    return Table(
        "latency", "latency", "Step time and latency", caption, pd.DataFrame(rows), pd.DataFrame(shown), experiment
    )


def _with_error(value: float, error: float) -> str:
    return f"{text.number(value)} ± {text.number(error)}" if not math.isnan(error) else text.number(value)


def _timing_settings(records: Records) -> str:
    if not records.latency:
        return "No run was timed."
    settings = records.latency.settings
    return (
        f"Measured alone on the machine, {settings.repeats} repetitions after {settings.warmup} that are not counted; "
        f"prefill of {settings.batch_sequences} sequences of {settings.prompt_tokens} tokens; decode: one more "
        "position of each."
    )
