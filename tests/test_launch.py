"""Several processes of one training: whatever happens to one, all end, one sentence is said and nothing is lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from moe import launch
from moe.interruption import STATUS
from tests.conftest import tiny_config
from tests.stage import group, saved_steps, start, training, wait_until, weights


def end_of_ranks(fault: str, process: "subprocess.Popen[str]") -> int:
    """Do `fault` to a training in two processes; the status that it should end with."""
    ranks = psutil.Process(process.pid).children()
    assert len(ranks) == 2
    if fault == "SIGTERM to the launching process":
        process.terminate()
        return STATUS[signal.SIGTERM]
    if fault == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
        return STATUS[signal.SIGINT]
    if fault == "SIGKILL of the launching process":
        process.kill()
        return -signal.SIGKILL
    ranks[int(fault.split()[-1])].kill()
    return 1


FAULTS = [
    "SIGTERM to the launching process",
    "Ctrl-C",
    "SIGKILL of the launching process",
    "SIGKILL of rank 1",
]


def test_several_ranks_end_together_with_one_sentence_and_go_on(tiny_data, tmp_path: Path):
    config, packed = tiny_data
    config = tiny_config(config, train={"steps": 80, "sequences_per_pass": 2})
    assert start(*training(tmp_path / "whole", packed, config, processes=2)).wait() == 0
    command = training(tmp_path / "stopped", packed, config, processes=2)
    seen = 0
    for fault in FAULTS:
        process = start(*command)
        wait_until(lambda: max(saved_steps(tmp_path / "stopped"), default=0) > seen, process)  # noqa: B023
        status = end_of_ranks(fault, process)
        began = time.monotonic()
        error = process.communicate(timeout=60)[1]  # ends when every rank has closed stderr
        assert time.monotonic() - began < 10, fault
        assert (process.returncode, error.count("\n")) == (status, status > 0), f"{fault}: {error}"
        while left := group(process):  # a killed process cannot tell its ranks; they notice
            assert time.monotonic() - began < 10, left
        seen = saved_steps(tmp_path / "stopped")[-1]
    assert start(*command).wait() == 0
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    assert {path.name for path in (tmp_path / "stopped").iterdir()} == {"run"}


def test_a_rank_that_has_stopped_leaves_the_first_one_the_time_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank, written = tmp_path / "rank", tmp_path / "written"
    rank.write_text(f"#!/bin/bash\n[ $RANK = 1 ] || {{ sleep 1; touch {written}; }}\nexit {STATUS[signal.SIGTERM]}\n")
    rank.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(rank))
    with rank.open() as lock:
        assert launch.launch([], processes=2, threads=1, lock=lock.fileno()) == STATUS[signal.SIGTERM]
    assert written.exists()
