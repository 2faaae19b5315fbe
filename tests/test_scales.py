"""The scales that are too large to run here: their sizes are the paper's, and their plans are made in seconds."""

from pathlib import Path

import pytest
import torch

from moe.config import RunConfig
from moe.cost import GB, check_gpus, describe, estimate, num_tokens
from moe.memory import gpu_bytes, train_bytes
from moe.model import build
from moe.scale import HardwareConfig
from moe.settings import ConfigError
from moe.size import num_parameters
from moe.sweep import Plan, load_plan

ROOT = Path(__file__).parents[1]
# arXiv:2501.11873, section 4: parameters in all and active, experts, batch, steps and micro baseline in sequences.
PAPER = {
    "paper-3b": (3.4e9, 0.6e9, 64, 512, 60_000, 4),
    "paper-15b": (15e9, 2.54e9, 160, 1024, 100_000, 16),
    "paper-43b": (43e9, 6.6e9, 160, 512, 60_000, 8),
}
# Share of the 989 TFLOP/s of an H100 in bf16 that the scale's comment assumes.
ASSUMED = {"paper-3b": 0.15, "paper-15b": 0.15, "paper-43b": 0.1}


def scale(name: str) -> tuple[Plan, RunConfig]:
    """The plan and its first run."""
    plan = load_plan(name, ROOT / "config")
    return plan, next(iter(plan.configs.values()))


@pytest.mark.parametrize("name", PAPER)
def test_parameters_are_within_two_percent_of_the_papers(name: str):
    total, active = PAPER[name][:2]
    config = scale(name)[1]
    with torch.device("meta"):
        made = build.build_model(config.model, vocab_size=config.data.vocab_size, max_tokens=4096, seed=0)
    found = build.num_parameters(made)
    print(f"{name}: {found[0]:,} parameters ({found[0] / total - 1:+.2%}), {found[1]:,} ({found[1] / active - 1:+.2%})")
    assert found == num_parameters(config)
    assert found[0] == pytest.approx(total, rel=0.02)
    assert found[1] == pytest.approx(active, rel=0.02)


@pytest.mark.parametrize("name", PAPER)
def test_what_the_paper_prints_is_the_papers(name: str):
    _, _, experts, batch, steps, micro = PAPER[name]
    config = scale(name)[1]
    model, train = config.model, config.train
    assert (model.num_experts, model.top_k, model.num_shared_experts) == (experts, 4, 4)
    assert (train.batch_sequences, train.steps, train.micro_sequences) == (batch, steps, micro)
    assert config.data.sequence_length == 4096
    assert config.balance.terms[0].weight == 0.008


@pytest.mark.parametrize("name", PAPER)
def test_the_hours_are_those_of_the_share_of_the_peak_that_the_scale_states(name: str):
    plan, config = scale(name)
    hardware, model = plan.scale.hardware, config.model
    # Forward and backward: two and four operations per active parameter, and attention to half of the sequence.
    operations = 6 * num_parameters(config)[1] + 6 * model.num_layers * model.hidden_size * config.data.sequence_length
    share = hardware.tokens_per_second * operations / hardware.ranks / 989e12
    assert share == pytest.approx(ASSUMED[name], rel=0.03)
    assert f"# {ASSUMED[name]:.0%}".replace("%", " %") in (ROOT / "config" / "scales" / f"{name}.yaml").read_text()
    tokens = sum(num_tokens(config) for config in plan.configs.values())
    hours = tokens / hardware.tokens_per_second / 3600 * hardware.ranks
    plan_text = describe(plan, estimate(plan, cores=1, memory_mb=None))
    assert f"; {hours:,.0f} GPU-hours in all" in plan_text
    assert f"{hardware.ranks} per run, {gpu_bytes(config, hardware) / GB:,.0f} of 80 GB on each" in plan_text


def test_the_paper_scales_share_one_packed_data_set():
    assert len({data for name in PAPER for data in scale(name)[0].data}) == 1


def test_the_gpu_scale_is_that_of_one_gpu():
    plan, config = scale("gpu")
    cpu = scale("cpu")[1]
    assert 50e6 < num_parameters(config)[0] < 200e6
    assert config.data.vocab_size == 16384
    assert num_tokens(config) >= 10 * num_tokens(cpu)
    assert config.train.precision == "bf16"
    assert plan.scale.hardware.compile and plan.scale.hardware.ranks == 1


def test_a_divided_training_needs_less_of_each_gpu_the_more_there_are():
    config = scale("paper-3b")[1]
    eight, sixteen = (HardwareConfig(processes=8, nodes=nodes, shard=True) for nodes in (1, 2))
    whole = HardwareConfig(processes=8)
    total = num_parameters(config)[0]
    assert gpu_bytes(config, whole) - gpu_bytes(config, eight) > 10 * total
    assert gpu_bytes(config, eight) - gpu_bytes(config, sixteen) == total


def test_a_run_that_no_gpu_holds_is_refused_with_what_would_help():
    plan, _ = scale("paper-43b")
    check_gpus(plan)
    hardware = plan.scale.hardware.model_copy(update={"nodes": 1})
    small = Plan(
        plan.name, plan.scale.model_copy(update={"hardware": hardware}), plan.experiments, plan.rows, plan.configs
    )
    with pytest.raises(ConfigError, match=r"training e160k4-.* needs about \d+ GB of each GPU.*gpu_gb is 80: lower"):
        check_gpus(small)


def test_the_machine_of_gpus_holds_a_checkpoint_and_not_the_activations():
    plan, config = scale("paper-3b")
    wide = config.model_copy(update={"train": config.train.model_copy(update={"sequences_per_pass": 64})})
    assert train_bytes(wide, plan.scale) == train_bytes(config, plan.scale) > 12 * num_parameters(config)[0]
