"""Train one run through Accelerate, from its config to a plain checkpoint and a log of metrics.

Writes `model/`, `train.jsonl`, `speed.jsonl`, `counts.parquet` (see `moe/counts.py`) and, last, `train.json` into the
run's folder; checkpoints and the unfinished log live in the state folder, and a call that finds them there continues to
bit-identical weights. Wall-clock times are in `speed.jsonl` alone, so that all else is a function of the config, byte
for byte.
"""

import json
import os
import shutil
import signal
import time
from collections.abc import Collection
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs

from moe import provenance
from moe.branches import left_for_branches
from moe.checkpoint import load_checkpoint, save_checkpoint
from moe.config import RunConfig, check_capacity
from moe.counts import SequenceCounts
from moe.data.order import TrainingBatches
from moe.interruption import Deferred, Stopped
from moe.model.build import build_model, num_parameters, save_model
from moe.model.nonfinite import locate
from moe.model.objective import Objective
from moe.model.products import use_fastest_products
from moe.progress import Progress
from moe.scale import HardwareConfig
from moe.settings import ConfigError
from moe.shard import any_process, divide, joined_weights
from moe.speed import compile_layers, give_back_memory, keep_memory
from moe.step import NonFiniteError, Step, Stopwatch, make_optimizer, split_batch

TIMES = ("tokens_per_second", "seconds")  # what a line of the log says of wall-clock time


def train(
    config: RunConfig,
    *,
    run: str,
    data_folder: Path,
    run_folder: Path,
    state_folder: Path,
    hardware: HardwareConfig,
    skip_nonfinite: bool = False,
    keep: Collection[int] = (),
) -> None:
    """Train `config` on the packed data of `data_folder`; every process of one training makes this call.

    After each of the steps `keep` the state is left for children (see `moe/branches.py`).

    A step whose gradient is not finite is left out and counted with `skip_nonfinite`; else the state before it is kept
    and `ConfigError` names its step, layer and domain. Raises `ConfigError` too where the batch cannot be split over
    the processes, where a GPU is missing and where the tracker is not installed, and `Stopped` with a checkpoint of
    the step that SIGTERM has come in.
    """
    settings = config.train
    torch.set_num_threads(hardware.threads)
    accelerator = Accelerator(
        mixed_precision="bf16" if settings.precision == "bf16" else "no",
        log_with=hardware.tracker,
        project_dir=str(run_folder / "tracker"),
    )
    if hardware.tracker and not accelerator.log_with:
        raise ConfigError(f"hardware.tracker: '{hardware.tracker}' is not installed; install its package or unset it")
    shard = hardware.shard or accelerator.is_fsdp2
    if not shard:
        use_fastest_products()
    # Copies of the weights would outlive the layers that were put together for them.
    accelerator.autocast_handler = AutocastKwargs(cache_enabled=not shard)
    if hardware.gpu_gb and accelerator.device.type == "cpu":
        raise ConfigError(
            "hardware.gpu_gb: this scale is made for GPUs and torch finds none here: train it where there are some, or "
            "unset gpu_gb"
        )
    layout = split_batch(settings, num_ranks=accelerator.num_processes, rank=accelerator.process_index)
    check_capacity(config, accelerator.num_processes)
    batches = TrainingBatches(config, data_folder)
    objective = _objective(config, accelerator, shard=shard)
    optimizer = make_optimizer(settings, objective)
    first_step, state = load_checkpoint(state_folder, objective, optimizer)
    compiled = hardware.compile and compile_layers(objective.model)
    prepared, prepared_optimizer = objective, optimizer
    if not shard:
        prepared, prepared_optimizer = accelerator.prepare(objective, optimizer)
    step_once = Step(
        config,
        objective=objective,
        prepared=prepared,
        optimizer=prepared_optimizer,
        accelerator=accelerator,
        layout=layout,
        skip_nonfinite=skip_nonfinite,
    )
    step_once.state = state
    if hardware.tracker:
        accelerator.init_trackers(run)
    log = _Log(state_folder, first_step) if accelerator.is_main_process else None
    tokens_per_step = settings.batch_sequences * config.data.sequence_length
    progress = Progress(run, settings.steps, first_step, tokens_per_step) if accelerator.is_main_process else None
    stop = Deferred()
    # All stop behind the step in which the first one is told: this group asks in each, and waits for no device.
    told: Any = torch.distributed.new_group(backend="gloo") if shard else None
    keep_memory()
    writes = accelerator.is_main_process
    saves = writes or shard  # of a divided training every process has a part

    for step in range(first_step, settings.steps):
        done = step + 1
        save = done % hardware.checkpoint_every == 0 or done == settings.steps
        logged = save or done % hardware.log_every == 0
        measure = logged or done in keep
        stopwatch = Stopwatch(accelerator.device, measure=measure)
        tokens_BN = batches.tokens(step)
        stopwatch.lap("data")
        try:
            metrics = step_once(step, tokens_BN, stopwatch, measure=measure, record=save)
        except NonFiniteError as error:
            if saves:
                save_checkpoint(state_folder, error.step, objective, optimizer, step_once.state, writes=writes)
            found = locate(objective, batches.tokens(error.step), batches.domains(error.step))
            accelerator.wait_for_everyone()
            raise ConfigError(
                f"step {error.step + 1}: {found}; the state before this step is kept: run the same command with "
                "--skip-nonfinite (of snakemake: --config skip_nonfinite=true) to leave such steps out, or lower "
                "train.learning_rate or the weights of balance.terms"
            ) from None
        if not logged:
            metrics = None  # measured to be sure that the state is finite
        if metrics is not None and hardware.tracker:
            accelerator.log(_flat(metrics), step=done)
        if log is not None and progress is not None:
            progress.advance(done, None if metrics is None else metrics["lm_loss"])
            if metrics is not None:
                head = {"step": done, "tokens": done * tokens_per_step, "skipped_steps": int(step_once.skipped)}
                log.write({**head, **metrics, "seconds": stopwatch.seconds})
                if save:
                    log.counts.add(done, step_once.pool.totals(1))
        if saves and done in keep:
            with left_for_branches(state_folder, done) if writes else nullcontext(state_folder) as folder:
                save_checkpoint(folder, done, objective, optimizer, step_once.state, writes=writes)
        stopping = stop.requested
        if told is not None:  # only the first process is told, and all have to save
            stopping = any_process(stopping, told)
        if saves and (save or stopping):
            save_checkpoint(state_folder, done, objective, optimizer, step_once.state, writes=writes)
        if stopping:
            if progress is not None:
                progress.close()
            raise Stopped(signal.SIGTERM, f"terminated after step {done} of {settings.steps}")
    weights = joined_weights(objective.model, keeps=writes) if shard else None
    if log is not None and progress is not None:
        progress.close()
        _finish(
            step_once,
            log,
            batches,
            run=run,
            data_folder=data_folder,
            run_folder=run_folder,
            weights=weights,
            compiled=compiled,
        )
        provenance.remove_folder(state_folder)
    stop.release()
    # DDP goes before its process group: as the group's last owner it would wait, with the interpreter's lock held, for
    # gloo's threads, and those wait for that lock.
    del prepared, prepared_optimizer, step_once, told
    accelerator.free_memory()
    accelerator.end_training()


def _objective(config: RunConfig, accelerator: Accelerator, *, shard: bool) -> Objective:
    """The run's model at its start, on the accelerator's device; with `shard` divided over all processes."""

    def build() -> Objective:
        model = build_model(
            config.model,
            vocab_size=config.data.vocab_size,
            max_tokens=config.data.sequence_length,
            seed=config.seed,
            forced=config.balance.forced,
        )
        if config.train.activation_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        return Objective(model).train()

    if not shard:
        return build().to(accelerator.device)
    with torch.device("meta"):
        objective = build()
    divide(objective, build() if accelerator.is_main_process else None, accelerator.device)
    return objective


class _Log:
    """`train.jsonl` while it grows; on a resume, lines beyond the checkpoint are dropped, since they come again."""

    def __init__(self, state_folder: Path, first_step: int) -> None:
        self.path = path = state_folder / "train.jsonl"
        self.counts = SequenceCounts(state_folder, first_step)
        self.lines: list[dict[str, Any]] = []
        if first_step and path.exists():
            # A line that was cut off in mid-write lies beyond the checkpoint too.
            whole = path.read_text().split("\n")[:-1]
            self.lines = [record for record in map(json.loads, whole) if record["step"] <= first_step]
        with provenance.complete_file(path) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in self.lines))
        self._last_step, self._last_time = first_step, time.perf_counter()

    def write(self, record: dict[str, Any]) -> None:
        """Append one line, with the speed since the line before."""
        now = time.perf_counter()
        tokens = record["tokens"] // record["step"] * (record["step"] - self._last_step)
        record = {**record, "tokens_per_second": tokens / (now - self._last_time)}
        self._last_step, self._last_time = record["step"], now
        self.lines.append(record)
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            # A checkpoint that outlives a power cut must not meet a log that has lost its last lines.
            os.fsync(file.fileno())


def _flat(metrics: dict[str, Any]) -> dict[str, float]:
    """Scalars for a tracker: the mean over layers of every per-layer metric, one balance value per term."""
    flat = {name: value for name, value in metrics.items() if isinstance(value, float)}
    for i, values in enumerate(metrics["balance"]):
        if values is not None:
            flat[f"balance/{i}"] = sum(values) / len(values)
    for name, values in metrics.items():
        if isinstance(values, list) and name != "balance":
            flat[name] = sum(values) / len(values)
    return flat


def _finish(
    step: Step,
    log: _Log,
    batches: TrainingBatches,
    *,
    run: str,
    data_folder: Path,
    run_folder: Path,
    weights: dict[str, torch.Tensor] | None,
    compiled: bool,
) -> None:
    """Write the run's outputs, `train.json` last."""
    give_back_memory()
    config, model = step.config, step.objective.model
    with provenance.complete_folder(run_folder / "model") as folder:
        save_model(model, folder, weights)
        shutil.copytree(data_folder / "tokenizer", folder, dirs_exist_ok=True)
    curve = [{key: value for key, value in line.items() if key not in TIMES} for line in log.lines]
    speed = [{key: line[key] for key in ("step", *TIMES)} for line in log.lines]
    for name, part in (("train.jsonl", curve), ("speed.jsonl", speed)):
        with provenance.complete_file(run_folder / name) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in part))
    total, active = num_parameters(model)
    device = provenance.device_name(step.accelerator.device)
    of_counts, record = (
        provenance.run_stamp(schema, config, run=run, device=device) for schema in ("moe-counts/1", "moe-train/1")
    )
    log.counts.write(run_folder / "counts.parquet", config, batches, of_counts)
    record |= {
        "processes": step.layout.num_ranks,
        "threads": torch.get_num_threads(),
        "compiled": compiled,
        "steps": config.train.steps,
        "tokens": config.train.steps * config.train.batch_sequences * config.data.sequence_length,
        "skipped_steps": int(step.skipped),
        "parameters": total,
        "active_parameters": active,
        "weights_sha256": provenance.sha256_of(run_folder / "model" / "model.safetensors"),
        "final": curve[-1],
    }
    provenance.write_json(run_folder / "train.json", record)
