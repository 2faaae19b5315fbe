"""Shares of a finished scale from the times of its jobs and the speed of its steps."""

import json
from pathlib import Path

import pytest

from benchmarks.pipeline import measure, text
from moe.config import RunConfig
from moe.sweep import run_name
from tests.conftest import tiny_config


def job(folder: Path, name: str, rule: str, start: float, end: float) -> None:
    """One output of a job, as Snakemake keeps it."""
    path = folder / ".snakemake" / "metadata" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"rule": rule, "starttime": start, "endtime": end, "log": [f"{rule}-{start}.log"]}))


def finished(folder: Path, runs: dict[str, RunConfig]) -> None:
    """Two runs on two cores for 100 s, in which each of them trained 40 s; all steps of a run take 20."""
    (folder / "results" / "tiny").mkdir(parents=True)
    (folder / "results" / "tiny" / "runs.json").write_text(json.dumps({"runs": [{"run": run} for run in runs]}))
    for run, config in runs.items():
        speed = config.train.steps * config.train.batch_sequences * config.data.sequence_length / 20
        path = folder / "results" / "runs" / run
        path.mkdir(parents=True)
        (path / "config.json").write_text(config.model_dump_json())
        lines = [json.dumps({"step": step, "tokens_per_second": speed}) for step in (1, 2, 3)]
        (path / "speed.jsonl").write_text("\n".join(lines))
    job(folder, "x/model", "train", 1000.0, 1040.0)
    job(folder, "x/record", "train", 1000.0, 1040.0)
    job(folder, "y/record", "train", 1001.0, 1041.0)
    job(folder, "z", "evaluate", 1041.0, 1100.0)
    job(folder, "c", "run_config", 1000.0, 1001.0)


def test_steps_are_told_from_all_else_and_outputs_of_one_job_are_one_job(tiny_data, tmp_path: Path) -> None:
    config = tiny_config(tiny_data[0])
    finished(tmp_path, {"a-s1": config, "a-s2": config})
    record = measure(tmp_path, "tiny", 2)
    assert record["wall_seconds"] == 100 and record["jobs_per_rule"]["train"] == 2
    assert record["training_step_seconds"] == pytest.approx(40)
    assert record["share_of_all_else"] == pytest.approx(1 - 40 / 200)
    assert record["seconds_per_added_run"] == pytest.approx((80 + 59 + 1) / 2)
    assert "all else is 80% of the wall time" in text(record) and "one more run   70.0 s" in text(record)


def test_steps_that_a_run_takes_over_from_its_parent_are_not_its_own(tiny_data, tmp_path: Path) -> None:
    parent = tiny_config(tiny_data[0], balance={"terms": [{"window": "global"}]})
    quarter = parent.train.steps // 4
    terms = [{"window": "global", "end_step": quarter}, {"window": 1, "start_step": quarter}]
    child = tiny_config(tiny_data[0], balance={"terms": terms})
    finished(tmp_path, {run_name(parent): parent, "child": child})
    share = 1 - quarter / parent.train.steps
    assert share < 1 and measure(tmp_path, "tiny", 2)["training_step_seconds"] == pytest.approx(20 + 20 * share)
    finished(tmp_path / "alone", {"other": parent, "child": child})
    assert measure(tmp_path / "alone", "tiny", 2)["training_step_seconds"] == pytest.approx(40)
