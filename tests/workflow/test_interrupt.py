"""Killed or told to end in mid-training and called again: the same weights. Two calls at once: the second says so."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests.workflow.project import command, copy_project, environment, run

SENTENCE = "another Snakemake works in this folder"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """One run at the smoke scale that is long enough to be killed."""
    project = copy_project(tmp_path / "project")
    path = project / "config" / "scales" / "smoke.yaml"
    raw = yaml.safe_load(path.read_text())
    raw["seeds"] = [1]
    raw["train"]["steps"] = 600
    raw["hardware"]["checkpoint_every"] = 5
    path.write_text(yaml.safe_dump(raw))
    return project


def target(project: Path) -> str:
    names = run(project, "moe", "plan", "--scale", "smoke", "--list").stdout.split()
    return next(f"results/runs/{name}/train.json" for name in names if name.startswith("e8k2-w1-"))


def wait_for_state(project: Path, process: "subprocess.Popen[bytes]", newer_than: float) -> None:
    """Return when a checkpoint has been written after `newer_than`."""
    for _ in range(1200):
        times = [path.stat().st_mtime for path in (project / "results" / "state").glob("*/*") if path.exists()]
        if times and max(times) > newer_than:
            return
        assert process.poll() is None, "the training ended before it could be killed"
        time.sleep(0.1)
    raise AssertionError("no checkpoint was written")


def test_killed_or_told_to_end_the_same_command_continues_to_the_same_weights(project: Path):
    call = ("snakemake", "--config", "scale=smoke", "--", target(project))
    seen = 0.0
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        # A session of its own, so that the whole tree can be killed at once.
        process = subprocess.Popen(
            command(*call), cwd=project, env=environment(), stderr=subprocess.DEVNULL, start_new_session=True
        )
        wait_for_state(project, process, seen)
        jobs = psutil.Process(process.pid).children(recursive=True)
        assert any("moe" in job.cmdline() for job in jobs)
        if number == signal.SIGKILL:
            second = run(project, *call)
            assert second.returncode != 0
            assert SENTENCE in second.stderr
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)  # to Snakemake alone
        process.wait(timeout=30)
        assert not (project / call[-1]).exists(), "the training went on to its end"
        if number != signal.SIGKILL:
            assert [job for job in jobs if job.is_running()] == []
        seen = time.time()
    done = run(project, *call)
    assert done.returncode == 0, done.stderr
    assert SENTENCE not in done.stderr
    record = json.loads((project / call[-1]).read_text())
    (project / call[-1]).unlink()
    again = run(project, *call)
    assert again.returncode == 0, again.stderr
    uninterrupted = json.loads((project / call[-1]).read_text())
    assert record["weights_sha256"] == uninterrupted["weights_sha256"]
