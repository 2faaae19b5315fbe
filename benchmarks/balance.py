"""What does balance cost? Optimizer steps of the cpu scale with it, step by step beside steps without it, on the CPU.

`terms`: whole steps with balance, and with no term, beside a step of the same compiled model that knows of none.
`estimators`: `exact` under accumulation beside `prefix`, and its counting passes alone. `ranks`: a window over two
processes, which needs a collective, beside one that lies within each. Weights stay as they began, so that all steps
route all tokens alike.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import PartialState

from benchmarks.workload import CPU, Batches, objective, our_step, take
from moe.config import RunConfig
from moe.launch import become_rank, is_rank, rendezvous
from moe.model.objective import LOSS_TOKENS
from moe.settings import parse
from moe.speed import keep_memory
from moe.step import Step, Stopwatch, make_optimizer

ROOT = Path(__file__).parents[1]
WARMUP = 3  # steps, compilation included
ROUNDS = {"terms": 60, "estimators": 40, "ranks": 80}
PROCESSES = {"terms": 1, "estimators": 1, "ranks": 2}
TARGETS = {"terms": 1.02, "estimators": 1.0, "ranks": 1.01}
PASSES = 4
STILL = 1e-12
"""Learning rate and bias rate that change nothing."""

Run = Callable[[int], object]


def measure() -> dict[str, Any]:
    """Wall and CPU seconds of every step of every variant, by part and variant; steps of equal index are neighbours."""
    return {"targets": TARGETS, **{part: _in_processes(part) for part in ROUNDS}}


def text(record: dict[str, Any]) -> str:
    """Medians of the ratios of neighbouring steps, with their quartiles, beside the targets."""
    terms, estimators, ranks = (record[part] for part in ROUNDS)
    targets = record["targets"]
    lines = [f"{'balance: cost of a step, median [quartiles]':<48}{'ms':>7}{'CPU time':>23}{'wall time':>23}  target"]
    for name in terms["seconds"]:
        target = "" if name.startswith("without") else f"<= {targets['terms']}"
        lines.append(_line(name, terms, name, "without balance", target))
    lines.append(_line(f"exact beside prefix, {PASSES} passes", estimators, "exact", "prefix", ""))
    lines.append(_line("  counting passes beside prefix", estimators, "counting", "prefix", ""))
    cost = [_excess(estimators[kind]) for kind in ("cpu_seconds", "seconds")]
    shares = "".join(f"{_spread(values):>23}" for values in cost)
    lines.append(f"{'  exact beyond prefix, in counting passes':<48}{'':>7}{shares}  <= {targets['estimators']}")
    target = f"<= {targets['ranks']} (two ranks fill two cores)"
    lines.append(_line("2 ranks, window over both beside within each", ranks, "global", "local", target))
    sent = ranks["bytes"]
    lines.append(f"  bytes per rank and step: {sent['global']} of counts, {sent['gradient']:,} of gradients")
    return "\n".join(lines)


def _line(label: str, part: dict[str, Any], name: str, base: str, target: str) -> str:
    ratios = [
        _spread([a / b for a, b in zip(part[kind][name], part[kind][base], strict=True)])
        for kind in ("cpu_seconds", "seconds")
    ]
    milliseconds = 1e3 * statistics.median(part["seconds"][name])
    return f"{label:<48}{milliseconds:>7.1f}{ratios[0]:>23}{ratios[1]:>23}  {target}".rstrip()


def _spread(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} [{low:.3f} {high:.3f}]"


def _excess(seconds: dict[str, list[float]]) -> list[float]:
    """What `exact` takes more than `prefix`, as a multiple of its counting passes."""
    rows = zip(seconds["exact"], seconds["prefix"], seconds["counting"], strict=True)
    return [(exact - prefix) / counting for exact, prefix, counting in rows]


def _in_processes(part: str) -> dict[str, Any]:
    """Run a part in processes of its own, and take what the first one says."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    if (number := PROCESSES[part]) > 1:
        environment |= rendezvous(number)
    command = [sys.executable, "-c", f"from benchmarks.balance import _child; _child({part!r})"]
    processes = []
    for rank in range(number):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if number > 1 else {}
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment | own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        processes.append(process)
    answers = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, answers, strict=True):
        if process.returncode:
            raise RuntimeError(f"{part}: {errors.strip()}")
    return json.loads(answers[0][0].splitlines()[-1])


def _child(part: str) -> None:
    """Print the seconds of all variants of a part as one line of JSON."""
    torch.set_num_threads(1)
    if PROCESSES[part] > 1:
        become_rank()
    found: dict[str, Any] = {"terms": _terms, "estimators": _estimators, "ranks": _ranks}[part](CPU)
    print(json.dumps(found))
    if is_rank():
        PartialState().destroy_process_group()


def _terms(base: RunConfig) -> dict[str, Any]:
    batches = Batches(base)
    variants = {name: _plain(base, batches) for name in ("without balance", "without balance, once more")}
    one = [{"window": "global"}]
    variants |= {
        "without a term: counts, metrics and z-loss": _step(_config(base, []), batches)[0],
        "one global term": _step(_config(base, one), batches)[0],
        "hybrid: global and one sequence": _step(_config(base, [*one, {"window": 1}]), batches)[0],
        "global term and selection bias": _step(_config(base, one, {"rate": STILL}), batches)[0],
    }
    return _timed(variants, ROUNDS["terms"])


def _estimators(base: RunConfig) -> dict[str, Any]:
    batches, size = Batches(base), base.train.batch_sequences // PASSES
    terms = {name: [{"window": "global", "estimator": name}] for name in ("exact", "prefix")}
    made = {name: _step(_config(base, terms[name], sequences_per_pass=size), batches) for name in terms}
    counted = made["exact"][1].objective

    def count(i: int) -> None:
        for tokens_SN in torch.from_numpy(batches.tokens(i)).split(size):
            counted.count(tokens_SN)

    return _timed({**{name: run for name, (run, _) in made.items()}, "counting": count}, ROUNDS["estimators"])


def _ranks(base: RunConfig) -> dict[str, Any]:
    batches, share = Batches(base), base.train.batch_sequences // PROCESSES["ranks"]
    windows = {"global": "global", "local": share}
    made = {name: _step(_config(base, [{"window": window}]), batches) for name, window in windows.items()}
    parameters = list(made["global"][1].objective.parameters())
    sent = {"gradient": sum(p.numel() * p.element_size() for p in parameters)}
    for name, (_, step) in made.items():
        sent[name] = _count_bytes(step, batches)
    return _timed({name: run for name, (run, _) in made.items()}, ROUNDS["ranks"]) | {"bytes": sent}


def _config(base: RunConfig, terms: list[dict], bias: dict | None = None, **train: Any) -> RunConfig:
    raw = base.model_dump(mode="json")
    raw["train"] |= {"learning_rate": STILL, "final_learning_rate": STILL, **train}
    raw["balance"] |= {"terms": terms, "bias": bias}
    return parse(RunConfig, raw, "benchmark")


def _step(config: RunConfig, batches: Batches) -> tuple[Run, Step]:
    step = our_step(config, objective(config))
    return lambda i: take(step, i, batches), step


def _plain(base: RunConfig, batches: Batches) -> Run:
    """The same model, loss and optimizer in a loop that knows of no balance."""
    config = _config(base, [])
    plain = objective(config)
    model, optimizer = plain.model, make_optimizer(config.train, plain)

    def run(i: int) -> None:
        tokens_BN = torch.from_numpy(batches.tokens(i))
        hidden_BNH = model.model(input_ids=tokens_BN, use_cache=False).last_hidden_state
        nats = F.linear_cross_entropy(
            hidden_BNH[:, :-1].flatten(0, 1),
            model.lm_head.weight,
            tokens_BN[:, 1:].flatten(),
            reduction="sum",
            options=torch.nn.LinearCrossEntropyOptions(batch_chunk_size=LOSS_TOKENS),
        )
        (nats / tokens_BN[:, 1:].numel()).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), config.train.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()

    return run


def _count_bytes(step: Step, batches: Batches) -> int:
    """Bytes of counts that this rank contributes to the collectives of a step that is not measured."""
    sent, reduce = [0], step.pool.reduce

    def counted(counts: torch.Tensor) -> torch.Tensor:
        sent[0] += counts.numel() * counts.element_size()
        return reduce(counts)

    step.pool.reduce = counted
    step(0, batches.tokens(0), Stopwatch(step.accelerator.device, measure=False), measure=False)
    step.pool.reduce = reduce
    return sent[0]


def _timed(variants: dict[str, Run], rounds: int) -> dict[str, Any]:
    """Seconds of one step after the other, each variant once in every round, from another one on each time."""
    names = list(variants)
    for name in names:
        for i in range(WARMUP):
            variants[name](i)
    keep_memory()
    wall, cpu = ({name: [] for name in names} for _ in range(2))
    for i in range(rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            began, cpu_began = time.perf_counter(), time.process_time()
            variants[name](i)
            wall[name].append(time.perf_counter() - began)
            cpu[name].append(time.process_time() - cpu_began)
    return {"seconds": wall, "cpu_seconds": cpu}
