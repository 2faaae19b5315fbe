"""The `transformers` adapter scales the loss as the installed Trainer does, in real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moe.conformance import batches
from moe.conformance.kit import Outcome, run_step
from moe.conformance.targets import load


def trained(num_ranks: int, *steps: int) -> list[list[float]]:
    """For each number of steps: norm of the auxiliary loss's router gradient, and its part in the logged loss."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_ranks}"]
    script = str(Path(__file__).with_name("trainer.py"))
    done = subprocess.run(
        [sys.executable, *launch, script, *map(str, steps)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("found ")]
    return [json.loads(line.removeprefix("found ")) for line in lines]


def adapted(num_ranks: int, steps: int) -> Outcome:
    sizes = ((1,) * num_ranks,) * steps
    return run_step(load("transformers")(), batches.copies(num_ranks * steps), sizes)


def test_the_factors_are_those_of_the_installed_trainer() -> None:
    one, two_steps = trained(1, 1, 2)
    (two_ranks,) = trained(2, 1)
    alone = adapted(1, 1)
    for measured, found in ((two_steps, adapted(1, 2)), (two_ranks, adapted(2, 1))):
        gradient, value = (a / b for a, b in zip(measured, one, strict=True))
        # fp32, and the logged loss is rounded to four digits.
        assert gradient == pytest.approx(float(found.gradient.norm() / alone.gradient.norm()), rel=1e-3)
        assert value == pytest.approx(found.value / alone.value, rel=1e-3)
