#!/usr/bin/env bash
# start.sh MACHINES PROCESSES PYTHON MODULE ARGUMENT...
# One training on all machines of this SLURM job, with so many processes on each.
set -euo pipefail
machines=$1 processes=$2 python=$3
shift 3
if [[ -z ${SLURM_JOB_ID:-} ]]; then
  echo "error: hardware.nodes is $machines: only a cluster has them (--workflow-profile profiles/slurm)" >&2
  exit 1
fi
# All of them are read: a pipe that closes behind the first would be an error of scontrol's.
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
exec srun --nodes="$machines" --ntasks="$machines" --ntasks-per-node=1 --kill-on-bad-exit=1 bash -c '
  exec "$5" -m accelerate.commands.launch --config_file "$0" --num_machines "$1" --num_processes "$2" \
    --machine_rank "$SLURM_NODEID" --main_process_ip "$3" --main_process_port "$4" -m "${@:6}"' \
  "$(dirname "$0")/fsdp2.yaml" "$machines" "$((machines * processes))" "${hosts%%$'\n'*}" \
  "$((20000 + SLURM_JOB_ID % 10000))" "$python" "$@"
