"""Training: neutral settings change nothing, an interruption leaves no trace, and the record says what happened."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moe.config import HardwareConfig, RunConfig
from moe.settings import ConfigError
from moe.step import split_batch
from moe.train import train
from tests.conftest import tiny_config


def run(config: RunConfig, data_folder: Path, folder: Path, **hardware) -> dict:
    """Train in this process; the run's `train.json`."""
    train(
        config,
        run="tiny",
        data_folder=data_folder,
        run_folder=folder,
        state_folder=folder / "state",
        hardware=HardwareConfig(**{"log_every": 4, "checkpoint_every": 4, **hardware}),
    )
    return json.loads((folder / "train.json").read_text())


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["lm_loss"] for line in (folder / "train.jsonl").read_text().splitlines()]


def test_the_record_is_complete_and_the_loss_falls(tiny_data, tmp_path: Path) -> None:
    config, packed = tiny_data
    record = run(tiny_config(config, train={"steps": 40}), packed, tmp_path)
    first, *_, last = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert record["final"] == last
    assert last["step"] == 40 and last["tokens"] == 40 * 12 * 32 == record["tokens"]
    assert last["lm_loss"] < first["lm_loss"]
    assert len(last["balance"]) == 1 and len(last["balance"][0]) == 2
    for key in ("max_vio_global", "max_vio_micro", "load_entropy", "dead_experts", "z_loss"):
        assert len(last[key]) == 2, key
    assert set(last["seconds"]) == {"data", "forward", "sync", "backward", "optimizer"}
    assert not (tmp_path / "state").exists()


def test_weight_zero_equals_no_term_and_a_term_that_has_not_started(tiny_data, tmp_path: Path) -> None:
    config, packed = tiny_data
    hashes = set()
    for i, terms in enumerate(([], [{"window": 1, "weight": 0.0}], [{"window": 1, "weight": 1.0, "start_step": 4}])):
        # Compared after 4 steps: the last term acts from the fifth on, so its run is 4 steps of the longer schedule.
        settings = {"steps": 5, "learning_rate": 1e-3, "final_learning_rate": 1e-3, "warmup_steps": 0}
        folder = tmp_path / str(i)
        run(tiny_config(config, balance={"terms": terms}, train=settings), packed, folder, log_every=1)
        hashes.add(tuple(losses(folder)[:5]))
    assert len(hashes) == 1


def test_the_balance_term_changes_training(tiny_data, tmp_path: Path) -> None:
    config, packed = tiny_data
    run(tiny_config(config), packed, tmp_path / "a")
    run(tiny_config(config, balance={"terms": [{"window": 1, "weight": 0.05}]}), packed, tmp_path / "b")
    assert losses(tmp_path / "a") != losses(tmp_path / "b")


@pytest.mark.parametrize("window", [1, 4, 12])
def test_sequences_per_pass_and_checkpointing_leave_the_curve_unchanged(tiny_data, tmp_path: Path, window) -> None:
    config, packed = tiny_data
    curves = []
    for i, (per_pass, recompute) in enumerate([(12, False), (4, False), (2, False), (4, True)]):
        settings = {"sequences_per_pass": per_pass, "activation_checkpointing": recompute}
        terms = {"terms": [{"window": window, "weight": 0.5}]}
        run(tiny_config(config, train=settings, balance=terms), packed, tmp_path / str(i))
        curves.append(losses(tmp_path / str(i)))
    for curve in curves[1:]:
        # fp32 sums in another order; 12 steps do not amplify it beyond this.
        assert curve == pytest.approx(curves[0], rel=2e-5)


def test_prefix_differs_from_exact_under_accumulation_only(tiny_data, tmp_path: Path) -> None:
    config, packed = tiny_data

    def curve(estimator: str, per_pass: int) -> list[float]:
        terms = {"terms": [{"window": 12, "weight": 1.0, "estimator": estimator}]}
        folder = tmp_path / f"{estimator}{per_pass}"
        run(tiny_config(config, train={"sequences_per_pass": per_pass}, balance=terms), packed, folder)
        return losses(folder)

    assert curve("prefix", 12) == curve("exact", 12)
    assert curve("prefix", 2) != pytest.approx(curve("exact", 2), rel=1e-6)


def test_a_batch_that_does_not_split_is_refused(tiny_data) -> None:
    config = tiny_config(tiny_data[0])
    with pytest.raises(ConfigError, match="hardware.processes"):
        split_batch(config.train, num_ranks=2, rank=0)


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_remedy(tiny_data, tmp_path: Path) -> None:
    config, packed = tiny_data
    with pytest.raises(ConfigError, match=r"step \d+.*train.learning_rate"):
        run(tiny_config(config, train={"learning_rate": 1e30, "warmup_steps": 0}), packed, tmp_path, log_every=1)
    assert not (tmp_path / "train.json").exists()


def test_a_tracker_that_is_not_installed_is_named(tiny_data, tmp_path: Path) -> None:
    config, packed = tiny_data
    with pytest.raises(ConfigError, match="hardware.tracker: 'clearml' is not installed"):
        run(tiny_config(config), packed, tmp_path, tracker="clearml")


def test_sigkill_twice_and_the_same_command_gives_the_same_weights_and_log(tiny_data, tmp_path: Path) -> None:
    config, packed = tiny_data
    config = tiny_config(config, train={"steps": 80})
    whole = run(config, packed, tmp_path / "whole")
    (tmp_path / "killed").mkdir()
    (tmp_path / "config.json").write_text(config.model_dump_json())
    script = f"""
from pathlib import Path
from moe.config import HardwareConfig, RunConfig
from moe.settings import read_json
from moe.train import train
folder = Path({str(tmp_path / "killed")!r})
train(read_json(RunConfig, Path({str(tmp_path / "config.json")!r})), run="tiny", data_folder=Path({str(packed)!r}),
      run_folder=folder, state_folder=folder / "state", hardware=HardwareConfig(log_every=4, checkpoint_every=4))
"""
    command = [sys.executable, "-c", script]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    seen = 0
    for _ in range(2):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        try:
            while process.poll() is None and _newest_step(tmp_path / "killed" / "state") <= seen:
                time.sleep(0.01)
            seen = _newest_step(tmp_path / "killed" / "state")
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert 0 < seen < 80 and not (tmp_path / "killed" / "train.json").exists()
    subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)
    resumed = json.loads((tmp_path / "killed" / "train.json").read_text())
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    a, b = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def _newest_step(state: Path) -> int:
    return max((int(path.stem.split("-")[0]) for path in state.glob("[0-9]*-*.safetensors")), default=0)
