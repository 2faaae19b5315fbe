"""Compiled layers compute what the layers compute, and a machine without a compiler trains all the same."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from moe.speed import compile_layers
from moe.step import Step, Stopwatch
from tests.exactness import BATCH, batch, make_step, run_config


def gradients(step: Step, tokens_BN: np.ndarray) -> list[torch.Tensor]:
    """Gradients of a global batch, whose passes are counted first."""
    step.accumulate(0, tokens_BN, Stopwatch(torch.device("cpu"), measure=False))
    found = [parameter.grad.clone() for parameter in step.objective.parameters() if parameter.grad is not None]
    step.objective.zero_grad()
    return found


@pytest.mark.parametrize(
    ("ways", "checkpointing"),
    [
        ({}, False),
        ({"gate": "sigmoid", "bias": {"rate": 0.1}, "capacity": {"factor": 0.8, "window": 2}}, False),
        ({"gate": "sigmoid", "capacity": {"factor": 1.1, "window": 1}}, True),
        ({"forced": True, "similarity_weight": 0.1}, False),
        ({"forced": True, "capacity": {"factor": 0.8, "window": 6}}, True),
    ],
)
def test_compiled_layers_give_the_same_gradients_also_behind_a_counting_pass(ways, checkpointing) -> None:
    terms = [{"window": "global", "weight": 0.3}, {"window": 1, "weight": 0.1}, {"window": 4, "shuffled": True}]
    config = run_config(terms, **ways)
    at = {"sizes": ((BATCH // 2,), (BATCH // 2,)), "dtype": torch.float32, "checkpointing": checkpointing}
    plain, compiled = (make_step(config, **at) for _ in range(2))
    if not compile_layers(compiled.objective.model):
        pytest.skip("no working C++ compiler")
    for seed in range(2):
        tokens_BN, _ = batch(seed, padded=False)
        for found, expected in zip(gradients(compiled, tokens_BN), gradients(plain, tokens_BN), strict=True):
            # fp32, summed in another order
            assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_without_a_compiler_the_layers_stay_as_they_are_and_it_is_said(tmp_path: Path) -> None:
    code = (
        "from moe.config import ModelConfig; from moe.model.build import build_model; from moe.speed import *;"
        "model = build_model(ModelConfig(), vocab_size=300, max_tokens=16, seed=0);"
        "print(compile_layers(model), model.model.layers[0]._compiled_call_impl)"
    )
    environment = os.environ | {"CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "None"]
    assert "not compiled" in done.stderr and "none" in done.stderr and done.stderr.count("\n") == 1
