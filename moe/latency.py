"""How long do a training step, prefill and decode take? Runs side by side in one process, alone on the machine.

Repetitions are interleaved over the runs, so that a slow moment of the machine meets all of them. Inference is timed
with the routing that a run has learned, and with forced balance, where every expert gets the same load: the difference
is what imbalance costs on this machine.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from moe import expert_parallel, provenance
from moe.config import RunConfig
from moe.data.order import TrainingBatches
from moe.model.build import load_model, routers
from moe.model.objective import Objective
from moe.model.products import use_fastest_products
from moe.scale import HardwareConfig, LatencyConfig, check_latency
from moe.settings import read_json
from moe.speed import compile_layers, keep_memory
from moe.step import Step, Stopwatch, make_optimizer, split_batch


def measure(*, runs: Sequence[tuple[Path, Path]], settings: LatencyConfig, hardware: HardwareConfig, out: Path) -> None:
    """Time trained runs, each a pair of run folder and data folder, and write their seconds to `out`.

    Per run: `train_step_seconds`, one per counted repetition; `learned` and `balanced`, each with `prefill_seconds`
    of the whole prompt batch and `decode_seconds` of one position of the batch. Of the machine: `expert_parallel`, see
    `moe/expert_parallel.py`; null where two processes cannot talk.
    Raises `ConfigError` where the prompt does not fit the run's sequences.
    """
    torch.set_num_threads(hardware.threads)
    use_fastest_products()
    try:
        layers = expert_parallel.measure(warmup=settings.warmup, repeats=settings.repeats)
    except RuntimeError as error:
        print(f"no expert-parallel layer was timed: {error}", file=sys.stderr)
        layers = None
    # Layers of every arm are compiled in this process; beyond the limit they would silently stay as they are.
    torch._dynamo.config.recompile_limit = max(8, 4 * len(runs))  # pyright: ignore[reportAttributeAccessIssue]
    subjects = [
        _Subject(run_folder, data_folder, settings, compile=hardware.compile) for run_folder, data_folder in runs
    ]
    keep_memory()
    device = provenance.device_name(subjects[0].device)
    record = provenance.stamp("moe-latency/1", device=device, threads=hardware.threads, settings=settings.model_dump())
    for repeat in range(settings.warmup + settings.repeats):
        for subject in subjects:
            subject.repeat(repeat, counted=repeat >= settings.warmup)
    record |= {"runs": {subject.name: subject.seconds for subject in subjects}, "expert_parallel": layers}
    provenance.write_json(out, record)


class _Subject:
    """One trained run under the stopwatch."""

    def __init__(self, run_folder: Path, data_folder: Path, settings: LatencyConfig, *, compile: bool) -> None:
        self.name = run_folder.name
        self.settings = settings
        config = read_json(RunConfig, run_folder / "config.json")
        check_latency(config, settings)
        batches = TrainingBatches(config, data_folder)
        self.batches = [batches.tokens(step) for step in range(settings.warmup + settings.repeats)]
        self.last_step = config.train.steps - 1
        accelerator = Accelerator(mixed_precision="bf16" if config.train.precision == "bf16" else "no")
        self.device = accelerator.device
        objective = Objective(load_model(run_folder / "model").to(self.device)).train()
        if compile:
            compile_layers(objective.model)
        self.train_step = Step(
            config,
            objective=objective,
            prepared=objective,
            optimizer=make_optimizer(config.train, objective),
            accelerator=accelerator,
            layout=split_batch(config.train, num_ranks=1, rank=0),
        )
        self.model = load_model(run_folder / "model").to(self.device)
        self.seconds = {
            "train_step_seconds": [],
            "learned": {"prefill_seconds": [], "decode_seconds": []},
            "balanced": {"prefill_seconds": [], "decode_seconds": []},
        }

    def repeat(self, repeat: int, *, counted: bool) -> None:
        """One training step, and prefill and decode under both routings."""
        watch = Stopwatch(self.device, measure=False)
        self.train_step(self.last_step, self.batches[repeat], watch, measure=False)
        train = [sum(watch.seconds.values())]
        inference = {name: self._generate(self.batches[repeat], forced) for name, forced in ROUTINGS.items()}
        if counted:
            self.seconds["train_step_seconds"] += train
            for name, seconds in inference.items():
                self.seconds[name]["prefill_seconds"] += seconds[:1]
                self.seconds[name]["decode_seconds"] += seconds[1:]

    @torch.inference_mode()
    def _generate(self, tokens_BN: np.ndarray, forced_balance: bool) -> list[float]:
        """Seconds of the prefill, then of each decoded position; the text is given, so both routings read the same."""
        for router in routers(self.model):
            router.forced_balance = forced_balance
        tokens = torch.from_numpy(tokens_BN[: self.settings.batch_sequences]).to(self.device)
        prompt = self.settings.prompt_tokens
        bounds = [0, *range(prompt, prompt + self.settings.decode_tokens + 1)]
        cache, seconds = None, []
        for start, end in zip(bounds[:-1], bounds[1:], strict=True):
            began = time.perf_counter()
            outputs = self.model(
                input_ids=tokens[:, start:end], past_key_values=cache, use_cache=True, logits_to_keep=1
            )
            outputs.logits.cpu()
            seconds.append(time.perf_counter() - began)
            cache = outputs.past_key_values
        return seconds


ROUTINGS = {"learned": False, "balanced": True}
