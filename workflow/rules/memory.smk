import contextlib
import os

from snakemake.cli import parse_args

from moe.cost import check_gpus, check_memory, describe, estimate
from moe.memory import (
    DRAWING_BYTES,
    PACKING_BYTES,
    available_mb,
    estimators_bytes,
    evaluate_bytes,
    has_accelerator,
    latency_bytes,
    requested_mb,
    train_bytes,
)


def runs_here():
    """Whether jobs run on this machine; those of a cluster ask its nodes for memory."""
    if workflow.resource_settings.nodes is None:
        return True
    # With --jobs the executor alone tells, which Snakemake gives to nobody before its rules are read.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        return parse_args(sys.argv[1:])[1].executor in (None, "local")


if workflow.is_main_process:
    MEMORY_MB = None
    if runs_here():
        # Together the running jobs never ask for more; a user's own --resources mem_mb=... is kept.
        if "mem_mb" not in workflow.global_resources:
            workflow.register_resource("mem_mb", available_mb())
        MEMORY_MB = workflow.global_resources["mem_mb"].value
    try:
        check_gpus(PLAN)
        # A plan for GPUs may be made anywhere.
        if MEMORY_MB and not HARDWARE.gpu_gb and not has_accelerator():
            check_memory(PLAN, MEMORY_MB)
    except ConfigError as error:
        sys.exit(f"error: {error}")
    print(describe(PLAN, estimate(PLAN, cores=ALL_CORES, memory_mb=MEMORY_MB)), file=sys.stderr)


def train_mb(wildcards):
    """Memory that a training asks for."""
    return requested_mb(train_bytes(PLAN.configs[wildcards.run], PLAN.scale))


def evaluate_mb(wildcards):
    """Memory that an evaluation asks for."""
    return requested_mb(evaluate_bytes(PLAN.configs[f"{wildcards.series}-s{PLAN.scale.seeds[0]}"], PLAN.scale))
