"""Tables of step time under expert parallelism: per arm, per capacity factor, of the synchronised counts, and how far
the model is from real layers."""

import pandas as pd

from moe.analysis.stragglers import HARDWARE
from moe.report import measures, text
from moe.report import straggler_measures as stragglers
from moe.report.records import Records
from moe.report.table import Table, seeds_per_arm

SHOWN_DEVICES = (8, 32, 128, 512)


def straggler_tables(records: Records, experiment: str) -> list[Table]:
    """Step time and capacity per arm, with their data; none where no run of the experiment has recorded its choices."""
    frame = stragglers.straggler_frame(records, experiment)
    if frame.empty:
        return []
    note = (stragglers.straggler_frame.__doc__ or "").split("\n")[0]
    data = Table("stragglers", "data", "Data: stragglers", note, frame.assign(status="estimated"), None, experiment)
    return [_step_table(records, experiment, frame), _capacity_table(records, experiment, frame), data]


def model_note(records: Records, experiment: str) -> str:
    """What the estimates stand for, for the captions of the tables and the figure."""
    train = stragglers.reference_run(records, experiment).config.train
    micro_batches = train.batch_sequences // train.micro_sequences
    return (
        "Estimated: the choices in the recorded steps of the second half are measured, the times are those of a model; "
        f"a recorded sequence stands for one of {stragglers.LAYER.sequence_length:,} tokens in a layer of width "
        f"{stragglers.LAYER.hidden_size:,} with experts of {stragglers.LAYER.expert_size:,}, sizes of ours; nothing "
        f"overlaps. Beyond {micro_batches} devices the {micro_batches} micro-batches of a recorded step come again: a "
        f"group whose devices are a multiple of {micro_batches} has all of them equally often, so that the loads of "
        "the experts are alike in all such groups and waiting for the slowest group costs next to nothing there. "
        f"“{stragglers.RANDOM}”: as many independent uniform choices as “{records.reference(experiment)}” made, "
        "and compared with it; what chance alone costs."
    )


def scale_tables(records: Records) -> list[Table]:
    """The cost of summing counts, and the check of the model where it was measured."""
    measured = records.latency.expert_parallel if records.latency else None
    tables = [_sync_table(stragglers.sync_frame(records))]
    return [*tables, _check_table(records, stragglers.check_frame(measured))] if measured else tables


def _step_table(records: Records, experiment: str, frame: pd.DataFrame) -> Table:
    references = records.references(experiment)
    references[stragglers.RANDOM] = records.reference(experiment)
    dropless = frame[frame["capacity_factor"] == 0]
    apart = stragglers.all_apart(records, experiment)
    far = dropless[(dropless["devices"] == apart) & (dropless["preset"] == stragglers.PRESET)]
    arms = list(dict.fromkeys(frame["arm"]))
    pairs = [(arm, references[arm]) for arm in arms]
    differences = measures.arm_differences(far.assign(percent=100 * far["ratio"]), "percent", pairs)
    heading = f"{apart} devices: difference to {records.reference_name(experiment)} (points) [95 %]"
    rows, shown = [], []
    for arm, difference in zip(arms, differences, strict=True):
        own = dropless[dropless["arm"] == arm].groupby(["preset", "devices"])[["ratio", "step_ms"]].mean()
        by_devices, here = own.loc[stragglers.PRESET], own.loc[(stragglers.PRESET, apart)]
        by_preset = {preset: own.loc[(preset, apart), "ratio"] for preset in HARDWARE}
        seeds = dropless.loc[dropless["arm"] == arm, "seed"].nunique()
        columns = {f"ratio_{devices}": by_devices.loc[devices, "ratio"] for devices in stragglers.DEVICES}
        ends = {"difference": difference.mean, "low": difference.low, "high": difference.high} if difference else {}
        rows.append({"arm": arm, "seeds": seeds, **columns, **by_preset, "step_ms": here["step_ms"], **ends})
        line = {"arm": arm, "seeds": str(seeds)}
        line |= {f"{devices} devices": text.number(columns[f"ratio_{devices}"]) for devices in SHOWN_DEVICES}
        line[heading] = "reference" if arm == references[arm] else text.interval(difference, 2)
        line[f"{apart} devices: ms per layer"] = text.number(here["step_ms"], 2)
        line |= {f"{apart} devices, {preset}": text.number(by_preset[preset]) for preset in list(HARDWARE)[1:]}
        shown.append(line | {"status": "estimated"})
    caption = (
        f"Step time relative to perfect balance on {stragglers.PRESET}, dropless, mean over {seeds_per_arm(frame)}; "
        "1 waits for nobody. Points: percent of the balanced step, paired over seeds. "
        f"{model_note(records, experiment)} {stragglers.check_sentence(records)} {text.paper_note('Table 5')}"
    )
    title = "Step time under expert parallelism"
    frame = pd.DataFrame(rows).assign(status="estimated")
    return Table("expert_parallel", "latency", title, caption, frame, pd.DataFrame(shown), experiment)


def _capacity_table(records: Records, experiment: str, frame: pd.DataFrame) -> Table:
    apart = stragglers.all_apart(records, experiment)
    rows = frame[(frame["devices"] == apart) & (frame["preset"] == stragglers.PRESET)]
    means = rows.groupby(["arm", "capacity_factor"], sort=False)[["dropped", "ratio"]].mean().reset_index()
    shown = []
    for arm, own in means.groupby("arm", sort=False):
        own = own.set_index("capacity_factor")
        line = {"arm": arm}
        for factor in stragglers.CAPACITIES:
            line[f"factor {factor:g}: dropped / step time"] = (
                f"{100 * own.loc[factor, 'dropped']:.1f} % / {text.number(own.loc[factor, 'ratio'])}"
            )
        line["dropless: step time"] = text.number(own.loc[0.0, "ratio"])
        shown.append(line | {"status": "estimated"})
    caption = (
        "Share of the recorded choices that would be dropped if an expert took at most factor x (choices / E) from a "
        f"micro-batch, and the step time relative to perfect balance on {apart} devices, {stragglers.PRESET}; mean "
        f"over {seeds_per_arm(rows)}. They are the choices before any limit that a run was trained with. "
        f"{model_note(records, experiment)} The paper prints no such value."
    )
    title = "Capacity factor: dropped choices and step time"
    data = means.assign(status="estimated")
    return Table("capacity", "latency", title, caption, data, pd.DataFrame(shown), experiment)


def _sync_table(frame: pd.DataFrame) -> Table:
    wide = []
    for (name, ranks, window), rows in frame.groupby(["counts", "ranks", "window"], sort=False):
        first = rows.iloc[0]
        line = {"counts": f"{name}: {first['layers']} layers x {first['experts']} experts", "ranks": f"{ranks:,}"}
        line |= {"Balance BSZ (sequences)": f"{window:,}", "sent per rank (bytes)": f"{first['sent_bytes']:,.0f}"}
        for row in rows.itertuples():
            fastest = min(row.ring_us, row.tree_us)
            line[f"{row.preset} (µs; share of a pass)"] = f"{fastest:,.0f}; {100 * row.share:.3f} %"
        wide.append(line | {"status": "estimated"})
    caption = (
        "One all-reduce of the counts of all layers, 8 bytes each, which a window that spans ranks needs in every "
        "accumulation step; one within a rank sends nothing. Time: the faster of ring and tree between nodes of eight, "
        "by latencies and bandwidths that are assumed from public figures and not measured; share: of the time that "
        "the micro-batch computes. The paper puts all communication of its Table 5 at about 1 %."
    )
    title = "What synchronising the counts costs"
    return Table("count_sync", "latency", title, caption, frame.assign(status="estimated"), pd.DataFrame(wide))


def _check_table(records: Records, frame: pd.DataFrame) -> Table:
    shown = pd.DataFrame(
        {
            "selections": frame["pattern"],
            "tokens per process": frame["tokens"].astype(str),
            "measured (ms)": frame["measured_ms"].map(lambda value: text.number(value, 2)),
            "predicted (ms)": frame["predicted_ms"].map(lambda value: text.number(value, 2)),
            "error": frame["error"].map(_percent),
            "measured / balanced": frame["measured_ratio"].map(lambda value: text.number(value, 2)),
            "predicted / balanced": frame["predicted_ratio"].map(lambda value: text.number(value, 2)),
            "error of the ratio": frame["ratio_error"].map(_percent),
            "status": "measured",
        }
    )
    assert records.latency
    caption = (
        "Forward pass of a real expert-parallel layer: two processes, half of the experts each, rows sent over gloo; "
        f"the least of {records.latency.settings.repeats} repetitions. {stragglers.check_sentence(records)}"
    )
    title = "The straggler model against real layers"
    return Table("straggler_check", "latency", title, caption, frame.assign(status="measured"), shown)


def _percent(value: float) -> str:
    return f"{100 * value:+.0f} %".replace("-", "−")
