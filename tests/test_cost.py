"""The plan's estimates against the things that they estimate."""

from pathlib import Path

import pytest
import torch

from moe.config import RunConfig
from moe.cost import estimate, num_parameters
from moe.model import build
from moe.sweep import load_plan

ROOT = Path(__file__).parents[1]
DATA = {"domains": [{"name": "law", "source": {"corpus": "china-law"}}], "vocab_size": 300}


@pytest.mark.parametrize("num_shared_experts", [0, 2])
def test_parameters_are_those_of_the_model(num_shared_experts: int):
    model = {"hidden_size": 32, "num_layers": 2, "expert_size": 24, "num_shared_experts": num_shared_experts}
    config = RunConfig.model_validate({"data": DATA, "model": model})
    with torch.device("meta"):
        made = build.build_model(config.model, vocab_size=300, max_tokens=128, seed=0)
    assert num_parameters(config) == build.num_parameters(made)


def test_more_cores_shorten_the_hours_until_every_run_has_its_own():
    plan = load_plan("smoke", ROOT / "config")
    hours = [estimate(plan, cores=cores).hours for cores in (1, 2, 8, 64)]
    assert hours[0] == 2 * hours[1] == 8 * hours[2] == 8 * hours[3]
