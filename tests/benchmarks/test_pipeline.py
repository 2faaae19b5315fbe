"""Shares of a finished scale from the times of its jobs and the speed of its steps."""

import json
from pathlib import Path

import pytest

from benchmarks.pipeline import measure, text
from moe.config import RunConfig
from tests.conftest import tiny_config


def job(folder: Path, name: str, rule: str, start: float, end: float) -> None:
    """One output of a job, as Snakemake keeps it."""
    path = folder / ".snakemake" / "metadata" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"rule": rule, "starttime": start, "endtime": end, "log": [f"{rule}-{start}.log"]}))


def finished(folder: Path, config: RunConfig) -> None:
    """Two runs on two cores for 100 s, in which each of them trained 40 s and made steps for half of that."""
    runs = ["a-s1", "a-s2"]
    (folder / "results" / "tiny").mkdir(parents=True)
    (folder / "results" / "tiny" / "runs.json").write_text(json.dumps({"runs": [{"run": run} for run in runs]}))
    speed = config.train.steps * config.train.batch_sequences * config.data.sequence_length / 20
    for run in runs:
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
    finished(tmp_path, tiny_config(tiny_data[0]))
    record = measure(tmp_path, "tiny", 2)
    assert record["wall_seconds"] == 100 and record["jobs_per_rule"]["train"] == 2
    assert record["training_step_seconds"] == pytest.approx(40)
    assert record["share_of_all_else"] == pytest.approx(1 - 40 / 200)
    assert record["seconds_per_added_run"] == pytest.approx((80 + 59 + 1) / 2)
    assert "all else is 80% of the wall time" in text(record) and "one more run   70.0 s" in text(record)
