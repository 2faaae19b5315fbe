"""What a plan costs before it starts: runs, tokens, hours, memory and disk, estimated from the config alone."""

from dataclasses import dataclass

from moe.config import RunConfig
from moe.memory import MB, estimators_bytes, evaluate_bytes, gpu_bytes, latency_bytes, requested_mb, train_bytes
from moe.settings import ConfigError
from moe.size import num_parameters
from moe.sweep import Plan

GB = 10**9
STATE_BYTES = 12  # of a parameter in the resumable state: weights and AdamW's two moments
BYTES_PER_PARAMETER = 4 + STATE_BYTES  # the model in fp32 too


@dataclass(frozen=True)
class Cost:
    """Estimates for the runs of a plan; nothing that already exists is subtracted."""

    runs: int
    tokens: int
    """Training tokens of all runs; those that a run shares with its parent count once."""
    hours: float
    """Wall time of the training alone."""
    run_bytes: int
    """Peak memory of the largest training run, all of its processes."""
    side_by_side: int
    """Training runs that cores and memory allow at a time."""
    gpu_bytes: int
    """Peak memory of one GPU of the largest training run, where the scale is made for GPUs."""
    disk_bytes: int
    """Checkpoints, resumable state, also what is left for branches, and packed tokens; downloads are not counted."""


def estimate(plan: Plan, *, cores: int, memory_mb: int | None) -> Cost:
    """Cost of `plan` where `cores` CPU cores and `memory_mb`, if that is a limit, train as many runs side by side as
    fit."""
    hardware = plan.scale.hardware
    run_bytes = max(train_bytes(config, plan.scale) for config in plan.configs.values())
    slots = [len(plan.configs), cores // (hardware.threads * hardware.processes)]
    if memory_mb is not None:
        slots.append(memory_mb // requested_mb(run_bytes))
    parallel = max(1, min(slots))
    tokens = sum(num_tokens(config) for config in plan.configs.values())
    for run, (_, step) in plan.branches.items():
        tokens -= num_tokens(plan.configs[run]) * step // plan.configs[run].train.steps
    packed = sum(len(data.domains) * (data.train_tokens + data.heldout_tokens) for data in plan.data.values())
    checkpoints = sum(num_parameters(config)[0] for config in plan.configs.values()) * BYTES_PER_PARAMETER
    left = sum(len(steps) * num_parameters(plan.configs[run])[0] for run, steps in plan.kept.items())
    return Cost(
        runs=len(plan.configs),
        tokens=tokens,
        hours=tokens / hardware.tokens_per_second / parallel / 3600,
        run_bytes=run_bytes,
        side_by_side=parallel,
        gpu_bytes=max(gpu_bytes(config, hardware) for config in plan.configs.values()) if hardware.gpu_gb else 0,
        disk_bytes=checkpoints + left * STATE_BYTES + 2 * packed,
    )


def num_tokens(config: RunConfig) -> int:
    """Tokens that one run trains on."""
    return config.train.steps * config.train.batch_sequences * config.data.sequence_length


def check_gpus(plan: Plan) -> None:
    """Raise `ConfigError` for the first run that needs more of a GPU than `hardware.gpu_gb`."""
    hardware = plan.scale.hardware
    for run, config in plan.configs.items():
        if hardware.gpu_gb and (needed := gpu_bytes(config, hardware)) > hardware.gpu_gb * GB:
            raise ConfigError(
                f"training {run} needs about {needed / GB:,.0f} GB of each GPU and hardware.gpu_gb is "
                f"{hardware.gpu_gb:g}: lower train.sequences_per_pass, set train.activation_checkpointing, or set "
                "hardware.shard with more hardware.nodes"
            )


def check_memory(plan: Plan, limit_mb: int) -> None:
    """Raise `ConfigError` for the first job that needs more than `limit_mb` megabytes, with what would lower it."""
    scale, limit = plan.scale, limit_mb * MB
    for run, config in plan.configs.items():
        if (needed := train_bytes(config, scale)) > limit:
            least = train_bytes(_trained(config, sequences_per_pass=1, activation_checkpointing=True), scale)
            lowers = "train.sequences_per_pass or set train.activation_checkpointing"
            raise _refusal(f"training {run}", needed, least, lowers, limit_mb)
        if (needed := evaluate_bytes(config, scale)) > limit:
            evaluation = scale.evaluation.model_copy(update={"batch_size": 1})
            least = evaluate_bytes(config, scale.model_copy(update={"evaluation": evaluation}))
            raise _refusal(f"evaluating {run}", needed, least, "evaluation.batch_size", limit_mb)
    if scale.estimators and (needed := estimators_bytes(plan.configs[plan.widest], scale)) > limit:
        least = estimators_bytes(_trained(plan.configs[plan.widest], batch_sequences=1), scale)
        what = f"comparing estimators on {plan.widest}, with the whole batch in one pass,"
        raise _refusal(what, needed, least, "train.batch_sequences", limit_mb)
    timed = [plan.configs[run] for run in plan.timed]
    if timed and (needed := latency_bytes(timed, scale)) > limit:
        least = max(latency_bytes([config], scale) for config in timed)
        raise _refusal(f"timing {len(timed)} runs in one process", needed, least, "the number of arms", limit_mb)


def _trained(config: RunConfig, **fields: object) -> RunConfig:
    return config.model_copy(update={"train": config.train.model_copy(update=fields)})


def _refusal(what: str, needed: int, least: int, lowers: str, limit_mb: int) -> ConfigError:
    remedy = f"lower {lowers}" if least <= limit_mb * MB else "take a smaller model or a machine with more"
    return ConfigError(
        f"{what} needs about {needed // MB:,} MB of memory and this machine has {limit_mb:,} MB for it: {remedy} "
        "(--resources mem_mb=<MB> sets another limit)"
    )


def describe(plan: Plan, cost: Cost) -> str:
    """The cost in a few lines for a terminal."""
    sizes = sorted({num_parameters(config) for config in plan.configs.values()})
    speed = f"{plan.scale.hardware.tokens_per_second:,.0f} tokens/s per run"
    models = ", ".join(f"{_short(total)} parameters ({_short(active)} active)" for total, active in sizes[:3])
    together = f"{cost.side_by_side} runs side by side" if cost.side_by_side > 1 else "one run at a time"
    lines = [
        f"scale {plan.name}: {plan.scale.description}",
        f"  experiments  {', '.join(plan.experiments)}",
        f"  runs         {cost.runs}, seeds {', '.join(map(str, plan.scale.seeds))}",
        f"  model        {models}{', ...' if len(sizes) > 3 else ''}",
        f"  tokens       {_short(cost.tokens)} in all",
        f"  hours        {cost.hours:,.2f} of training at {speed} (estimated)",
        f"  memory       {cost.run_bytes / MB:,.0f} MB per run at most, {together} (estimated)",
        f"  disk         {_short(cost.disk_bytes)}B (estimated)",
    ]
    if gpu_gb := plan.scale.hardware.gpu_gb:
        ranks = plan.scale.hardware.ranks
        hours = cost.tokens / plan.scale.hardware.tokens_per_second / 3600 * ranks
        each = f"{cost.gpu_bytes / GB:,.0f} of {gpu_gb:g} GB"
        lines.append(f"  GPUs         {ranks} per run, {each} on each; {hours:,.0f} GPU-hours in all (estimated)")
    return "\n".join(lines)


def _short(number: float) -> str:
    for unit in ("", "k", "M", "G", "T"):
        if number < 1000 or unit == "T":
            return f"{number:.3g} {unit}".rstrip()
        number /= 1000
    raise AssertionError
