"""Estimates of step time: perfect balance is the unit, arms are told apart, and what was not measured is said."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe.analysis.stragglers import draw
from moe.report import straggler_measures as stragglers
from moe.report.records import Records
from moe.report.straggler_tables import scale_tables
from moe.report.tables import write_tables


@pytest.fixture(scope="module")
def records(drawn):
    return Records(drawn.records, drawn.runs)


def test_one_device_waits_for_nobody_and_skew_costs_time(records):
    frame = stragglers.straggler_frame(records, "balance_window")
    dropless = frame[frame["capacity_factor"] == 0]
    assert np.allclose(dropless.loc[dropless["devices"] == 1, "ratio"], 1)
    # The synthetic choices are the more skewed the wider the window.
    far = dropless[(dropless["devices"] == 512)].groupby("arm")["ratio"].mean()
    assert far["global"] > far["4 sequences"] > far["1 sequence"] > 1 and far[stragglers.RANDOM] > 1
    parts = frame[["experts_ms", "all_to_all_ms", "dense_ms", "gradients_ms"]].sum(axis=1)
    assert np.allclose(parts, frame["step_ms"])


def test_capacity_drops_less_and_waits_longer_the_larger_it_is(records):
    frame = stragglers.straggler_frame(records, "balance_window")
    apart = stragglers.all_apart(records, "balance_window")
    assert apart == 16  # the synthetic runs have as many experts
    rows = frame[(frame["devices"] == apart) & (frame["preset"] == stragglers.PRESET) & (frame["arm"] == "global")]
    means = rows[rows["capacity_factor"] > 0].groupby("capacity_factor")[["dropped", "ratio"]].mean()
    assert means["dropped"].is_monotonic_decreasing and means["ratio"].is_monotonic_increasing
    assert rows.loc[rows["capacity_factor"] == 0, "dropped"].eq(0).all()


def test_dropped_choices_are_those_of_the_recorded_file(drawn, records):
    """Counted from the parquet file alone, expert by expert of every micro-batch."""
    table = pd.read_parquet(drawn.runs / "balance_window-2-s1" / "counts.parquet")
    table = table[table["step"] == 200]  # of 400 steps: the first of the second half
    dropped, total = 0.0, 0.0
    for _, rows in table.groupby(["layer", "micro_batch"]):
        counts_E = np.sum(rows["counts"].tolist(), axis=0) * 4096 / 128
        capacity = np.ceil(1.25 * counts_E.sum() / 16)
        dropped += sum(max(0.0, count - capacity) for count in counts_E.tolist())
        total += counts_E.sum()
    run = records.arms("balance_window")["global"][1]
    counts_SLBE = stragglers.late_counts(run)
    assert counts_SLBE.shape == (2, 3, 32, 16)
    row = stragglers._rows("global", 1, run, counts_SLBE[:1], stragglers.LAYER, 16)
    found = [line["dropped"] for line in row if line["capacity_factor"] == 1.25]
    # Sixteen devices meet each of the eight micro-batches twice.
    assert found == [pytest.approx(dropped / total)]


def test_arms_of_other_experts_are_estimated_on_as_many_devices(synthetic, tmp_path):
    arms = {"coarse": {}, "fine": {"model.num_experts": 64, "model.top_k": 8, "model.expert_size": 32}}
    raw = synthetic.WINDOW_EXPERIMENT.model_dump() | {"axes": {"experts": {"arms": arms}}, "contrasts": ()}
    experiments = {"granularity": synthetic.Experiment.model_validate(raw)}
    records = Records(*synthetic.write_records(tmp_path, experiments, seeds=(0,), domains=("a", "b")))
    frame = stragglers.straggler_frame(records, "granularity")
    limited = frame[frame["capacity_factor"] > 0]
    assert set(limited["devices"]) == {16} and set(limited["arm"]) == {"coarse", "fine", stragglers.RANDOM}
    # As wide together: the same products in a balanced step.
    alone = frame[(frame["devices"] == 1) & (frame["capacity_factor"] == 0)].set_index("arm")["experts_ms"]
    assert alone["fine"] == pytest.approx(alone["coarse"])


def test_runs_without_counts_have_no_estimate_and_a_damaged_file_is_named(synthetic, tmp_path):
    records, runs = synthetic.write_records(tmp_path, seeds=(0,), latency=False)
    for path in runs.glob("*/counts.parquet"):
        path.unlink()
    write_tables(records, runs, tmp_path / "tables")
    names = {entry["file"] for entry in json.loads((tmp_path / "tables" / "index.json").read_text())}
    assert "balance_window-expert_parallel" not in names and {"count_sync", "paper"} <= names
    assert "straggler_check" not in names
    pq.write_table(pa.table({"step": [1]}), next(runs.iterdir()) / "counts.parquet")
    with pytest.raises(Exception, match=r"counts\.parquet: damaged"):
        write_tables(records, runs, tmp_path / "tables")


def test_the_check_is_stated_with_its_errors_wherever_the_model_is_used(drawn, records):
    frame = stragglers.check_frame(records.latency.expert_parallel)
    assert np.allclose(frame["predicted_ms"] / frame["measured_ms"] - 1, frame["error"])
    assert (frame.loc[frame["pattern"] == "balanced", ["measured_ratio", "predicted_ratio"]] == 1).all(axis=None)
    # The synthetic machine follows the model but for 10 % of noise.
    assert frame["error"].abs().median() < 0.3
    largest = f"{frame['error'].abs().max():.0%}".replace("%", " % at most")
    for text in (
        (drawn.tables / "balance_window-expert_parallel.md").read_text(),
        (drawn.tables / "straggler_check.md").read_text(),
        next(
            figure["caption"]
            for figure in json.loads((drawn.figures / "index.json").read_text())
            if figure["name"] == "stragglers"
        ),
    ):
        assert largest in text
    assert "Speed at scale" in drawn.page and "What synchronising the counts costs" in drawn.page


def test_groups_that_hold_every_recorded_micro_batch_are_alike_and_captions_say_so(drawn, records):
    counts_SLBE = stragglers.late_counts(records.arms("balance_window")["global"][0])
    counts_MLE = counts_SLBE[0].reshape(3, 8, 4, 16).sum(axis=2).swapaxes(0, 1)
    chosen_GLE = counts_MLE[draw(len(counts_MLE), 512, seed=0)]
    for group, alike in ((2, False), (4, False), (8, True), (16, True)):
        loads_ALE = chosen_GLE.reshape(512 // group, group, 3, 16).sum(axis=1)
        assert (loads_ALE == loads_ALE[0]).all() == alike
    figures = json.loads((drawn.figures / "index.json").read_text())
    said = [figure["caption"] for figure in figures if figure["name"] == "stragglers"]
    said += [(drawn.tables / f"balance_window-{name}.md").read_text() for name in ("expert_parallel", "capacity")]
    assert len(said) == 3
    assert all("a group whose devices are a multiple of 8 has all of them equally often" in text for text in said)


def test_estimates_are_marked_as_such(records):
    assert all(set(table.display["status"]) == {"estimated"} for table in scale_tables(records)[:1])


def test_a_window_within_a_rank_sends_nothing(records):
    frame = stragglers.sync_frame(records)
    alone, others = frame[frame["ranks"] == 1], frame[frame["ranks"] > 1]
    assert (alone[["sent_bytes", "ring_us", "tree_us", "share"]] == 0).all(axis=None)
    assert (others["sent_bytes"] > 0).all() and (others["sent_bytes"] < 2 * others["payload_bytes"]).all()
