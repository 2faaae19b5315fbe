"""The measures of specialisation in tables and figure are those of the records, and what is missing says so."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest

from moe.report import measures
from moe.report.records import Records
from moe.report.specialisation_measures import drop_frame, ownership


@pytest.fixture(scope="module")
def records(drawn):
    return Records(drawn.records, drawn.runs)


def test_damage_equals_a_loop_over_the_experts_that_a_domain_selects_most(records) -> None:
    run = records.arms("balance_window")["global"][1]
    counts, dropped = run.routing.counts_DLE, run.evaluation.drop_expert
    domains = run.routing.domains
    own, other = [], []
    for d, domain in enumerate(domains):
        share = counts[d] / counts[d].sum(axis=-1, keepdims=True)
        mine = {(layer, expert) for layer, expert in np.ndindex(share.shape) if share[layer, expert] > 2 / 16}
        mine |= {(layer, int(share[layer].argmax())) for layer in range(len(share))}
        losses = [dict(zip(dropped.sequences, dropped.nats[layer][expert], strict=True)) for layer, expert in mine]
        own.append(np.mean([loss[domain] for loss in losses]))
        other.append(np.mean([loss[name] for loss in losses for name in domains if name != domain]))
    found = ownership(run)
    assert found["own_damage"] == pytest.approx(np.mean(own)) and found["other_damage"] == pytest.approx(np.mean(other))
    assert found["damage_gap"] == pytest.approx(np.mean(own) - np.mean(other))


def test_stability_equals_a_loop_over_the_recorded_batches(drawn, records) -> None:
    (entry,) = [row for row in records.table.runs if row.arm == "hybrid" and row.seed == 2]
    rows = pd.read_parquet(drawn.runs / entry.run / "counts.parquet")
    strongest = {}
    for (step, layer), part in rows.groupby(["step", "layer"]):
        totals = part.groupby("domain", sort=False)["counts"].agg(lambda lists: np.sum(np.stack(list(lists)), axis=0))
        totals = totals.loc[records.runs[entry.run].routing.domains]
        shares = np.stack([total / total.sum() for total in totals])
        strongest[step, layer] = [totals.index[d] for d in shares.argmax(axis=0)]
    same = [a == b for layer in range(3) for a, b in zip(strongest[200, layer], strongest[400, layer], strict=True)]
    assert ownership(records.runs[entry.run])["stability"] == pytest.approx(np.mean(same))


def test_sequences_of_several_domains_do_not_count_for_stability(synthetic, tmp_path) -> None:
    table, runs = synthetic.write_records(tmp_path, seeds=(0,))
    name, run = next(iter(Records(table, runs).runs.items()))
    before = ownership(run)
    path = runs / name / "counts.parquet"
    rows = pq.read_table(path)
    mixed = rows.set_column(rows.column_names.index("domain"), "domain", pa.array(["arxiv+news"] * len(rows)))
    more = mixed.set_column(2, "position", pa.compute.add(mixed["position"], 32).cast(pa.int32()))
    pq.write_table(pa.concat_tables([rows, more]), path)
    assert ownership(Records(table, runs).runs[name]) == before
    pq.write_table(mixed, path)
    assert np.isnan(ownership(Records(table, runs).runs[name])["stability"])


def test_domains_may_be_recorded_in_another_order_than_those_of_the_routing(records) -> None:
    run = records.arms("balance_window")["global"][0]
    before = ownership(run)
    dropped = run.evaluation.drop_expert
    turned = {name: dropped.sequences[name] for name in reversed(dropped.sequences)}
    nats = [[values[::-1] for values in layer] for layer in dropped.nats]
    changed = dropped.model_copy(update={"sequences": turned, "nats": nats})
    run.evaluation = run.evaluation.model_copy(update={"drop_expert": changed})
    assert ownership(run) == before


def test_the_table_has_every_measure_of_every_arm_and_differences_to_the_reference(drawn, records) -> None:
    table = pd.read_csv(drawn.tables / "balance_window-specialisation.csv")
    assert list(table["measure"].unique())[-4:] == ["own_damage", "other_damage", "damage_gap", "stability"]
    frame = measures.run_frame(records, "balance_window")
    row = table[(table["measure"] == "damage_gap") & (table["arm"] == "global")].iloc[0]
    gaps = frame.pivot(index="seed", columns="arm", values="damage_gap")
    reference = records.reference("balance_window")
    assert row["mean"] == pytest.approx(gaps["global"].mean(), rel=1e-6)
    assert float(row["difference"]) == pytest.approx((gaps["global"] - gaps[reference]).mean(), rel=1e-6)
    assert float(row["low"]) < float(row["difference"]) < float(row["high"])


def test_hot_experts_and_their_overlap_are_those_of_the_routing_file(drawn) -> None:
    table = pd.read_csv(drawn.tables / "balance_window-specialisation.csv").set_index(["measure", "arm"])["mean"]
    layers = pd.read_csv(drawn.tables / "balance_window-routing.csv").groupby("arm")[["hot_experts", "hot_overlap"]]
    counts, overlaps = [], []
    for seed in range(3):
        rows = pd.read_parquet(drawn.runs / f"balance_window-2-s{seed}" / "routing.parquet")
        for _, layer in rows.groupby("layer"):
            share = layer.groupby("domain")["tokens"].transform(lambda tokens: tokens / tokens.sum())
            hot = layer[share >= 2 / 16].groupby("domain")["expert"].agg(set).reindex(layer["domain"].unique())
            sets = [found if isinstance(found, set) else set() for found in hot]
            counts.append(np.mean([len(found) for found in sets]))
            overlaps += [len(a & b) / max(1, len(a | b)) for i, a in enumerate(sets) for b in sets[:i]]
    assert 0 < np.mean(overlaps) < 1
    assert table["hot_experts", "global"] == pytest.approx(np.mean(counts), rel=1e-6)
    assert table["hot_overlap", "global"] == pytest.approx(np.mean(overlaps), rel=1e-6)
    assert layers.mean().loc["global"].tolist() == pytest.approx([np.mean(counts), np.mean(overlaps)], rel=1e-6)


def test_what_was_not_measured_is_not_run_and_has_no_figure(drawn, hostile) -> None:
    names = {entry["name"] for entry in json.loads((hostile.figures / "index.json").read_text())}
    assert "drop" not in names and (drawn.figures / "balance_window-drop.svg").exists()
    shown = (hostile.tables / "rates-specialisation.md").read_text()
    assert "| not run | not run |" in shown
    assert "damage" not in (hostile.tables / "rates-contrasts.md").read_text()
    book = Records(hostile.records, hostile.runs)
    assert drop_frame(book, "rates").empty


def test_the_data_of_the_figure_hold_the_recorded_increases(drawn, records) -> None:
    data = pd.read_csv(drawn.tables / "balance_window-drop.csv")
    run = records.arms("balance_window")["hybrid"][1]
    dropped = run.evaluation.drop_expert
    at = (data.arm == "hybrid") & (data.seed == 1) & (data.layer == 2) & (data.expert == 5)
    found = data[at].set_index("domain")["increase_nats"]
    for d, name in enumerate(dropped.sequences):
        assert found[name] == pytest.approx(dropped.nats[2][5][d], rel=1e-5)
