"""What arms share and what they differ in are their resolved configs."""

import pytest

from moe.report.arm_settings import shared_settings, variable_table
from moe.report.records import Records


@pytest.fixture(scope="module")
def book(tmp_path_factory, synthetic):
    term = {"window": "global", "weight": 0.02}
    arms = {
        "one": {"balance.terms": [term | {"window": 1}]},
        "two": {"balance.terms": [term, {"window": 1, "weight": 0.001}], "train.steps": 500},
        "none": {"balance.terms": [], "model.normalize_top_k": True},
    }
    raw = synthetic.WINDOW_EXPERIMENT.model_dump() | {"axes": {"x": {"arms": arms}}, "contrasts": ()}
    experiments = {"e": synthetic.Experiment.model_validate(raw)}
    records = synthetic.write_records(tmp_path_factory.mktemp("settings"), experiments, seeds=(0, 1), domains=("a",))
    return Records(*records)


def test_every_field_is_either_shared_or_differs(book):
    shared = shared_settings(book, "e")
    rows = variable_table(book, "e").frame.set_index("arm")
    assert not set(shared) & set(rows.columns)
    assert "seed" not in shared and "seed" not in rows.columns
    # What the config sets beyond the defaults, and what is always told.
    assert shared["model.num_layers"] == "3"
    assert shared["train.batch_sequences"] == "32"
    assert shared["data.domains"].startswith("zh-law, arxiv")
    assert shared["parameters"] == "3,400,000 (900,000 active)"
    assert "train.weight_decay" not in shared


def test_fields_that_differ_are_told_for_each_arm_with_what_is_absent(book):
    rows = variable_table(book, "e").frame.set_index("arm")
    assert rows.loc["one", "balance.terms.0.window"] == "1"
    assert rows.loc["two", "balance.terms.1.weight"] == "0.001"
    assert rows.loc["one", "balance.terms.1.weight"] == "–"
    assert rows.loc["none", "balance.terms"] == "none"
    assert rows["train.steps"].to_dict() == {"one": "400", "two": "500", "none": "400"}
    assert rows["model.normalize_top_k"].to_dict() == {"one": "no", "two": "no", "none": "yes"}
