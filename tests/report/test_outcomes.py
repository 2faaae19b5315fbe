"""A verdict is what the adjusted p-value and the side of the mean say, and the same everywhere."""

import json
import os
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from moe.analysis.statistics import PairedDifference
from moe.report.comparison_tables import contrast_table
from moe.report.outcome_tables import prediction_table, recovery_table, share_text
from moe.report.outcomes import Outcome, outcomes
from moe.report.records import Records
from moe.report.tables import headline_text
from moe.scale import Expectation
from moe.settings import ConfigError

ARMS = {"a": 0.02, "b": 0.0, "c": 0.001, "d": 0.0}


def outcome(direction, mean, p, margin=None):
    pair = {"claim": "c", "first": "x", "second": "y"}
    expectation = Expectation.model_validate(pair | {"direction": direction, "margin": margin})
    return Outcome("e", expectation, PairedDifference(mean, 3, mean - 1, mean + 1, p, None, 0.1), p, p, 1.0)


@pytest.mark.parametrize(
    ("direction", "mean", "margin", "verdict"),
    [
        ("lower", -0.02, None, "confirmed"),
        ("lower", 0.02, None, "refuted"),
        ("higher", 0.02, None, "confirmed"),
        ("higher", -0.02, None, "refuted"),
        ("equal", 0.005, 0.01, "confirmed"),
        ("equal", -0.005, 0.01, "confirmed"),
        ("equal", -0.02, 0.01, "refuted"),
    ],
)
def test_the_side_of_the_mean_tells_once_the_adjusted_p_is_small(direction, mean, margin, verdict):
    assert outcome(direction, mean, 0.05, margin).verdict == verdict
    assert outcome(direction, mean, 0.051, margin).verdict == "unresolved"
    assert outcome(direction, mean, None, margin).verdict == "unresolved"


def set_losses(root, records, values):
    """Write held-out losses: (arm, seed) -> nats."""
    for row in json.loads(records.read_text())["runs"]:
        path = root / "runs" / row["run"] / "evaluation.json"
        record = json.loads(path.read_text())
        record["average"]["nats"] = float(values[row["arm"], row["seed"]])
        path.write_text(json.dumps(record))


@pytest.fixture
def small(tmp_path, synthetic):
    """Four arms, three seeds, one layer and domain; predictions in two experiments."""
    seeds, noise = (0, 1, 2), np.random.default_rng(0)
    expect = [
        {"claim": "a above b", "first": "a", "second": "b", "direction": "higher"},
        {"claim": "c level with d", "first": "c", "second": "d", "direction": "equal", "margin": 0.05},
    ]
    base = {"title": "t", "question": "q", "prediction": "p", "paper": "Table 2"}
    axes = {"x": {"arms": {arm: {"train.learning_rate": 0.001 * (1 + i)} for i, arm in enumerate(ARMS)}}}
    experiments = {
        "one": base | {"axes": axes, "expect": expect, "recovery": {"from": "a", "to": "b", "by": ["c", "d"]}},
        "two": base | {"axes": axes, "expect": [expect[0] | {"direction": "lower"}]},
    }
    experiments = {name: synthetic.Experiment.model_validate(raw) for name, raw in experiments.items()}
    records, runs = synthetic.write_records(tmp_path, experiments, seeds=seeds, domains=("x",), latency=False)
    values = {(arm, seed): 3 + seed + ARMS[arm] + 1e-3 * noise.normal() for arm in ARMS for seed in seeds}
    set_losses(tmp_path, records, values)
    return Records(records, runs), values


def test_p_values_are_adjusted_over_the_predictions_of_an_experiment_and_of_all(small):
    book, values = small
    found = outcomes(book)
    assert [(item.experiment, item.verdict) for item in found] == [
        ("one", "confirmed"), ("one", "confirmed"), ("two", "refuted"),
    ]  # fmt: skip
    a, b, c, d = ([values[arm, seed] for seed in range(3)] for arm in "abcd")
    paired = stats.ttest_rel(a, b)
    # The nearer margin decides of equality: the two one-sided tests, each at half the level.
    level = 2 * max(stats.ttest_rel(c, d - np.full(3, 0.05), alternative="less").pvalue,
                    stats.ttest_rel(c, d + np.full(3, 0.05), alternative="less").pvalue)  # fmt: skip
    near = 2 * stats.ttest_1samp(np.subtract(c, d) - 0.05, 0, alternative="less").pvalue
    assert level > near
    assert [item.p for item in found] == pytest.approx([paired.pvalue, near, paired.pvalue])
    by_hand = sorted([paired.pvalue, near, paired.pvalue])
    by_hand = np.maximum.accumulate([3 * by_hand[0], 2 * by_hand[1], by_hand[2]])
    assert sorted(item.p_holm_all for item in found) == pytest.approx(by_hand)
    first, second = sorted([paired.pvalue, near])
    assert sorted(item.p_holm for item in found[:2]) == pytest.approx([2 * first, max(2 * first, second)])
    assert found[2].p_holm == found[2].p, "a family of its own"


@pytest.mark.parametrize("measure", ["divergence", "dropped"])
def test_a_prediction_in_a_measure_that_was_not_taken_is_unresolved(small, measure):
    book, _ = small
    expect = book.table.experiments["one"].expect[0].model_copy(update={"measure": measure})
    changed = book.table.experiments["one"].model_copy(update={"expect": (expect,)})
    book.table.experiments["one"] = changed  # one domain has no divergence, and no capacity drops nothing
    found = outcomes(book)
    assert (found[0].difference, found[0].verdict) == (None, "unresolved")
    assert found[1].p_holm == found[1].p  # it does not count in the family
    table = prediction_table(book, "one", found)
    assert table is not None and table.display is not None
    assert table.display[["verdict", "seeds", "p"]].values.tolist() == [["unresolved", "0", "none"]]


def test_shares_of_the_gain_are_ratios_of_paired_differences_beside_the_papers(small):
    book, values = small
    table = recovery_table(book, "one")
    assert table is not None and recovery_table(book, "two") is None
    rows = table.frame.set_index("arm")
    gain = np.mean([values["a", seed] - values["b", seed] for seed in range(3)])
    part = np.mean([values["a", seed] - values["c", seed] for seed in range(3)])
    assert rows.loc["c", "share"] == pytest.approx(part / gain)
    assert rows.loc["c", "low"] < rows.loc["c", "share"] < rows.loc["c", "high"]
    quoted = rows.loc[["shuffle"]]
    assert quoted["share"].tolist() == pytest.approx([0.977, 0.913], abs=1e-3) and set(quoted["status"]) == {"quoted"}


def test_a_share_without_a_certain_gain_says_that_its_interval_is_unbounded(small, tmp_path):
    book, values = small
    noise = {key: 3 + 0.1 * np.sin(31 * i) for i, key in enumerate(values)}
    set_losses(tmp_path, tmp_path / "runs.json", noise)
    table = recovery_table(Records(tmp_path / "runs.json", tmp_path / "runs"), "one")
    assert table is not None and table.display is not None
    assert table.display["share of the gain [95 %]"][0].endswith("(interval unbounded: no gain is told apart from 0)")
    assert table.frame["unbounded"][0]
    assert share_text(None) == "no paired seed"


def test_predictions_of_unknown_arms_or_measures_are_refused(tmp_path, synthetic):
    experiments = {"balance_window": synthetic.PREDICTED_EXPERIMENT}
    records, runs = synthetic.write_records(tmp_path, experiments, seeds=(0,))
    for key, value in (("first", "glbal"), ("measure", "nats")):
        table = json.loads(records.read_text())
        table["experiments"]["balance_window"]["expect"][0][key] = value
        (tmp_path / "other.json").write_text(json.dumps(table))
        with pytest.raises(ConfigError, match=f"'{value}'"):
            Records(tmp_path / "other.json", runs)


def test_page_tables_and_terminal_give_the_same_verdicts(drawn):
    table = pd.read_csv(drawn.tables / "predictions.csv").set_index("claim")
    assert table["verdict"].tolist() == ["confirmed", "refuted", "unresolved"]
    own = pd.read_csv(drawn.tables / "balance_window-predictions.csv").set_index("claim")
    pd.testing.assert_frame_equal(table, own)
    text = headline_text(drawn.records, drawn.runs)
    assert "3 predictions: 1 confirmed, 1 refuted, 1 unresolved" in text
    for claim, verdict in table["verdict"].items():
        assert f"{verdict}: {claim}" in text
        group = drawn.page.split(f'<h3 id="{verdict}">')[1].split("<h3")[0]
        assert f'<th scope="row">{claim}</th>' in group
        assert f'<span class="badge {verdict}">{verdict}</span> {claim}' in drawn.pages["balance_window.html"]


def test_the_headline_takes_its_verdict_from_its_prediction(drawn):
    """One rule on a page: the paper's claim is not judged by the interval alone where it is a prediction."""
    p_holm = pd.read_csv(drawn.tables / "predictions.csv")["p_holm"][0]
    found = re.search(r"adjusted for the 3 predictions of this experiment ([\d.]+)\. The paper", drawn.page)
    assert found and float(found[1]) == pytest.approx(p_holm, rel=0.05)


NOISE = {
    "normal": (lambda rng, shape: rng.standard_normal(shape), 0.95),
    # The known weakness of a t interval, beside which the tables' seeds are to be read.
    "exponential": (lambda rng, shape: rng.standard_exponential(shape) - 1, 0.886),
}


PAIRS, TRUTH = 80, -0.02


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, synthetic):
    """Many pairs of arms at six seeds, and their contrasts; their records differ in the evaluation alone."""
    root = tmp_path_factory.mktemp("pairs")
    contrasts = [(f"first {i}", f"second {i}") for i in range(PAIRS)]
    axes = {"x": {"field": "train.learning_rate", "values": [0.001]}}
    raw = {"title": "t", "question": "q", "prediction": "p", "axes": axes, "contrasts": contrasts}
    experiments = {"pairs": synthetic.Experiment.model_validate(raw)}
    options = dict.fromkeys(("latency", "tasks", "estimators"), False)
    records, runs = synthetic.write_records(root, experiments, seeds=(0,), domains=("x",), **options)
    table = json.loads(records.read_text())
    (row,) = table["runs"]
    arms = [(arm, seed) for pair in contrasts for arm in pair for seed in range(6)]
    table["runs"] = [row | {"run": f"r{i}", "arm": arm, "seed": seed} for i, (arm, seed) in enumerate(arms)]
    records.write_text(json.dumps(table))
    for i in range(len(arms)):
        shutil.copytree(runs / row["run"], runs / f"r{i}", copy_function=os.link)
        evaluation = runs / f"r{i}" / "evaluation.json"
        evaluation.unlink()
        shutil.copyfile(runs / row["run"] / "evaluation.json", evaluation)
    return root


@pytest.mark.parametrize("n", [3, 6])
@pytest.mark.parametrize("name", NOISE)
def test_intervals_of_written_records_cover_as_those_of_numbers_do(pairs, name, n):
    """From records to the table: every interval is scipy's of the written numbers, and as many hold the truth.

    `pytest -rP -k cover tests/report/test_outcomes.py` prints how many.
    """
    draw, expected = NOISE[name]
    rng = np.random.default_rng(n)
    seconds = 3 + rng.normal(size=(PAIRS, n))
    firsts = seconds + TRUTH + 0.01 * draw(rng, (PAIRS, n))
    runs = json.loads((pairs / "runs.json").read_text())
    runs["runs"] = [row for row in runs["runs"] if row["seed"] < n]
    records = pairs / f"{name}-{n}.json"
    records.write_text(json.dumps(runs))
    values = {(f"first {i}", seed): firsts[i, seed] for i, seed in np.ndindex(PAIRS, n)}
    values |= {(f"second {i}", seed): seconds[i, seed] for i, seed in np.ndindex(PAIRS, n)}
    set_losses(pairs, records, values)
    table = contrast_table(Records(records, pairs / "runs"), "pairs").frame
    table = table[table["measure"] == "heldout_nats"]
    p, low, high = (table[column].to_numpy(dtype=float) for column in ("p", "low", "high"))
    theirs = stats.ttest_rel(firsts, seconds, axis=1)
    interval = theirs.confidence_interval(0.95)
    np.testing.assert_allclose(p, theirs.pvalue)
    np.testing.assert_allclose((low, high), (interval.low, interval.high))
    covered = np.mean((low <= TRUTH) & (high >= TRUTH))
    print(f"{name} differences, n = {n}: {covered:.2f} of {PAIRS} intervals of the table hold the truth")
    assert covered == pytest.approx(expected, abs=3.5 * (expected * (1 - expected) / PAIRS) ** 0.5)
