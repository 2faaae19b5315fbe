"""Numbers in tables are the numbers of the records, and what is missing says so."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from moe.analysis import specialisation
from moe.report import measures, paper, specialisation_table
from moe.report.claims import window_claim
from moe.report.loss_figures import headline_drawing
from moe.report.measurement_tables import downstream_table, latency_table
from moe.report.records import Records
from moe.report.style import context
from moe.report.tables import headline_text, write_tables


def losses(drawn, arm):
    rows = [row for row in json.loads(drawn.records.read_text())["runs"] if row["arm"] == arm]
    records = [json.loads((drawn.runs / row["run"] / "evaluation.json").read_text()) for row in rows]
    return [record["average"]["nats"] for record in records]


def test_the_headline_difference_is_scipys_paired_interval(drawn):
    row = pd.read_csv(drawn.tables / "balance_window-headline.csv").set_index("arm").loc["global"]
    ours, reference = losses(drawn, "global"), losses(drawn, "1 sequence")
    expected = stats.ttest_rel(ours, reference)
    interval = expected.confidence_interval()
    assert float(row["difference"]) == pytest.approx(np.mean(ours) - np.mean(reference), abs=1e-6)
    assert (float(row["low"]), float(row["high"])) == pytest.approx((interval.low, interval.high), rel=1e-5)
    assert float(row["p"]) == pytest.approx(expected.pvalue, rel=1e-5)


def test_layer_measures_come_from_the_routing_file(drawn):
    table = pd.read_csv(drawn.tables / "balance_window-routing.csv")
    routing = pd.read_parquet(drawn.runs / "balance_window-2-s1" / "routing.parquet")
    cube = np.stack([
        rows.pivot(index="layer", columns="expert", values="tokens").to_numpy()
        for _, rows in routing.groupby("domain", sort=False)
    ])  # fmt: skip
    row = table[(table["arm"] == "global") & (table["seed"] == 1)]
    expected = specialisation.mutual_information(specialisation.selection_frequency(cube))
    assert row["information"].to_numpy() == pytest.approx(expected, rel=1e-5)


def test_loads_in_training_are_means_over_the_second_half_and_absent_without_a_capacity(tmp_path, synthetic):
    records, runs = synthetic.write_records(tmp_path, seeds=(0, 1))
    path, rng = runs / "balance_window-2-s1" / "train.jsonl", np.random.default_rng(4)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line |= {"dead_experts": rng.integers(0, 9, size=3).tolist(), "dropped": rng.random(3).tolist()}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    frame = measures.run_frame(Records(records, runs), "balance_window").set_index(["arm", "seed"])
    for name in ("max_vio_micro", "dead_experts", "dropped"):
        late = [value for line in lines for value in line[name] if line["step"] > 200]  # of 400 steps
        assert len(late) == 3 * 20
        assert frame.loc[("global", 1), name] == pytest.approx(sum(late) / len(late))
    assert frame["dropped"].notna().tolist() == [key == ("global", 1) for key in frame.index]
    write_tables(records, runs, tmp_path / "tables")
    contrasts = (tmp_path / "tables" / "balance_window-contrasts.md").read_text()
    assert "| global − 1 sequence | dead experts per layer, in training |" in contrasts


ESTIMATES = ("stragglers", "expert_parallel", "capacity")


def test_every_written_table_marks_where_its_numbers_come_from(drawn):
    marks = {"paper": {"quoted"}, "paper-effects": {"quoted"}, "balance_window-variables": {"set"}}
    marks["balance_window-recovery"] = {"measured", "quoted"}
    marks |= dict.fromkeys(("count_sync", *(f"balance_window-{name}" for name in ESTIMATES)), {"estimated"})
    for path in drawn.tables.glob("*.csv"):
        status = set(pd.read_csv(path)["status"])
        assert status == marks.get(path.stem, {"measured"}), path.name


def test_no_cell_is_blank_and_what_was_not_run_says_so(drawn, hostile):
    for folder in (drawn.tables, hostile.tables):
        for path in folder.glob("*.csv"):
            frame = pd.read_csv(path, keep_default_na=False, dtype=str)
            assert not frame.map(lambda cell: cell.strip().lower() in ("", "nan")).to_numpy().any(), path.name
    assert "not run" in (hostile.tables / "rates-latency.md").read_text()
    assert "not run" in (hostile.tables / "rates-downstream.md").read_text()


def test_an_arm_that_was_not_timed_is_not_called_measured(tmp_path, synthetic):
    records, runs = synthetic.write_records(tmp_path, seeds=(0,))
    path = tmp_path / "latency.json"
    timed = json.loads(path.read_text())
    del timed["runs"]["balance_window-2-s0"]
    path.write_text(json.dumps(timed))
    table = latency_table(Records(records, runs), "balance_window")
    for frame in (table.frame, table.display):
        assert frame is not None
        assert frame.set_index("arm")["status"].eq("not run").to_dict() == {
            "1 sequence": False, "4 sequences": False, "global": True, "hybrid": False,
        }  # fmt: skip


def test_names_show_as_text_in_markdown_and_break_no_table(hostile):
    for path in hostile.tables.glob("rates-*.md"):
        text = path.read_text()
        lines = text.splitlines()
        assert "<" not in text
        assert "](" not in text
        assert lines[0].startswith("### ") and not [line for line in lines[1:] if line.startswith("#")]
        cells = [len(re.split(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")]
        assert len(set(cells)) == 1
        assert len(lines) == len(cells) + 4  # title, caption and the empty lines between
    assert r"| a \| b  # [c]\(javascript:alert(1)) &amp;lt; |" in (hostile.tables / "rates-headline.md").read_text()


def test_one_seed_gives_a_difference_without_an_interval(hostile):
    row = pd.read_csv(hostile.tables / "rates-headline.csv").set_index("arm").loc["high"]
    assert row["low"] == row["high"] == row["p"] == "one seed: no interval"
    assert "one seed: no interval" in (hostile.tables / "rates-headline.md").read_text()


def test_arms_are_paired_on_the_seeds_that_both_have(tmp_path, synthetic):
    records, runs = synthetic.write_records(tmp_path)
    table = json.loads(records.read_text())
    table["runs"] = [row for row in table["runs"] if (row["arm"], row["seed"]) != ("global", 2)]
    records.write_text(json.dumps(table))
    frame = measures.run_frame(Records(records, runs), "balance_window")
    difference = measures.arm_difference(frame, "heldout_nats", "global", "1 sequence")
    assert difference and difference.n == 2


@pytest.mark.parametrize(
    ("shift", "verdict", "said"),
    [(-0.1, "confirmed", "holds"), (0.1, "refuted", "refuted"), (None, "unresolved", "unresolved")],
)
def test_the_verdict_follows_the_interval(tmp_path, synthetic, shift, verdict, said):
    records, runs = synthetic.write_records(tmp_path)
    for row in json.loads(records.read_text())["runs"]:
        path = runs / row["run"] / "evaluation.json"
        record = json.loads(path.read_text())
        moved = (row["seed"] - 1) if shift is None else shift + 0.001 * row["seed"]
        record["average"]["nats"] = 3.0 + moved * (row["arm"] == "global")
        path.write_text(json.dumps(record))
    claim = window_claim(Records(records, runs), "balance_window")
    assert claim and claim[0] == verdict
    assert said in claim[1]


def test_the_terminal_table_opens_with_the_claim_and_names_every_arm(drawn):
    text = headline_text(drawn.records, drawn.runs)
    assert text.startswith("Pooling the balance loss over 32 sequences instead of one sequence lowers")
    assert all(arm in text for arm in ("1 sequence", "4 sequences", "global", "hybrid"))


def test_windows_form_one_curve_for_each_setting_of_the_other_axes(tmp_path, synthetic):
    arms = {
        f"{window} at {weight}": {"balance.terms": [{"window": window, "weight": weight}]}
        for weight in (0.01, 0.1)
        for window in (1, 8, 32)
    }
    arms["none"] = {"balance.terms": []}
    experiment = synthetic.WINDOW_EXPERIMENT.model_copy(update={"contrasts": ()})
    raw = experiment.model_dump() | {"axes": {"balance": {"arms": arms}}}
    experiments = {"weights": synthetic.Experiment.model_validate(raw)}
    book = Records(*synthetic.write_records(tmp_path, experiments, seeds=(0,)))
    curves = measures.window_groups(book, "weights")
    assert [[window for window, _ in curve] for curve in curves] == [[1, 8, 32], [1, 8, 32]]
    assert book.contrasts("weights")[0] == ("8 at 0.01", "1 at 0.01")


def crossed(synthetic, contrasts):
    """Windows by sizes of a batch, as an experiment with two axes."""
    axes = {
        "window": {"arms": {"1 sequence": {"balance.terms": [{"window": 1}]}, "global": {}}},
        "size": {"field": "train.micro_sequences", "values": [2, 4]},
    }
    raw = synthetic.WINDOW_EXPERIMENT.model_dump() | {"axes": axes, "contrasts": contrasts}
    return {"crossed": synthetic.Experiment.model_validate(raw)}


ACROSS = (("global / 2", "1 sequence / 2"), ("global / 4", "1 sequence / 4"), ("global / 4", "global / 2"))


def test_with_two_axes_an_arm_is_compared_at_its_own_label_of_the_other_axis(tmp_path, synthetic):
    records, runs = synthetic.write_records(tmp_path, crossed(synthetic, ACROSS))
    book = Records(records, runs)
    expected = {f"{window} / {size}": f"1 sequence / {size}" for window in ("1 sequence", "global") for size in (2, 4)}
    assert book.references("crossed") == expected
    write_tables(records, runs, tmp_path / "tables")
    rows = {name: pd.read_csv(tmp_path / "tables" / f"crossed-{name}.csv") for name in ("runs", "headline")}
    losses = rows["runs"].pivot(index="seed", columns="arm", values="heldout_nats")
    found = rows["headline"].set_index("arm")["difference"]
    assert float(found["global / 4"]) == pytest.approx(
        (losses["global / 4"] - losses["1 sequence / 4"]).mean(), abs=1e-6
    )
    assert (found[["1 sequence / 2", "1 sequence / 4"]] == "not run").all()
    measures_of = {"headline": 1, "specialisation": len(specialisation_table.SHOWN), "latency": 1, "expert_parallel": 1}
    for name, measured in measures_of.items():
        shown = (tmp_path / "tables" / f"crossed-{name}.md").read_text()
        assert "“1 sequence” at the same size" in shown and shown.count("| reference |") == 2 * measured
    with context():
        drawing = headline_drawing(book, "crossed")
    first, other = (axes.get_yticklabels() for axes in drawing.figure.axes[:2])
    assert "minus that of “1 sequence” at the same size" in drawing.caption
    assert sum("(reference)" in label.get_text() for label in first) == 2
    assert [label.get_text() for label in other] == ["global / 4\n− global / 2"]


def test_arms_are_said_to_share_data_order_and_initialisation_only_where_their_settings_agree(drawn):
    for name in ("headline", "contrasts"):
        shown = (drawn.tables / f"balance_window-{name}.md").read_text()
        assert "arms with the same data and batch settings have the same data order" in shown
        assert "arms with the same model settings the same initialisation" in shown


def test_without_contrasts_every_arm_is_compared_with_the_first(tmp_path, synthetic):
    book = Records(*synthetic.write_records(tmp_path, crossed(synthetic, ()), seeds=(0,)))
    assert set(book.references("crossed").values()) == {"1 sequence / 2"}
    assert book.reference_name("crossed") == "“1 sequence / 2”"


def test_quoted_items_are_found_as_experiments_name_them():
    assert paper.named_items("Table 1, Figures 1a and 2") == ["Table 1", "Figure 1", "Figure 2"]
    assert paper.named_items("Tables 2, 3; figure 4a") == ["Table 2", "Table 3", "Figure 4"]
    assert paper.named_items("") == []


def test_step_times_are_compared_repetition_by_repetition(drawn):
    row = pd.read_csv(drawn.tables / "balance_window-latency.csv").set_index("arm").loc["global"]
    steps = pd.read_csv(drawn.tables / "balance_window-steps.csv").pivot(
        index="repetition", columns="arm", values="seconds"
    )
    logs = np.log(steps["global"] / steps["1 sequence"])
    interval = stats.ttest_1samp(logs, 0).confidence_interval()
    assert row["ratio"] == pytest.approx(np.exp(logs.mean()), rel=1e-5)
    assert (row["ratio_low"], row["ratio_high"]) == pytest.approx(tuple(np.exp(interval)), rel=1e-5)


def test_parts_of_a_group_of_tasks_stay_out_of_the_table(tmp_path, synthetic):
    records, runs = synthetic.write_records(tmp_path, seeds=(0,))
    for path in runs.glob("*/evaluation.json"):
        record = json.loads(path.read_text())
        for name, value in (("mmlu", 0.25), ("mmlu_anatomy", 0.5), ("mmlu_virology", 0.0)):
            record["lm_eval"]["results"][name] = {"alias": name, "acc,none": value, "acc_stderr,none": 0.04}
            if name != "mmlu":
                record["lm_eval"]["n-samples"][name] = {"original": 100, "effective": 7}
        record["lm_eval"]["group_subtasks"] = {"mmlu": ["mmlu_anatomy", "mmlu_virology"]}
        path.write_text(json.dumps(record))
    table = downstream_table(Records(records, runs), "balance_window")
    assert table.display is not None
    row = table.display.set_index("task").loc["mmlu"]
    assert not table.display["task"].str.startswith("mmlu_").any()
    assert (row["documents"], row["chance"], row["global"]) == ("14", "0.25", "0.250 ± 0.040 †")


def test_one_domain_is_reported_without_a_divergence(tmp_path, synthetic):
    records, runs = synthetic.write_records(tmp_path, seeds=(0, 1), domains=("only",))
    write_tables(records, runs, tmp_path / "tables")
    table = pd.read_csv(tmp_path / "tables" / "balance_window-headline.csv").set_index("arm")
    assert (table["divergence"] == "not run").all()
    assert np.allclose(table["information"], 0)


def test_numbers_have_the_digits_that_all_processors_agree_on(drawn):
    texts = [path.read_text() for path in drawn.tables.glob("*.csv")]
    numbers = {float(cell) for text in texts for cell in re.findall(r"(?<=,)-?\d+\.\d+(?:e[-+]\d+)?(?=,)", text)}
    assert numbers and {number for number in numbers if number != float(f"{number:.7g}")} == set()
