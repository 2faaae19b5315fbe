"""A training that is divided over its processes (FSDP2) is the same training."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from moe.branches import branch_folder
from moe.interruption import STATUS
from moe.launch import rendezvous
from tests.conftest import tiny_config
from tests.distributed.test_ranks import curve
from tests.stage import saved_steps, start, training, wait_until, weights

# Windows inside a process, across processes, and across processes and passes, in one objective.
TERMS = [{"window": window, "weight": 0.3} for window in (1, 4, 6, 12)]


BIAS = {"window": 4, "rate": 0.01}


@pytest.mark.parametrize(
    "processes, num_shared_experts, balance",
    [
        (2, 2, {"terms": TERMS, "bias": BIAS}),
        (3, 0, {"terms": TERMS, "bias": BIAS}),
        (2, 0, {"terms": TERMS, "similarity_weight": 0.05, "capacity": {"factor": 1.2, "window": 1}}),
        (2, 0, {"terms": [], "forced": True}),
    ],
)
def test_a_divided_training_follows_that_of_one_process(
    processes: int, num_shared_experts: int, balance: dict, tiny_data, tmp_path: Path
) -> None:
    config, packed = tiny_data
    config = tiny_config(
        config,
        model={"num_shared_experts": num_shared_experts},
        train={"sequences_per_pass": 2, "activation_checkpointing": num_shared_experts > 0},
        balance=balance,
    )
    alone = curve(config, packed, tmp_path / "alone", 1)
    divided = curve(config, packed, tmp_path / "divided", processes, shard=True)
    for a, b in zip(alone, divided, strict=True):
        # fp32 sums in another order.
        assert b["lm_loss"] == pytest.approx(a["lm_loss"], rel=2e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=2e-3)
        for x, y in zip(a["balance"], b["balance"], strict=True):
            assert y == pytest.approx(x, rel=2e-4)
    models = [tmp_path / name / "model" for name in ("alone", "divided")]
    first, second = (load_file(model / "model.safetensors") for model in models)
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[name], second[name], atol=1e-4) for name in first)
    assert AutoModelForCausalLM.from_pretrained(models[1]).num_parameters() > 0


def test_a_divided_training_that_is_stopped_goes_on_bit_for_bit(tiny_data, tmp_path: Path) -> None:
    config, packed = tiny_data
    config = tiny_config(config, train={"steps": 40, "sequences_per_pass": 2}, balance={"terms": TERMS})
    assert start(*training(tmp_path / "whole", packed, config, processes=2, shard=True)).wait() == 0
    command = training(tmp_path / "stopped", packed, config, processes=2, shard=True)
    process = start(*command)
    wait_until(lambda: saved_steps(tmp_path / "stopped"), process)
    process.terminate()
    assert process.wait(timeout=60) == STATUS[signal.SIGTERM]
    assert 0 < saved_steps(tmp_path / "stopped")[-1] < 40
    assert start(*command).wait() == 0
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


def test_a_divided_training_stops_between_two_lines_of_its_log(tiny_data, tmp_path: Path) -> None:
    config, packed = tiny_data
    config = tiny_config(config, train={"steps": 300, "sequences_per_pass": 2}, balance={"terms": TERMS})
    *command, _ = training(tmp_path, packed, config, processes=2)
    hardware = json.dumps({"processes": 2, "shard": True, "log_every": 1000, "checkpoint_every": 1000})
    process = start(*command, hardware, "--keep", 5)
    wait_until(branch_folder(tmp_path / "state", 5).exists, process)
    process.terminate()
    error = process.communicate(timeout=60)[1]
    assert process.returncode == STATUS[signal.SIGTERM], error
    (step,) = saved_steps(tmp_path)
    assert 5 < step < 300 and f"terminated after step {step} of 300" in error


def test_every_process_holds_its_part_of_weights_gradients_and_moments() -> None:
    root = Path(__file__).parents[2]
    call = "from moe.launch import become_rank; become_rank(); from tests.distributed.divided import main; main()"
    environment = {**os.environ, **rendezvous(2), "PYTHONPATH": str(root)}
    ranks = [
        subprocess.Popen([sys.executable, "-c", call], env={**environment, "RANK": r, "LOCAL_RANK": r})
        for r in ("0", "1")
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
