"""A record that is missing or damaged is named, with the command that makes it again."""

import json
from math import nan

import pytest

from moe.report.figures import training_drawing
from moe.report.measures import curve_frame
from moe.report.records import Records
from moe.report.tables import write_tables
from moe.settings import ConfigError

FILES = ("config.json", "train.json", "train.jsonl", "speed.jsonl", "evaluation.json", "routing.parquet")


@pytest.fixture
def copy(tmp_path, synthetic):
    return synthetic.write_records(tmp_path, seeds=(0,))


@pytest.mark.parametrize("name", FILES)
def test_a_missing_record_is_named_with_its_command_and_leaves_nothing(copy, tmp_path, name):
    missing = next(copy[1].iterdir()) / name
    missing.unlink()
    with pytest.raises(ConfigError, match="missing; make it with: snakemake --config scale=cpu") as error:
        write_tables(*copy, tmp_path / "tables")
    assert str(missing) in str(error.value)
    assert not (tmp_path / "tables").exists()


@pytest.mark.parametrize(
    "name", [*FILES, "counts.parquet", "../../latency.json", "../../estimators.json", "../../runs.json"]
)
def test_a_damaged_record_is_named_with_its_command(copy, tmp_path, name):
    damaged = (next(copy[1].iterdir()) / name).resolve()
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    with pytest.raises(ConfigError, match=r"damaged .*; delete it and run: snakemake") as error:
        write_tables(*copy, tmp_path / "tables")
    assert str(damaged) in str(error.value)


def test_a_record_of_another_schema_or_with_nan_is_damaged(copy, tmp_path):
    path = next(copy[1].iterdir()) / "evaluation.json"
    good = json.loads(path.read_text())
    for bad in (good | {"schema": "moe-evaluation/9"}, good | {"average": good["average"] | {"nats": float("nan")}}):
        path.write_text(json.dumps(bad))
        with pytest.raises(ConfigError, match="damaged"):
            write_tables(*copy, tmp_path / "tables")


def test_a_missing_runs_table_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"runs\.json: missing"):
        Records(tmp_path / "runs.json", tmp_path)


def test_a_contrast_of_an_unknown_arm_is_refused(copy):
    table = json.loads(copy[0].read_text())
    table["experiments"]["balance_window"]["contrasts"] = [["global", "glbal"]]
    copy[0].write_text(json.dumps(table))
    with pytest.raises(ConfigError, match="names the arm 'glbal'"):
        Records(*copy)


def test_the_seconds_of_a_run_are_its_tokens_over_its_speeds(copy):
    path = next(copy[1].iterdir()) / "speed.jsonl"
    # 1,638,400 tokens in 400 steps; the second speed is that of the last 300 steps alone.
    lines = [{"step": 100, "tokens_per_second": 4096.0}, {"step": 400, "tokens_per_second": 8192.0}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert Records(*copy).runs[path.parent.name].seconds == pytest.approx(100 + 150)


def test_a_speed_of_zero_is_damaged(copy):
    (next(copy[1].iterdir()) / "speed.jsonl").write_text('{"step": 400, "tokens_per_second": 0}\n')
    with pytest.raises(ConfigError, match=r"speed\.jsonl: damaged"):
        Records(*copy)


def test_the_balance_curve_is_that_of_the_first_term_that_acts_in_each_step(copy):
    records, runs = copy
    (hybrid,) = runs.glob("*-3-s0")
    path = hybrid / "train.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    both = [line["balance"] for line in lines]
    for i, line in enumerate(lines):  # neither term acts, then each alone, then both
        line["balance"] = [first if keep else None for first, keep in zip(both[i], (i % 2, i // 2 % 2), strict=True)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    book = Records(records, runs)
    curves = curve_frame(book, "balance_window").query("arm == 'hybrid'")
    first, second = ([sum(terms[i]) / len(terms[i]) for terms in both] for i in (0, 1))
    expected = [(nan, first[i], second[i], first[i])[i % 4] for i in range(len(lines))]
    assert curves["balance"].tolist() == pytest.approx(expected, nan_ok=True)
    assert curves["balance_0"].isna().tolist() == [i % 2 == 0 for i in range(len(lines))]
    panel = training_drawing(book, "balance_window").figure.axes[2]
    drawn = next(line for line in panel.lines if line.get_label() == "hybrid")
    assert drawn.get_ydata() == pytest.approx(expected, nan_ok=True)
