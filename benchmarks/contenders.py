"""Who trains the same model on the same tokens? One process per contender, which runs steps when it is told to.

`python -m benchmarks.contenders NAME CONFIG THREADS` reads commands from stdin and answers each with a line of JSON:
    check    loss and gradient norm of the first batch, without auxiliary losses, before any update
    <n>      seconds of n training steps, each from the end of the step before, so that all that a loop does is in it;
             one more goes before, in which a loop sets itself up
    memory   peak memory of the process so far, in bytes
The floors are processes of the same kind, which know no `check`.
"""

import contextlib
import itertools
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from benchmarks.floor import floor
from benchmarks.workload import Batches, build, objective, our_step, take
from moe.config import RunConfig
from moe.model.build import stock_model
from moe.settings import read_json
from moe.speed import keep_memory
from moe.step import make_optimizer

Run = Callable[[int], list[float]]
Check = Callable[[], tuple[float, float]]


def ours(config: RunConfig, *, compiled: bool) -> tuple[Run, Check]:
    """What `moe train` does in a step, metrics included as often as the cpu scale logs them."""
    step, batches = our_step(config, objective(config, compiled=compiled)), Batches(config)
    indices = itertools.count()
    keep_memory()

    def run(steps: int) -> list[float]:
        clock = Clock()
        for _ in range(steps + 1):
            take(step, next(indices), batches)
            clock.tick()
        return clock.seconds[1:]

    def check() -> tuple[float, float]:
        tokens_BN = torch.from_numpy(batches.tokens(0)).to(step.accelerator.device)
        nats, _ = step.prepared(tokens_BN)
        return _gradient(nats / tokens_BN[:, 1:].numel(), step.objective.model)

    return run, check


def trainer(config: RunConfig, experts: str) -> tuple[Run, Check]:
    """`transformers.Trainer` on the stock model, with its own `experts` and its own load-balancing loss."""
    model = _stock(config, experts)
    batches = Batches(config)
    # The dataset yields the sequences in the order that all contenders train on.
    sequences = _Sequences(batches, config.train.batch_sequences)
    arguments = TrainingArguments(
        output_dir="unused",
        per_device_train_batch_size=config.train.batch_sequences,
        learning_rate=config.train.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=config.train.weight_decay,
        adam_beta1=config.train.beta1,
        adam_beta2=config.train.beta2,
        max_grad_norm=config.train.gradient_clip,
        optim="adamw_torch_fused",
        bf16=config.train.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        train_sampling_strategy="sequential",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        max_steps=1,
    )
    found = Trainer(model=model, args=arguments, train_dataset=sequences)
    found.remove_callback(PrinterCallback)

    def run(steps: int) -> list[float]:
        clock = Clock()
        arguments.max_steps = steps + 1
        callback = _Ticks(clock)
        found.add_callback(callback)
        found.train()
        found.remove_callback(callback)
        return clock.seconds[1:]

    return run, lambda: _check_stock(model.to(_device()), batches, config)


def plain_loop(config: RunConfig, experts: str) -> tuple[Run, Check]:
    """A training loop of twenty lines over the stock model: no Trainer, no Accelerate."""
    model = _stock(config, experts).to(_device())
    optimizer = make_optimizer(config.train, model)
    batches = Batches(config)

    def run(steps: int) -> list[float]:
        clock = Clock()
        for i in range(steps + 1):
            tokens_BN = torch.from_numpy(batches.tokens(i)).to(_device())
            with _autocast(config):
                loss = model(input_ids=tokens_BN, labels=tokens_BN, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.gradient_clip)
            optimizer.step()
            optimizer.zero_grad()
            clock.tick()
        return clock.seconds[1:]

    return run, lambda: _check_stock(model, batches, config)


def products_alone(config: RunConfig, *, warm: bool) -> Run:
    """The matrix products of a step and nothing else."""
    seconds = floor(config, warm=warm)
    return lambda steps: [seconds() for _ in range(steps + 1)][1:]


CONTENDERS: dict[str, Callable[[RunConfig], tuple[Run, Check]]] = {
    "ours": lambda config: ours(config, compiled=True),
    "ours, not compiled": lambda config: ours(config, compiled=False),
    "Trainer, grouped_mm": lambda config: trainer(config, "grouped_mm"),
    "Trainer, eager": lambda config: trainer(config, "eager"),
    "plain loop, eager": lambda config: plain_loop(config, "eager"),
}
GPU_CONTENDERS: dict[str, Callable[[RunConfig], tuple[Run, Check]]] = {
    "Trainer, batched_mm": lambda config: trainer(config, "batched_mm"),
    "Trainer, sonicmoe": lambda config: trainer(config, "sonicmoe"),
}
"""Implementations of the experts that may not start: they need a kernel, or more memory than there is."""
FLOORS: dict[str, Callable[[RunConfig], Run]] = {
    "floor": lambda config: products_alone(config, warm=True),
    "floor, cold operands": lambda config: products_alone(config, warm=False),
}


class Clock:
    """Seconds from tick to tick."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = time.perf_counter()

    def tick(self) -> None:
        """The end of a step."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now


class _Ticks(TrainerCallback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.clock.tick()


class _Sequences(torch.utils.data.Dataset):
    """The sequences of all batches one after the other, as Trainer wants them."""

    def __init__(self, batches: Batches, batch_sequences: int) -> None:
        self.batches, self.batch_sequences = batches, batch_sequences
        self._step, self._tokens_BN = -1, np.empty(0)

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        step, place = divmod(index, self.batch_sequences)
        if step != self._step:
            self._step, self._tokens_BN = step, self.batches.tokens(step)
        tokens = torch.from_numpy(self._tokens_BN[place])
        return {"input_ids": tokens, "labels": tokens}


def _stock(config: RunConfig, experts: str) -> PreTrainedModel:
    model = build(stock_model, config)
    model.set_experts_implementation(experts)
    model.config.output_router_logits = True
    model.config.router_aux_loss_coef = config.balance.terms[0].weight
    return model


def _check_stock(model: PreTrainedModel, batches: Batches, config: RunConfig) -> tuple[float, float]:
    tokens_BN = torch.from_numpy(batches.tokens(0)).to(model.device)
    with _autocast(config):
        loss = model(input_ids=tokens_BN, labels=tokens_BN, use_cache=False, output_router_logits=False).loss
    return _gradient(loss, model)


def _gradient(loss: Tensor, model: PreTrainedModel) -> tuple[float, float]:
    """The loss, and the norm of its gradient."""
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return loss.item(), float(torch.stack([gradient.norm() for gradient in gradients]).norm())


def _autocast(config: RunConfig) -> torch.autocast:
    return torch.autocast(_device(), torch.bfloat16, enabled=config.train.precision == "bf16")


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(name: str, config_file: Path, threads: int) -> None:
    """Obey the commands on stdin."""
    torch.set_num_threads(threads)
    config = read_json(RunConfig, config_file)
    commands: dict[str, Callable[[], Any]] = {"memory": _peak_bytes}
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # what libraries print is no answer
        if name in FLOORS:
            run = FLOORS[name](config)
        else:
            run, commands["check"] = (CONTENDERS | GPU_CONTENDERS)[name](config)
        for line in sys.stdin:
            command = line.strip()
            answer = commands[command]() if command in commands else run(int(command))
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
