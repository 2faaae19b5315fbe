"""Stages as processes that a test may stop, and what they leave."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from moe.config import RunConfig
from moe.data.order import TrainingBatches

ROOT = Path(__file__).parents[1]


def command(*args: object) -> list[str]:
    """One stage."""
    return [sys.executable, "-m", "moe", *map(str, args)]


def environment() -> dict[str, str]:
    """What a stage runs in."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def start(*args: object, stdin: int | None = None) -> "subprocess.Popen[str]":
    """One stage in a process group of its own."""
    return subprocess.Popen(
        command(*args),
        cwd=ROOT,
        env=environment(),
        stdin=stdin,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until(happened: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    for _ in range(2400):
        if happened():
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.025)
    raise AssertionError("it did not happen in a minute")


def training(folder: Path, packed: Path, config: RunConfig, processes: int = 1, *, shard: bool = False) -> list[object]:
    """Arguments of a training in `folder`."""
    run = folder / "run"
    run.mkdir(parents=True)
    (run / "config.json").write_text(config.model_dump_json())
    hardware = json.dumps({"log_every": 4, "checkpoint_every": 4, "processes": processes, "shard": shard})
    where = ["--config", run / "config.json", "--data", packed, "--state", folder / "state"]
    return ["train", *where, "--hardware", hardware]


def saved_steps(folder: Path) -> list[int]:
    return sorted(int(path.name[:8]) for path in (folder / "state").glob("[0-9]*-*.safetensors"))


def stop_before(step: int, error: type[BaseException], patch: pytest.MonkeyPatch) -> None:
    """Let training in this process end with `error` when it asks for the batch of the step."""
    tokens = TrainingBatches.tokens

    def read(self: TrainingBatches, asked: int):
        if asked == step:
            raise error
        return tokens(self, asked)

    patch.setattr(TrainingBatches, "tokens", read)


def weights(folder: Path) -> str:
    return json.loads((folder / "run" / "train.json").read_text())["weights_sha256"]


def group(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """What is alive of the process group that `start` has made."""
    found = []
    for other in psutil.process_iter():
        try:
            if os.getpgid(other.pid) == process.pid and other.status() != psutil.STATUS_ZOMBIE:
                found.append(other)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found
