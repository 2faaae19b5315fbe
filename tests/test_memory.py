"""Predicted memory against what processes really take."""

from pathlib import Path

import pytest

from benchmarks.peak import peak_of
from moe import memory, speed
from moe.memory import available_mb, peak_bytes
from moe.model import objective
from moe.scale import HardwareConfig
from tests.conftest import tiny_config
from tests.stage import ROOT, command, environment, training

WIDE = {"hidden_size": 128, "num_layers": 4, "num_experts": 16, "expert_size": 128}
BATCH = {"batch_sequences": 192, "sequences_per_pass": 192}
MODELS = {
    "activations": (WIDE, BATCH, 1),
    "recomputed": (WIDE, BATCH | {"activation_checkpointing": True}, 1),
    "optimizer in two processes": (WIDE | {"num_experts": 96}, {"batch_sequences": 8, "sequences_per_pass": 2}, 2),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_peak_of_a_training_is_predicted_within_15_percent(name: str, tiny_data, tmp_path: Path):
    model, train, processes = MODELS[name]
    data, packed = tiny_data
    window = {"terms": [{"window": "global", "weight": 0.05}]}
    config = tiny_config(data, model=model, train={"steps": 2, **train}, balance=window)
    call = command(*training(tmp_path, packed, config, processes=processes))
    measured = peak_of(call, cwd=ROOT, env=environment())
    predicted = peak_bytes(config, HardwareConfig(processes=processes))
    assert predicted == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize(
    "change",
    [
        {"train": {"sequences_per_pass": 12}},
        {"model": {"num_layers": 3}},
        {"model": {"hidden_size": 64}},
        {"model": {"num_experts": 9}},
        {"model": {"top_k": 3}},
        {"model": {"expert_size": 17}},
        {"model": {"num_shared_experts": 2}},
    ],
)
def test_more_of_anything_needs_more_memory(change: dict, tiny_data):
    hardware = HardwareConfig()
    assert peak_bytes(tiny_config(tiny_data[0]), hardware) < peak_bytes(tiny_config(tiny_data[0], **change), hardware)


def test_recomputing_layers_needs_less_memory(tiny_data):
    kept, recomputed = (
        tiny_config(tiny_data[0], train={"activation_checkpointing": checkpointing}) for checkpointing in (False, True)
    )
    assert peak_bytes(recomputed, HardwareConfig()) < peak_bytes(kept, HardwareConfig())


@pytest.mark.parametrize("file", ["memory.max", "memory/memory.limit_in_bytes"])
def test_a_limit_of_the_control_group_bounds_what_is_available(file: str, tmp_path: Path):
    free = available_mb(tmp_path)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("max\n")
    assert available_mb(tmp_path) == pytest.approx(free, rel=0.1)
    (tmp_path / file).write_text("300000000\n")
    assert available_mb(tmp_path) == (300_000_000 - memory.RESERVE_BYTES) // 10**6


def test_the_sizes_that_are_predicted_with_are_those_that_are_used():
    assert memory.LOSS_TOKENS == objective.LOSS_TOKENS
    assert memory.SHORT == speed.SHORT
