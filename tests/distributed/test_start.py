"""One training on several machines of a SLURM job, through accelerate; both machines are this one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import tiny_config
from tests.distributed.test_ranks import curve
from tests.stage import ROOT, start, training

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


def test_the_processes_of_two_machines_train_the_run_of_one_process(tiny_data, tmp_path: Path) -> None:
    config, packed = tiny_data
    config = tiny_config(config, train={"sequences_per_pass": 2})
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(config.model_dump_json())
    hardware = {"nodes": 2, "shard": True, "log_every": 4, "checkpoint_every": 6}
    arguments = ["--config", run / "config.json", "--data", packed, "--state", run / "state"]
    done = subprocess.run(
        [sys.executable, "-m", "moe", "train", *arguments, "--hardware", json.dumps(hardware)],
        cwd=ROOT,
        env={
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",  # else accelerate looks for GPUs
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NODELIST": "machine[1-2]",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "train.json").read_text())["processes"] == 2
    lines = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    for a, b in zip(curve(config, packed, tmp_path / "alone", 1), lines, strict=True):
        # fp32 sums in another order.
        assert b["lm_loss"] == pytest.approx(a["lm_loss"], rel=2e-5)


def test_several_machines_outside_of_a_cluster_are_refused_in_one_sentence(
    tiny_data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    config, packed = tiny_data
    command = training(tmp_path, packed, tiny_config(config))
    process = start(*command[:-1], json.dumps({"nodes": 2}))
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert error.startswith("error: hardware.nodes is 2: ") and error.count("\n") == 1
