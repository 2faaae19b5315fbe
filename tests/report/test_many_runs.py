"""What is read, built and drawn does not grow faster than the runs do."""

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from moe.analysis.statistics import paired_difference
from moe.report import measures, records
from moe.report.figures import headline_drawing, write_figures
from moe.report.records import Records
from moe.report.style import context
from moe.report.tables import write_tables

ARMS = 30
CONTRAST = ("x" * 28, "x" * 29)


@pytest.fixture(scope="module")
def many(tmp_path_factory, synthetic):
    """Thirty arms with one seed: more than one figure has room for."""
    # The synthetic values of an arm are drawn by the length of its name.
    arms = {"x" * i: {"balance.terms": [{"window": 4, "weight": i / 100}]} for i in range(1, ARMS + 1)}
    experiment = synthetic.WINDOW_EXPERIMENT.model_copy(update={"contrasts": (CONTRAST,)})
    raw = experiment.model_dump() | {"axes": {"balance": {"arms": arms}}}
    experiments = {"grid": synthetic.Experiment.model_validate(raw)}
    return synthetic.write_records(tmp_path_factory.mktemp("many"), experiments, seeds=(0,), domains=("a", "b"))


def test_every_record_is_read_once_and_one_validator_is_made_for_each_type(many, tmp_path, monkeypatch):
    read, made = Counter(), []
    read_text, adapter = Path.read_text, records.TypeAdapter
    monkeypatch.setattr(Path, "read_text", lambda path, **named: read.update([path]) or read_text(path, **named))
    monkeypatch.setattr(records, "TypeAdapter", lambda schema: made.append(schema) or adapter(schema))
    records._adapter.cache_clear()
    write_tables(*many, tmp_path / "tables")
    assert {path.name for path in read} >= {"runs.json", "config.json", "train.json", "train.jsonl", "evaluation.json"}
    assert set(read.values()) == {1}
    assert len(made) == len(set(made)) >= 7


def test_many_contrasts_scan_the_frame_once_and_each_is_the_paired_difference(monkeypatch):
    generator = np.random.default_rng(0)
    rows = [
        {"arm": arm, "seed": seed, "x": generator.normal()}
        for arm in "abcd"
        for seed in range(9)
        if (arm, seed) != ("b", 4)
    ]
    frame = pd.DataFrame(rows).sample(frac=1, random_state=1)
    frame.loc[(frame["arm"] == "c") & (frame["seed"] == 2), "x"] = np.nan
    scans, dropna = [], pd.DataFrame.dropna
    monkeypatch.setattr(pd.DataFrame, "dropna", lambda self, **named: scans.append(1) or dropna(self, **named))
    contrasts = [(a, b) for a in "abcd" for b in "abcde"]
    found = dict(zip(contrasts, measures.arm_differences(frame, "x", contrasts), strict=True))
    assert len(scans) == 1
    wide = frame.pivot(index="seed", columns="arm", values="x")
    for (a, b), difference in found.items():
        if b == "e":
            assert difference is None
        else:
            both = wide[[a, b]].to_numpy()
            both = both[~np.isnan(both).any(axis=1)]
            assert difference == paired_difference(both[:, 0].tolist(), both[:, 1].tolist())


def test_of_many_arms_figures_show_the_reference_the_contrasts_and_the_lowest_losses(many):
    book = Records(*many)
    shown = measures.shown_arms(book, "grid")
    losses = measures.run_frame(book, "grid").set_index("arm")["heldout_nats"]
    assert len(shown) == measures.MOST_ARMS < ARMS
    assert shown == sorted(shown, key=len)
    assert set(CONTRAST) <= set(shown)
    left_out = set(losses.index) - set(shown)
    assert losses[list(left_out)].min() >= losses[[arm for arm in shown if arm not in CONTRAST]].max()
    with context():
        assert f"Shown are {measures.MOST_ARMS} of {ARMS} arms" in headline_drawing(book, "grid").caption


def test_figures_of_many_arms_have_room_for_axes_and_legend(many, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns where the legend leaves no room for the axes
        write_figures(*many, tmp_path / "figures")
    heights = {path.stem: Image.open(path).height for path in (tmp_path / "figures").glob("grid-*.png")}
    assert len(heights) == 9
    assert max(heights.values()) < 3_000
