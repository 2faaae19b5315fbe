"""What do the benchmarks train? The cpu scale's widest run, on made-up tokens, by the step that `moe train` does."""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from transformers import PreTrainedModel

from moe.config import DataConfig, RunConfig
from moe.data.order import SampleOrder, read_batch
from moe.data.packing import prepare
from moe.model.build import build_model
from moe.model.objective import Objective
from moe.model.products import use_fastest_products
from moe.scale import HardwareConfig
from moe.speed import compile_layers
from moe.step import Step, Stopwatch, make_optimizer, split_batch
from moe.sweep import load_plan

# B sequences of the batch, N tokens of a sequence

PLAN = load_plan("cpu", Path(__file__).parents[1] / "config")
CPU = PLAN.configs[PLAN.widest]
PACKED_SEQUENCES = 4096


class Batches:
    """The batches that all see: tokens with the frequencies of words, from a packed file in memory."""

    def __init__(self, config: RunConfig) -> None:
        rng = np.random.default_rng(config.seed)
        shape = (PACKED_SEQUENCES, config.data.sequence_length)
        packed = (rng.zipf(1.2, size=shape) - 1).clip(max=config.data.vocab_size - 1).astype(np.uint16)
        self.packed = np.array_split(packed, len(config.data.domains))
        self.order = SampleOrder.of_run(config, [len(sequences) for sequences in self.packed])

    def tokens(self, step: int) -> np.ndarray:
        """Tokens int64 [B, N]."""
        return read_batch(self.packed, *self.order.batch(step))


def pack_words(folder: Path) -> DataConfig:
    """Pack one domain of random words in `folder`/packed, for trainings that are processes of their own."""
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choices(letters, k=5)) for _ in range(500)]
    lines = [json.dumps({"text": " ".join(rng.choices(words, k=200))}) for _ in range(400)]
    (folder / "words.jsonl").write_text("\n".join(lines))
    source = {"kind": "files", "paths": [str(folder / "words.jsonl")]}
    sizes = {"vocab_size": 512, "sequence_length": 128, "train_tokens": 32768, "heldout_tokens": 256}
    config = DataConfig.model_validate({"domains": [{"name": "words", "source": source}], **sizes})
    prepare(config, folder / "packed")
    return config


def training(folder: Path, config: RunConfig, hardware: HardwareConfig) -> list[str]:
    """Command of a training in `folder`, which is made, on the data that `pack_words` has packed beside it."""
    run = folder / "run"
    run.mkdir(parents=True)
    (run / "config.json").write_text(config.model_dump_json())
    where = {"--config": run / "config.json", "--data": folder.parent / "packed", "--state": folder / "state"}
    arguments = [str(word) for pair in where.items() for word in pair]
    return [sys.executable, "-m", "moe", "train", *arguments, "--hardware", hardware.model_dump_json()]


def build(make: Callable[..., PreTrainedModel], config: RunConfig) -> PreTrainedModel:
    """The model of the run by `build_model` or `stock_model`, for training."""
    sizes = {"vocab_size": config.data.vocab_size, "max_tokens": config.data.sequence_length}
    return make(config.model, **sizes, seed=config.seed).train()


def objective(config: RunConfig, *, compiled: bool = True) -> Objective:
    """What our step calls, with the products and the compiled layers of `moe train`."""
    use_fastest_products()
    model = build(build_model, config)
    if compiled:
        compile_layers(model)
    return Objective(model).train()


def our_step(config: RunConfig, objective: Objective) -> Step:
    """The step of `moe train`."""
    accelerator = Accelerator(mixed_precision="bf16" if config.train.precision == "bf16" else "no")
    prepared, optimizer = accelerator.prepare(objective.to(accelerator.device), make_optimizer(config.train, objective))
    layout = split_batch(config.train, num_ranks=accelerator.num_processes, rank=accelerator.process_index)
    return Step(
        config,
        objective=objective,
        prepared=prepared,
        optimizer=optimizer,
        accelerator=accelerator,
        layout=layout,
    )


def take(step: Step, index: int, batches: Batches) -> None:
    """One step, measured as often as the cpu scale logs."""
    measure = index % PLAN.scale.hardware.log_every == PLAN.scale.hardware.log_every - 1
    stopwatch = Stopwatch(step.accelerator.device, measure=measure)
    step(step.config.train.steps // 2, batches.tokens(index), stopwatch, measure=measure)
