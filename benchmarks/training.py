"""How fast is a training step, beside Trainer and a plain loop on the same model, and beside its matrix products alone?

Every contender is a process of its own, and they take turns: all others wait while one runs some steps. Before any step
is timed, all must find the same loss and gradient on the same batch.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import CONTENDERS, FLOORS, GPU_CONTENDERS
from benchmarks.floor import num_flops
from benchmarks.ratios import spread, summary
from benchmarks.workload import CPU
from moe.config import RunConfig
from moe.model.products import numpy_is_faster
from moe.settings import parse

ROUNDS = 5
STEPS = 5  # of every contender in one round, or as many as the budget allows
BUDGET_SECONDS = 45  # of the timed steps of one shape
TOLERANCES = {"fp32": 1e-4, "bf16": 2e-2}  # bf16 has 8 bits of mantissa
RIVAL = "Trainer, grouped_mm"
TARGET_RATIO, AIM_RATIO = 1.5, 2.0
TARGET_FLOOR, AIM_FLOOR = 2.0, 1.5
MACHINE = {  # name of a way to use two cores: the contender, its processes, threads of each
    "ours, 2 runs of 1 thread": ("ours", 2, 1),
    "ours, 1 run of 2 threads": ("ours", 1, 2),
    f"{RIVAL}, 2 runs of 1 thread": (RIVAL, 2, 1),
    f"{RIVAL}, 1 run of 2 threads": (RIVAL, 1, 2),
}


def shapes() -> dict[str, RunConfig]:
    """The cpu scale and two larger models, in bf16 where there is a GPU."""
    base = CPU.model_dump(mode="json")
    base["train"] |= {"precision": "bf16" if torch.cuda.is_available() else "fp32"}
    base["balance"]["terms"][0] |= {"window": "global"}
    changes = {
        "cpu": {},
        "wide": {
            "model": {"hidden_size": 128, "num_layers": 4, "num_experts": 16, "expert_size": 128},
            "data": {"vocab_size": 4096},
        },
        "large": {
            "model": {"hidden_size": 256, "num_layers": 4, "num_experts": 32, "expert_size": 256},
            "data": {"vocab_size": 8192, "sequence_length": 256},
            "train": {"batch_sequences": 8, "sequences_per_pass": 8},
        },
    }
    return {
        name: parse(RunConfig, base | {key: base[key] | fields for key, fields in change.items()}, f"shape {name}")
        for name, change in changes.items()
    }


def measure() -> dict[str, Any]:
    """Seconds of every step, contender and shape, and of the cpu shape on the machine as a whole."""
    found: dict[str, Any] = {"products": "numpy" if numpy_is_faster() else "torch", "shapes": {}}
    with tempfile.TemporaryDirectory() as temporary:
        for name, config in shapes().items():
            file = Path(temporary, f"{name}.json")
            file.write_text(config.model_dump_json())
            found["shapes"][name] = _shape(config, file)
            if name == "cpu" and not torch.cuda.is_available():
                found["machine"] = _machine(config, file)
    return found


def text(record: dict[str, Any]) -> str:
    """Tokens per second, ratios and memory, each target beside what was measured."""
    lines = [f"our fp32 products on the CPU are done by {record['products']}"]
    for name, shape in record["shapes"].items():
        lines.append(f"training, shape {name}: {shape['description']}")
        lines.append(f"  {'':<24}{'tokens/s':>10}{'ms':>8}   {'ours is faster by':<22}{'peak':>8}{'first pass':>12}")
        for contender, part in shape["contenders"].items():
            ratio = spread(part["ratio"])
            numbers = f"{part['tokens_per_second']:>10,.0f}{part['ms']:>8.1f}   {ratio:<22}"
            lines.append(
                f"  {contender:<24}{numbers}{part['peak_bytes'] / 1e6:>5.0f} MB{part['first_seconds']:>10.1f} s"
            )
        lines += [f"  {contender:<24}does not start: {reason}" for contender, reason in shape["failed"].items()]
        aim = f"target at least {TARGET_RATIO}, aim {AIM_RATIO}" if name == "cpu" else ""
        lines.append(f"  {RIVAL} / ours: {spread(shape['contenders'][RIVAL]['ratio'])}   {aim}".rstrip())
        for floor, part in shape["floors"].items():
            aim = f"   target at most {TARGET_FLOOR}, aim {AIM_FLOOR}" if floor == "floor" else ""
            share = f"{part['ms']:.1f} ms, {part['share']:.0%} of our step"
            lines.append(f"  ours / {floor}: {spread(part['ours_over'])} ({share}){aim}")
    if machine := record.get("machine"):
        lines.append("training, cpu shape on two cores")
        for name, part in machine["ways"].items():
            lines.append(f"  {name:<40}{part['tokens_per_second']:>10,.0f} tokens/s")
        target = f"target at least {TARGET_RATIO}, aim {AIM_RATIO}"
        lines.append(f"  best of ours / best of {RIVAL}: {spread(machine['ratio'])}   {target}")
    return "\n".join(lines)


def check_equal(answers: dict[str, tuple[float, float]], tolerance: float) -> None:
    """Raise `RuntimeError` where loss or gradient norm of a contender are not those of the first."""
    first, *others = answers
    for other in others:
        for what, ours, theirs in zip(("loss", "gradient norm"), answers[first], answers[other], strict=True):
            if not math.isclose(ours, theirs, rel_tol=tolerance):
                raise RuntimeError(f"'{first}' and '{other}' do not train the same model: {what} {ours} and {theirs}")


class Process:
    """One contender; `tell` and `answer` are apart, so that several can run at once."""

    def __init__(self, name: str, config_file: Path, threads: int = 1) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed at the exit
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.contenders", name, str(config_file), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=Path(__file__).parents[1],
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )

    def tell(self, command: str | int) -> None:
        """Send a command, which the process begins at once."""
        assert self._process.stdin
        with suppress(BrokenPipeError):  # `answer` says why
            print(command, file=self._process.stdin, flush=True)

    def answer(self) -> Any:
        """Wait for the answer; raises `RuntimeError` with the last line of its log where the process has ended."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            last = (self._log.read().strip().splitlines() or ["it said nothing"])[-1]
            raise RuntimeError(f"'{self.name}' stopped: {last}")
        return json.loads(line)

    def ask(self, command: str | int) -> Any:
        """The answer to one command."""
        self.tell(command)
        return self.answer()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()


def _shape(config: RunConfig, config_file: Path) -> dict[str, Any]:
    model, train, data = config.model, config.train, config.data
    with ExitStack() as stack:
        started = {name: stack.enter_context(Process(name, config_file)) for name in _names()}
        answers, first_seconds, failed = {}, {}, {}
        for name in [name for name in started if name not in FLOORS]:
            try:
                started[name].ask("memory")  # it is ready
                began = time.perf_counter()
                answers[name] = started[name].ask("check")
                first_seconds[name] = time.perf_counter() - began
            except RuntimeError as error:
                if name not in GPU_CONTENDERS:
                    raise
                failed[name] = str(error)
                del started[name]
        check_equal(answers, TOLERANCES[train.precision])
        warm = {name: process.ask(1)[0] for name, process in started.items()}
        steps = max(1, min(STEPS, int(BUDGET_SECONDS / ROUNDS / sum(warm.values())) - 1))
        samples = {name: [] for name in started}
        for _ in range(ROUNDS):
            for name, process in started.items():
                samples[name].append(process.ask(steps))
        peaks = {name: started[name].ask("memory") for name in answers}
    tokens = train.batch_sequences * data.sequence_length
    parts = {name: _step_part(seconds, tokens) for name, seconds in samples.items()}
    ours = samples["ours"]
    for name, peak in peaks.items():
        parts[name] |= {
            "ratio": _ratio(samples[name], ours),
            "peak_bytes": peak,
            "first_seconds": first_seconds[name],
            "loss": answers[name][0],
            "gradient_norm": answers[name][1],
        }
    for name in FLOORS:
        parts[name] |= {"ours_over": _ratio(ours, samples[name]), "share": parts[name]["ms"] / parts["ours"]["ms"]}
    return {
        "description": (
            f"{model.num_layers} layers of {model.hidden_size}, {model.num_experts} experts of {model.expert_size}, "
            f"top {model.top_k}, {data.vocab_size} entries, {train.batch_sequences} x {data.sequence_length} tokens, "
            f"{train.precision}"
        ),
        "config": config.model_dump(mode="json"),
        "flops": num_flops(config),
        "steps_per_round": steps,
        "contenders": {name: parts[name] for name in peaks},
        "floors": {name: parts[name] for name in FLOORS},
        "failed": failed,
    }


def _names() -> list[str]:
    return [*CONTENDERS, *(GPU_CONTENDERS if torch.cuda.is_available() else ()), *FLOORS]


def _machine(config: RunConfig, config_file: Path) -> dict[str, Any]:
    """Tokens per second of all processes together, for each way to use two cores."""
    tokens = config.train.batch_sequences * config.data.sequence_length
    with ExitStack() as stack:
        ways = {
            way: [stack.enter_context(Process(name, config_file, threads)) for _ in range(processes)]
            for way, (name, processes, threads) in MACHINE.items()
        }
        for group in ways.values():  # the first makes what the second finds in the cache
            for process in group:
                process.ask(2)
        samples: dict[str, list[list[list[float]]]] = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, group in ways.items():
                for process in group:
                    process.tell(STEPS)
                samples[way].append([process.answer() for process in group])
    rates = {way: [_rate(together, tokens) for together in rounds] for way, rounds in samples.items()}
    parts = {
        way: {"seconds": samples[way], "tokens_per_second": statistics.median(rates[way]), "rates": rates[way]}
        for way in ways
    }
    best = [
        max((way for way in ways if MACHINE[way][0] == name), key=lambda way: parts[way]["tokens_per_second"])
        for name in ("ours", RIVAL)
    ]
    return {"ways": parts, "ratio": summary(*(rates[way] for way in best))}


def _step_part(rounds: list[list[float]], tokens: int) -> dict[str, Any]:
    median = statistics.median(second for seconds in rounds for second in seconds)
    by_round = [1e3 * statistics.median(seconds) for seconds in rounds]
    return {"seconds": rounds, "ms": 1e3 * median, "ms_by_round": by_round, "tokens_per_second": tokens / median}


def _rate(together: list[list[float]], tokens: int) -> float:
    """Tokens per second of processes that run side by side."""
    return sum(tokens / statistics.median(seconds) for seconds in together)


def _ratio(numerator: list[list[float]], denominator: list[list[float]]) -> dict[str, float]:
    return summary(map(statistics.median, numerator), map(statistics.median, denominator))
