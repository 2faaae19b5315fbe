"""A difference of differences is scipy's paired interval of the written numbers, between neighbouring levels alone."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from moe.report.comparison_tables import interaction_table
from moe.report.page import SECTIONS
from moe.report.records import Records
from moe.report.tables import write_tables

WINDOWS, SIZES = ("global", "one"), ("2", "4", "8")
GAINS = [(f"global / {size}", f"one / {size}") for size in SIZES]


@pytest.fixture
def grid(tmp_path, synthetic):
    """A function of contrasts: records of two windows at three sizes with three seeds, and the losses of every arm."""

    def write(contrasts, *, missing=()):
        axes = {
            "window": {"arms": {name: {"train.learning_rate": 1e-3} for name in WINDOWS}},
            "size": {"arms": {name: {"train.learning_rate": 1e-3} for name in SIZES}},
        }
        raw = {"title": "t", "question": "q", "prediction": "p", "contrasts": contrasts}
        arms = {f"{window} / {size}": {"window": window, "size": size} for window in WINDOWS for size in SIZES}
        flat = raw | {"axes": {"x": {"arms": {arm: {"train.learning_rate": 1e-3} for arm in arms}}}}
        experiments = {"grid": synthetic.Experiment.model_validate(flat)}
        options = dict.fromkeys(("latency", "tasks", "estimators", "drop"), False)
        records, runs = synthetic.write_records(tmp_path, experiments, domains=("a", "b"), **options)
        table = json.loads(records.read_text())
        table["experiments"]["grid"] = synthetic.Experiment.model_validate(raw | {"axes": axes}).model_dump(mode="json")
        table["runs"] = [
            row | {"labels": arms[row["arm"]]} for row in table["runs"] if (row["arm"], row["seed"]) not in missing
        ]
        records.write_text(json.dumps(table))
        rng = np.random.default_rng(2)
        losses = {arm: 3 + rng.normal(size=3) for arm in arms}
        for row in table["runs"]:
            path = runs / row["run"] / "evaluation.json"
            record = json.loads(path.read_text())
            record["average"]["nats"] = float(losses[row["arm"]][row["seed"]])
            path.write_text(json.dumps(record))
        return Records(records, runs), losses

    return write


def test_rows_are_scipys_intervals_of_four_arms_and_holm_is_over_them(grid):
    book, losses = grid(GAINS)
    table = interaction_table(book, "grid")
    assert table is not None and table.display is not None
    assert table.frame[["axis", "level", "before"]].values.tolist() == [["size", "4", "2"], ["size", "8", "4"]]
    p_values = []
    for row, (size, before) in zip(table.frame.itertuples(), (("4", "2"), ("8", "4")), strict=True):
        theirs = stats.ttest_rel(
            losses[f"global / {size}"] - losses[f"one / {size}"],
            losses[f"global / {before}"] - losses[f"one / {before}"],
        )
        interval = theirs.confidence_interval()
        middle = (interval.low + interval.high) / 2
        assert (row.difference, row.low, row.high) == pytest.approx((middle, interval.low, interval.high))
        assert row.pairs == 3 and row.p == pytest.approx(theirs.pvalue)
        p_values.append(theirs.pvalue)
    least, most = sorted(p_values)
    assert sorted(table.frame["p_holm"]) == pytest.approx([min(1, 2 * least), max(min(1, 2 * least), most)])
    assert table.display["contrasts"][0] == "(global / 4 − one / 4) − (global / 2 − one / 2)"
    assert "Exploratory: not one of the predictions" in table.caption
    assert table.section in dict(SECTIONS)


def test_levels_that_are_not_neighbours_and_contrasts_across_both_axes_make_no_row(grid):
    book, _ = grid([GAINS[0], GAINS[2], ("global / 4", "one / 2"), ("one / 8", "global / 8")])
    assert interaction_table(book, "grid") is None


def test_four_arms_that_contrasts_on_both_axes_compare_are_one_row(grid):
    book, _ = grid([*GAINS[:2], ("global / 4", "global / 2"), ("one / 4", "one / 2")])
    table = interaction_table(book, "grid")
    assert table is not None and len(table.frame) == 1
    both = [(f"{window} / 8", f"{window} / 2") for window in WINDOWS]
    book, losses = grid([*GAINS, *both])
    table = interaction_table(book, "grid")
    assert table is not None and table.frame["axis"].tolist() == ["size", "size", "window"]
    last = table.frame.iloc[-1]
    assert (last["level"], last["before"]) == ("one", "global")
    by_hand = losses["one / 8"] - losses["one / 2"] - (losses["global / 8"] - losses["global / 2"])
    assert last["difference"] == pytest.approx(by_hand.mean())


def test_a_seed_counts_where_all_four_arms_have_it(grid, tmp_path):
    book, _ = grid(GAINS, missing=[("one / 4", 0), ("global / 8", 0), ("one / 8", 1)])
    table = interaction_table(book, "grid")
    assert table is not None
    assert table.frame["pairs"].tolist() == [2, 1]
    write_tables(book.path, tmp_path / "runs", tmp_path / "tables")
    written = pd.read_csv(tmp_path / "tables" / "grid-interactions.csv")
    assert written["p"][1] == written["p_holm"][1] == "one seed: no interval"


def test_one_axis_or_no_contrast_makes_no_table(drawn, grid):
    assert not (drawn.tables / "balance_window-interactions.csv").exists()
    assert interaction_table(Records(drawn.records, drawn.runs), "balance_window") is None
    book, _ = grid([])
    assert interaction_table(book, "grid") is None
