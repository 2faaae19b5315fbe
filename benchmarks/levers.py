"""What does each thing that makes a step fast bring? The step as it is trained, and the same without that thing.

All variants take turns in one process, on one thread, at the cpu scale; a ratio above 1 is what the step would take
longer without the lever. What holds for all of a process takes turns in processes: the library that multiplies, and
large pages, which are not asked for as trained.
"""

import ctypes
import gc
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from benchmarks.ratios import spread, summary
from benchmarks.workload import CPU, Batches, objective, our_step, take
from moe import speed
from moe.model import dispatch, router
from moe.model import objective as model_objective
from moe.step import Step

ROUNDS, STEPS = 7, 6
PROCESS_ROUNDS, PROCESS_STEPS = 4, 60
PROCESSES = {
    "as trained": {},
    "products by torch": {"OPENBLAS_CORETYPE": "Haswell"},
    "large pages": {"THP_MEM_ALLOC_ENABLE": "1"},
}
GLIBC_DEFAULT = 128 << 10  # bytes, of both thresholds
TILES = range(240, 257)  # rows of an expert, 256 in the mean


def measure() -> dict[str, Any]:
    """Median seconds of a step per variant, and of one round after the other; seconds of products of odd rows."""
    torch.set_num_threads(1)
    trained = _step()
    # Which one is trained hangs on the library that multiplies.
    other = "sdpa" if trained.objective.model.config._attn_implementation == "eager" else "eager"
    stock: dict[str, Callable[[PreTrainedModel], None]] = {
        "stock grouped_mm experts": lambda model: model.set_experts_implementation("grouped_mm"),
        f"{other} attention": lambda model: model.set_attn_implementation(other),
    }
    variants: dict[str, tuple[Step, Callable[[], AbstractContextManager[Any]]]] = {
        "as trained": (trained, nullcontext),
        "layers not compiled": (_step(compiled=False), nullcontext),
        "start-up objects collected": (trained, _collected),
        "freed memory given back": (trained, _given_back),
        "experts chosen by topk": (trained, lambda: patch.object(router, "top_experts", _topk)),
        "rows ordered by argsort": (trained, lambda: patch.object(dispatch, "order_by_expert", _argsort)),
        "full logits": (trained, lambda: patch.object(model_objective.F, "linear_cross_entropy", _full_logits)),
    }
    variants |= {name: (_step(change=change), nullcontext) for name, change in stock.items()}
    batches, seconds = Batches(CPU), {name: [] for name in variants}
    speed.keep_memory()
    for round_ in range(ROUNDS + 1):
        for name, (step, switched) in variants.items():
            with switched():
                found = [_seconds(step, batches, round_ * STEPS + i) for i in range(STEPS)]
            seconds[name] += [median(found[1:])] if round_ else []  # the first compiles and warms up
    tiles = {str(rows): _product_seconds(rows) for rows in TILES}
    return {"rounds": seconds, "processes": _process_seconds(), "tiles": tiles}


def trained_seconds() -> float:
    """Median seconds of a step as trained, in a process of its own."""
    torch.set_num_threads(1)
    step, batches = _step(), Batches(CPU)
    speed.keep_memory()
    return median([_seconds(step, batches, i) for i in range(PROCESS_STEPS)][STEPS:])


def text(record: dict[str, Any]) -> str:
    """One line per lever."""
    rounds = record["rounds"]
    lines = [f"levers at the cpu scale, one thread; as trained {median(rounds['as trained']) * 1e3:.1f} ms per step"]
    for found in (rounds, record["processes"]):
        for name in list(found)[1:]:
            lines.append(f"  {name:28} {spread(summary(found[name], found['as trained']))} times as long")
    tiles = {int(rows): seconds for rows, seconds in record["tiles"].items()}
    whole = tiles.pop(max(tiles))
    lines.append(
        f"  {min(tiles)}..{max(tiles)} rows not padded to 256: {median(tiles.values()) / whole:.2f}x the time of 256"
    )
    return "\n".join(lines)


def _process_seconds() -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in PROCESSES}
    command = [sys.executable, "-c", "from benchmarks.levers import trained_seconds; print(trained_seconds())"]
    for _ in range(PROCESS_ROUNDS):
        for name, settings in PROCESSES.items():
            environment = os.environ | settings
            root = Path(__file__).parents[1]
            done = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            found[name].append(float(done.stdout))
    return found


def _step(*, compiled: bool = True, change: Callable[[PreTrainedModel], None] | None = None) -> Step:
    subject = objective(CPU, compiled=compiled)
    if change:
        change(subject.model)  # before the first call compiles
    return our_step(CPU, subject)


def _seconds(step: Step, batches: Batches, index: int) -> float:
    began = time.perf_counter()
    take(step, index, batches)
    return time.perf_counter() - began


@contextmanager
def _collected():
    gc.unfreeze()
    try:
        yield
    finally:
        gc.freeze()


@contextmanager
def _given_back():
    def set_thresholds(size: int) -> None:
        if platform.libc_ver()[0] == "glibc":
            libc = ctypes.CDLL(None)
            libc.mallopt(speed.M_MMAP_THRESHOLD, size)
            libc.mallopt(speed.M_TRIM_THRESHOLD, size)

    set_thresholds(GLIBC_DEFAULT)
    try:
        yield
    finally:
        set_thresholds(speed.KEPT_BYTES)


def _full_logits(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, **settings: Any) -> torch.Tensor:
    settings.pop("options")
    return F.cross_entropy(F.linear(hidden, weight), targets, **settings)


def _topk(scores_TE: torch.Tensor, top_k: int) -> torch.Tensor:
    return scores_TE.topk(top_k, dim=-1).indices


def _argsort(selected_R: torch.Tensor) -> torch.Tensor:
    return selected_R.argsort(stable=True)


def _product_seconds(rows: int) -> float:
    """Of the products of one expert with so many rows, forward and backward."""
    a, b, c = torch.randn(rows, 64), torch.randn(128, 64), torch.randn(rows, 128)
    times = []
    for _ in range(200):
        began = time.perf_counter()
        torch.mm(a, b.T)
        torch.mm(c, b)
        torch.mm(c.T, a)
        times.append(time.perf_counter() - began)
    return median(times)
