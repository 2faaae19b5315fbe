"""The plan's estimates against the things that they estimate."""

from pathlib import Path

import pytest
import torch

from moe.config import RunConfig
from moe.cost import check_memory, estimate, num_tokens
from moe.memory import latency_bytes, requested_mb, train_bytes
from moe.model import build
from moe.settings import ConfigError
from moe.size import num_parameters
from moe.sweep import Plan, load_plan, run_name

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
    hours = [estimate(plan, cores=cores, memory_mb=None).hours for cores in (1, 2, 8, 64)]
    assert hours[0] == 2 * hours[1] == 8 * hours[2] == 8 * hours[3]


def test_the_hours_are_those_of_the_runs_that_memory_allows_too():
    plan = load_plan("smoke", ROOT / "config")
    one = max(requested_mb(train_bytes(config, plan.scale)) for config in plan.configs.values())
    costs = [estimate(plan, cores=8, memory_mb=memory_mb) for memory_mb in (one, 2 * one, 8 * one, None)]
    assert [cost.side_by_side for cost in costs] == [1, 2, 8, 8]
    assert costs[0].hours == 2 * costs[1].hours == 8 * costs[2].hours


def test_steps_that_a_run_shares_with_its_parent_are_not_counted_twice():
    plan = load_plan("smoke", ROOT / "config")
    first, *_ = [run for run in plan.configs if run.endswith("-s1")]
    parent = plan.configs[first]
    (term,) = parent.balance.terms
    late = term.model_copy(update={"window": 8, "start_step": 5})
    terms = (term.model_copy(update={"end_step": 5}), late)
    child = parent.model_copy(update={"balance": parent.balance.model_copy(update={"terms": terms})})
    both = Plan(plan.name, plan.scale, plan.experiments, (), {first: parent, run_name(child): child})
    alone = Plan(plan.name, plan.scale, plan.experiments, (), {run_name(child): child})
    assert both.branches == {run_name(child): (first, 5)}
    tokens = [sum(num_tokens(c) for c in p.configs.values()) for p in (both, alone)]
    shared = 5 * parent.train.batch_sequences * parent.data.sequence_length
    costs = [estimate(p, cores=1, memory_mb=None) for p in (both, alone)]
    assert [cost.tokens for cost in costs] == [tokens[0] - shared, tokens[1]]
    # Weights and two moments of the parent are left behind for the child.
    states = [cost.disk_bytes / (16 * num_parameters(parent)[0]) for cost in costs]
    assert states == pytest.approx([2 + 12 / 16, 1])


def changed(section: str, **fields: object) -> Plan:
    """The smoke plan with other fields in every run and in the scale."""
    plan = load_plan("smoke", ROOT / "config")

    def change(settings):
        new = getattr(settings, section).model_copy(update=fields)
        return settings.model_copy(update={section: new})

    configs = plan.configs
    if section in ("model", "data", "train"):
        configs = {run: change(config) for run, config in configs.items()}
    return Plan(plan.name, change(plan.scale), plan.experiments, plan.rows, configs)


MISTAKES = {
    "training": ("train", {"batch_sequences": 65536, "sequences_per_pass": 65536}, "lower train.sequences_per_pass"),
    "evaluating": ("evaluation", {"batch_size": 65536}, "lower evaluation.batch_size"),
    "comparing": ("train", {"batch_sequences": 65536, "sequences_per_pass": 4}, "lower train.batch_sequences"),
    "training ": ("model", {"hidden_size": 65536}, "take a smaller model"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_what_does_not_fit_into_memory_is_refused_with_what_would_help(what: str):
    section, fields, remedy = MISTAKES[what]
    with pytest.raises(ConfigError, match=f"{what}.* needs about .* MB of memory and .* has 4,000 MB for it: {remedy}"):
        check_memory(changed(section, **fields), 4000)


def test_so_many_arms_that_their_weights_do_not_fit_together_are_refused():
    plan = changed("model", num_experts=8192)
    timed = [plan.configs[run] for run in plan.timed]
    two, all_four = (requested_mb(latency_bytes(timed[:number], plan.scale)) for number in (2, 4))
    check_memory(plan, all_four)
    with pytest.raises(ConfigError, match="timing 4 runs in one process needs .*: lower the number of arms"):
        check_memory(plan, two)


def test_what_fits_is_not_refused():
    check_memory(load_plan("cpu", ROOT / "config", only="balance_window"), 1000)
