"""What a plan costs before it starts: runs, tokens, hours and disk, estimated from the config alone."""

from dataclasses import dataclass

from moe.config import RunConfig
from moe.sweep import Plan

BYTES_PER_PARAMETER = 4 + 12  # the model in fp32, and the resumable state: weights and AdamW's two moments


@dataclass(frozen=True)
class Cost:
    """Estimates for the runs of a plan; nothing that already exists is subtracted."""

    runs: int
    tokens: int
    """Training tokens of all runs."""
    hours: float
    """Wall time of the training alone."""
    disk_bytes: int
    """Checkpoints, resumable state and packed tokens; downloads are not counted."""


def estimate(plan: Plan, *, cores: int) -> Cost:
    """Cost of `plan` where `cores` CPU cores train as many runs side by side as fit."""
    hardware = plan.scale.hardware
    parallel = max(1, min(len(plan.configs), cores // (hardware.threads * hardware.processes)))
    tokens = sum(num_tokens(config) for config in plan.configs.values())
    packed = sum(len(data.domains) * (data.train_tokens + data.heldout_tokens) for data in plan.data.values())
    checkpoints = sum(num_parameters(config)[0] for config in plan.configs.values()) * BYTES_PER_PARAMETER
    return Cost(
        runs=len(plan.configs),
        tokens=tokens,
        hours=tokens / hardware.tokens_per_second / parallel / 3600,
        disk_bytes=checkpoints + 2 * packed,
    )


def num_tokens(config: RunConfig) -> int:
    """Tokens that one run trains on."""
    return config.train.steps * config.train.batch_sequences * config.data.sequence_length


def num_parameters(config: RunConfig) -> tuple[int, int]:
    """Parameters of a run's model in all, and those that are active for one token; `moe/model/build.py` makes it."""
    model, width = config.model, config.model.hidden_size
    expert = 3 * width * model.expert_size
    layer = 4 * width**2 + model.num_experts * width + 2 * width
    if model.num_shared_experts:
        layer += 3 * width + model.num_shared_experts * expert + width  # Qwen2: biases of q, k, v; the shared gate
    else:
        layer += 2 * (width // model.num_heads)  # Qwen3: norms of q and k
    rest = config.data.vocab_size * width + width + model.num_layers * layer
    routed = model.num_layers * expert
    return rest + routed * model.num_experts, rest + routed * model.top_k


def describe(plan: Plan, cost: Cost) -> str:
    """The cost in a few lines for a terminal."""
    sizes = sorted({num_parameters(config) for config in plan.configs.values()})
    speed = f"{plan.scale.hardware.tokens_per_second:,.0f} tokens/s per run"
    models = ", ".join(f"{_short(total)} parameters ({_short(active)} active)" for total, active in sizes[:3])
    return "\n".join(
        (
            f"scale {plan.name}: {plan.scale.description}",
            f"  experiments  {', '.join(plan.experiments)}",
            f"  runs         {cost.runs}, seeds {', '.join(map(str, plan.scale.seeds))}",
            f"  model        {models}{', ...' if len(sizes) > 3 else ''}",
            f"  tokens       {_short(cost.tokens)} in all",
            f"  hours        {cost.hours:.2f} of training at {speed} (estimated)",
            f"  disk         {_short(cost.disk_bytes)}B (estimated)",
        )
    )


def _short(number: float) -> str:
    for unit in ("", "k", "M", "G", "T"):
        if number < 1000 or unit == "T":
            return f"{number:.3g} {unit}".rstrip()
        number /= 1000
    raise AssertionError
