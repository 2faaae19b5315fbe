"""What is said of the estimators of f is what their record says."""

import json
import xml.etree.ElementTree as ElementTree
from html import escape

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from moe.report import text
from moe.report.estimator_advice import advice
from moe.report.estimator_figure import estimator_figure
from moe.report.page import write_page
from moe.report.record_types import EstimatorsRecord
from moe.report.records import Records
from moe.report.style import context
from moe.report.tables import headline_text
from moe.settings import ConfigError


def record(errors, seconds, *, steps=(10, 20), layers=2):
    """A record with given relative errors, (estimator, passes) -> error, and seconds, (estimator, passes) -> list."""
    gradients = [
        {"step": s, "estimator": e, "passes": p, "layer": i, "cosine": 0.9, "relative_error": error}
        for (e, p), error in errors.items() for s in steps for i in range(layers)
    ]  # fmt: skip
    timed = [{"estimator": e, "passes": p, "seconds": values} for (e, p), values in seconds.items()]
    head = {"schema": "moe-estimators/1", "code": "c", "run": "r", "seed": 3, "batch_sequences": 32}
    return EstimatorsRecord.model_validate({**head, "gradients": gradients, "step_seconds": timed})


def timed(ratios, prefix=(1.0, 1.1, 1.3)):
    """Seconds of exact and prefix whose ratios are `ratios`, passes -> ratio; they vary a little by repetition."""
    seconds = {("prefix", p): list(prefix) for p in ratios}
    wobble = np.exp([-0.001, 0, 0.001])
    return seconds | {("exact", p): (ratio * np.array(prefix) * wobble).tolist() for p, ratio in ratios.items()}


@pytest.fixture(scope="module")
def raw(drawn):
    return json.loads((drawn.root / "estimators.json").read_text())


def test_the_table_has_means_and_ranges_over_steps_of_the_mean_over_layers(drawn, raw):
    table = pd.read_csv(drawn.tables / "estimators.csv")
    for estimator, passes in (("prefix", 8), ("ema 4", None)):
        rows = [row for row in raw["gradients"] if (row["estimator"], row["passes"]) == (estimator, passes)]
        shown = table[(table["estimator"] == estimator) & (table["passes"].isin([str(passes or 8)]))].iloc[0]
        for measure in ("relative_error", "cosine"):
            by_step, by_layer = {}, {}
            for row in rows:
                by_step.setdefault(row["step"], []).append(row[measure])
                by_layer.setdefault(row["layer"], []).append(row[measure])
            means = [np.mean(values) for values in by_step.values()]
            expected = (np.mean(means), min(means), max(means))
            found = [float(shown[f"{measure}{end}"]) for end in ("", "_low", "_high")]
            assert found == pytest.approx(expected, rel=1e-6)
            for layer, values in by_layer.items():
                assert float(shown[f"{measure}_layer_{layer}"]) == pytest.approx(np.mean(values), rel=1e-6)


def test_step_times_are_compared_with_prefix_repetition_by_repetition(drawn, raw):
    table = pd.read_csv(drawn.tables / "estimators.csv").set_index(["estimator", "passes"])
    seconds = {(row["estimator"], row["passes"]): np.array(row["seconds"]) for row in raw["step_seconds"]}
    logs = np.log(seconds["exact", 8] / seconds["prefix", 8])
    interval = stats.ttest_1samp(logs, 0).confidence_interval()
    row = table.loc[("exact", "8")]
    found = [float(row[name]) for name in ("ratio", "ratio_low", "ratio_high")]
    assert found == pytest.approx([np.exp(logs.mean()), *np.exp(interval)], rel=1e-6)


def test_every_estimator_and_number_of_passes_has_one_row(drawn, raw):
    table = pd.read_csv(drawn.tables / "estimators.csv", dtype=str)
    found = list(zip(table["estimator"], table["passes"], strict=True))
    assert len(found) == len(set(found))
    measured = {(row["estimator"], str(row["passes"])) for row in raw["gradients"] if row["passes"]}
    were_timed = {(row["estimator"], str(row["passes"])) for row in raw["step_seconds"]}
    assert set(found) == measured | were_timed | {("ema 16", "any"), ("ema 64", "any")}
    assert (table[table["estimator"] == "previous"]["relative_error"].nunique()) == 1
    assert (table[table["estimator"] == "pass"]["ratio"] == text.NOT_RUN).all()


RULE = "The rule: “exact” where all of the interval of its cost lies below 5 % of a step with “prefix”"
ERRORS = {("pass", 2): 0.5, ("prefix", 2): 0.2, ("pass", 8): 1.5, ("prefix", 8): 0.4, ("ema 4", None): 0.3}


@pytest.mark.parametrize(
    ("errors", "ratios", "expected"),
    [
        (ERRORS, {2: 1.03, 8: 1.04}, "By gradient: “exact” at 2 and 8 passes."),
        (ERRORS, {2: 1.03, 8: 1.06}, "By gradient: “exact” at 2 passes, and “ema 4” at 8 passes."),
        (ERRORS, {2: 1.06, 8: 1.06}, "By gradient: “prefix” at 2 passes, and “ema 4” at 8 passes."),
        (ERRORS, {1: 1.0, 2: 0.9, 8: 0.9}, "By gradient: “exact” at 2 and 8 passes."),
        (ERRORS, {8: 1.06}, "By gradient: “ema 4” at 8 passes."),
        (ERRORS, {8: 1.0495}, "By gradient: “ema 4” at 8 passes."),  # its interval reaches beyond
        (ERRORS | {("prefix", 8): 0.3001}, {8: 1.06}, "By gradient: “prefix” or “ema 4” at 8 passes."),
        ({("previous", None): 0.7}, {1: 1.0, 4: 1.2}, "By gradient: “previous” at 4 passes."),
        (
            ERRORS | {("pass", 2): 0.1},
            {2: 1.06, 8: 1.06},
            "By gradient: “prefix” at 2 passes, and “ema 4” at 8 passes.",
        ),
        (ERRORS, {4: 1.0}, "Nothing is advised: “exact” was not timed"),
        ({("previous", None): 0.7}, {1: 1.0}, "With one accumulation pass nothing is estimated"),
    ],
)
def test_the_advice_follows_from_time_and_error_by_its_rule(errors, ratios, expected):
    first = advice(record(errors, timed(ratios)))[0]
    assert first.startswith(expected)
    assert (RULE in first) == first.startswith("By gradient")


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (1.06, "At 8 passes “exact” costs +6.0 % [+5.7 %, +6.3 %] a step against “prefix”; "),
        (1.001, "At 8 passes “exact” is not told apart from “prefix” in time: +0.1 % [−0.1 %, +0.3 %] a step; "),
        (0.98, "At 8 passes “exact” takes less time than “prefix”: −2.0 % [−2.2 %, −1.8 %] a step; "),
    ],
)
def test_a_sentence_for_each_number_of_passes_has_cost_and_error(ratio, expected):
    sentences = advice(record(ERRORS, timed({8: ratio})))[1:]
    assert [sentence.split(" “")[0] for sentence in sentences] == ["At 2 passes", "At 8 passes"]
    assert sentences[0].startswith("At 2 passes “exact” was not timed; ")
    assert sentences[1].startswith(expected)
    end = "“ema 4” comes nearest, with a relative gradient error of 0.30 (“prefix” 0.40, “pass” 1.5)."
    assert sentences[1].endswith(end)


def test_one_repetition_gives_a_cost_without_an_interval():
    seconds = {("exact", 8): [1.1], ("prefix", 8): [1.0]}
    sentence = advice(record({("prefix", 8): 0.1}, seconds))[1]
    assert "costs +10.0 % a step against “prefix” (one repetition: no interval)" in sentence
    with context():
        panel = estimator_figure(record({("prefix", 8): 0.1}, seconds)).axes[1]
    assert panel.get_title("left") == "Cost of exact counts: one repetition, no interval"


def test_the_figure_shows_every_estimator_and_labels_its_axes(drawn, raw):
    nodes = ElementTree.parse(drawn.figures / "estimators.svg").iter()
    words = {"".join(node.itertext()).strip() for node in nodes if node.tag.endswith("}text")}
    names = {row["estimator"] for row in raw["gradients"]}
    units = {"relative error, against exact", "step time above prefix (%)", "accumulation passes of an optimizer step"}
    assert names | units | {"1", "2", "8", "32", "0.5"} <= words
    assert not [word for word in words if "$" in word]


@pytest.mark.parametrize("errors", [{("prefix", 1): 0.0}, {("prefix", 2): 0.13, ("previous", None): 0.14}])
def test_errors_of_zero_or_close_together_can_be_drawn(tmp_path, errors):
    with context():
        figure = estimator_figure(record(errors, timed({1: 1.0, 2: 1.02})))
        figure.savefig(tmp_path / "figure.svg")
        low, high = figure.axes[0].get_ylim()
    assert all(low <= error <= high for error in errors.values() if error)


def test_the_page_and_the_terminal_carry_the_advice(drawn, raw):
    sentences = advice(EstimatorsRecord.model_validate(raw))
    section = drawn.page.split('<h2 id="estimators">')[1].split("</section>")[0]
    positions = [section.index(escape(sentence)) for sentence in sentences]
    assert positions == sorted(positions)
    assert positions[-1] < section.index("<img") < section.index("<table")
    assert 'href="#estimators"' in drawn.page
    assert headline_text(drawn.records, drawn.runs).endswith("\n".join(sentences))


def test_a_scale_without_the_record_says_nothing_of_estimators(hostile):
    assert "estimators" not in hostile.page.lower()
    assert not list(hostile.tables.glob("estimators*"))
    assert not list(hostile.figures.glob("estimators*"))
    assert "Estimators" not in headline_text(hostile.records, hostile.runs)


def test_the_provenance_names_what_made_the_record(tmp_path, drawn, raw):
    path, original = drawn.root / "estimators.json", (drawn.root / "estimators.json").read_text()
    try:
        path.write_text(json.dumps(raw | {"device": "Another machine", "code": "0123456789ab"}))
        write_page(drawn.records, drawn.runs, drawn.tables, drawn.figures, tmp_path / "index.html")
    finally:
        path.write_text(original)
    provenance = (tmp_path / "index.html").read_text().split('<h2 id="provenance">')[1]
    assert "Another machine" in provenance
    assert "0123456789ab" in provenance


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("gradients", {"relative_error": float("nan")}),
        ("gradients", {"relative_error": -0.1}),
        ("gradients", {"passes": 0}),
        ("step_seconds", {"seconds": [0.0]}),
        ("step_seconds", {"seconds": []}),
        ("schema", "moe-estimators/2"),
        ("gradients", []),
    ],
)
def test_a_record_that_cannot_be_right_is_damaged(tmp_path, synthetic, part, change):
    records, runs = synthetic.write_records(tmp_path, seeds=(0,))
    path = tmp_path / "estimators.json"
    content = json.loads(path.read_text())
    content[part] = [content[part][0] | change] if isinstance(change, dict) else change
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"estimators\.json: damaged .*; delete it and run: snakemake"):
        Records(records, runs)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (3e-6, "< 0.00001"), (0.000123, "0.00012"), (0.0999, "0.100"), (0.126, "0.13"), (12.6, "13")],
)
def test_errors_keep_two_significant_digits_of_plain_numbers(value, shown):
    assert text.significant(value) == shown
