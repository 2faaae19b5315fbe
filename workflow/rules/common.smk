import gc
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(workflow.basedir))

from moe.settings import ConfigError, canonical_json, digest
from moe.interruption import tell_children
from moe.locks import join_workflow
from moe.provenance import code_fingerprint
from moe.sweep import load_plan
from moe.warm import WARM, keep_warm

# The jobs of a large grid live to the end: searching them for garbage takes a fifth of the time that planning does.
gc.set_threshold(100_000)

try:
    # As text, so that `runs_table` can hand the choice on.
    EXPERIMENTS = str(config.get("experiments") or "")
    PLAN = load_plan(str(config.get("scale", "cpu")), only=EXPERIMENTS)
except ConfigError as error:
    sys.exit(f"error: {error}")

HARDWARE = PLAN.scale.hardware
# How the machine is used is neither input nor param of a rule: it changes results by rounding alone, so it must retrain
# nothing.
HARDWARE_JSON = shlex.quote(canonical_json(HARDWARE))
# Neither is what a step without a finite gradient leads to: `--config skip_nonfinite=true`.
TRAIN_FLAGS = "--skip-nonfinite" if config.get("skip_nonfinite") else "''"
# What a cluster is asked for. A training on several machines is one job, which starts its processes there.
ONE_GPU = {"gres": "gpu:1"} if HARDWARE.gpu_gb else {}
MACHINES = {"gres": f"gpu:{HARDWARE.processes}"} if HARDWARE.gpu_gb else {}
if HARDWARE.nodes > 1:
    MACHINES |= {"nodes": HARDWARE.nodes, "tasks": HARDWARE.nodes, "mpi": "srun"}
# The jobs' `python` is the one that runs Snakemake, whether or not its environment is activated.
BIN = shlex.quote(str(Path(sys.executable).parent))
# Where the process listens that jobs are forked from, so that they need not load their libraries.
SOCKET = ".snakemake/warm"
# At SIGTERM the shell waits for the stage, which has removed its temporary files or saved its state by then.
shell.prefix(
    "trap : TERM; set -euo pipefail;"
    " export PATH={BIN}:$PATH MOE_HARDWARE={HARDWARE_JSON} MOE_TRAIN_FLAGS={TRAIN_FLAGS} {WARM}={SOCKET}; "
)
# A job that asks for every core is alone on the machine.
ALL_CORES = workflow.cores or 1

if workflow.is_main_process:
    if not join_workflow(Path.cwd()):
        print("another Snakemake works in this folder; wait for it or stop it", file=sys.stderr)


# By itself Snakemake waits, at SIGTERM, until all running jobs have done their work.
onstart:
    tell_children()
    # A fork of a process that has asked for a GPU cannot use it, and libraries may ask while they load.
    if runs_here() and not has_accelerator():
        keep_warm(SOCKET, compiles=HARDWARE.compile)
    # Its limit of 100 jobs a second wakes Snakemake once a second for every job that has ended: with 500 jobs it takes
    # half a core. No machine starts that many; a cluster's queue keeps the limit.
    if not workflow.non_local_exec:
        workflow.scheduler.job_rate_limiter = None


wildcard_constraints:
    scale=PLAN.name,
    run="[^/]+",
    series="[^/]+",
    data="[0-9a-f]{8}",
    sets=digest(PLAN.scale.evaluation),


def final_output():
    """What a call without a target makes."""
    return [f"reports/{PLAN.name}/index.html", f"results/{PLAN.name}/figures", f"results/{PLAN.name}/tables"]
