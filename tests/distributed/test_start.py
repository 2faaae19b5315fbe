"""One training on several machines of a SLURM job, through accelerate; both machines are this one."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from moe import cli
from moe.branches import branch, branch_folder
from moe.config import RunConfig
from tests.conftest import tiny_config
from tests.distributed.test_ranks import curve
from tests.stage import ROOT, command, environment, start, training

# What SLURM does: names the machines of a job, and runs a command on each of them.
SCONTROL = "#!/bin/bash\necho 127.0.0.1\necho second\n"
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
SLURM_NODEID=1 "$@" &
SLURM_NODEID=0 "$@"
status=$?
wait
exit $status
"""


def two_machines(tmp_path: Path, packed: Path, config: RunConfig, *args: object) -> Path:
    """Train by one process on each of two machines; the folder of the run."""
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    hardware = {"nodes": 2, "shard": True, "log_every": 4, "checkpoint_every": 6}
    *arguments, _ = training(tmp_path / "job", packed, config)
    done = subprocess.run(
        command(*arguments, json.dumps(hardware), *args),
        cwd=ROOT,
        env={
            **environment(),
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "ACCELERATE_USE_CPU": "true",  # else accelerate looks for GPUs
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NODELIST": "machine[1-2]",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return tmp_path / "job" / "run"


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_processes_of_two_machines_train_the_run_of_one_process(tiny_data, tmp_path: Path) -> None:
    config, packed = tiny_data
    config = tiny_config(config, train={"sequences_per_pass": 2})
    run = two_machines(tmp_path, packed, config)
    assert json.loads((run / "train.json").read_text())["processes"] == 2
    lines = lines_of(run / "train.jsonl")
    for a, b in zip(curve(config, packed, tmp_path / "alone", 1), lines, strict=True):
        # fp32 sums in another order.
        assert b["lm_loss"] == pytest.approx(a["lm_loss"], rel=2e-5)


def test_two_machines_start_a_branch_where_its_parent_has_left_its_state(tiny_data, tmp_path: Path) -> None:
    data, packed = tiny_data
    terms = [{"window": 1, "weight": 0.5, "end_step": 6}, {"window": 12, "weight": 0.5, "start_step": 6}]
    child = tiny_config(data, train={"sequences_per_pass": 2}, balance={"terms": terms})
    found = branch(child)
    assert found
    parent, step = found
    arguments = training(tmp_path / "parent", packed, parent)
    assert cli.main([*map(str, arguments), "--keep", str(step)]) == 0
    left = branch_folder(tmp_path / "parent" / "state", step)
    run = two_machines(tmp_path, packed, child, "--from", left)
    shared = [line for line in lines_of(tmp_path / "parent" / "run" / "speed.jsonl") if line["step"] <= step]
    # Two trainings of a step never take the same time.
    assert shared and lines_of(run / "speed.jsonl")[: len(shared)] == shared, "the shared steps are not trained again"
    # fp32 sums in another order.
    expected = curve(child, packed, tmp_path / "alone", 1)[-1]["lm_loss"]
    assert lines_of(run / "train.jsonl")[-1]["lm_loss"] == pytest.approx(expected, rel=2e-5)


def test_several_machines_outside_of_a_cluster_are_refused_in_one_sentence(
    tiny_data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    config, packed = tiny_data
    *arguments, _ = training(tmp_path, packed, tiny_config(config))
    process = start(*arguments, json.dumps({"nodes": 2}))
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert error.startswith("error: hardware.nodes is 2: ") and error.count("\n") == 1
