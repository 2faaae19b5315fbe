"""How long does a real expert-parallel layer take on this machine? Two processes, tokens sent between them over gloo.

Each process holds half of the experts and has a micro-batch of its own. Its layer tells how many rows will come, sends
the rows, multiplies them expert by expert, sends them back and adds them up. Transfers, products and sorting are timed
alone too: `moe/analysis/straggler_check.py` fits the machine to those and predicts the layers. A part of the latency
stage.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from moe.launch import rendezvous
from moe.speed import keep_memory

# P processes, E experts of all, O experts of one process, T tokens of one process, R = T·K rows, H hidden units

PROCESSES, EXPERTS, TOP_K, HIDDEN, UNITS = 2, 16, 2, 128, 128
TOKENS = (128, 512, 2048)
SKEWS = (0.0, 0.5, 1.0, 1.5)
"""Expert e gets selections in proportion to (e + 1) ** -skew."""
TRANSFERS = (1 << 12, 1 << 16, 1 << 20, 1 << 22)
"""Bytes that each process sends to the other: as few and as many as a layer may send."""
ROWS = (192, 1536, 8192)
"""Rows of each process, evenly over its experts: as few and as many as a layer may meet."""
TIMEOUT = timedelta(seconds=60)


def measure(*, warmup: int, repeats: int) -> dict[str, Any]:
    """Least seconds of `repeats` repetitions, each from when the last process is ready to when the last one is done:
    other programs only ever add time.

    `transfer` by bytes sent, `product` and `sort` by rows, and `layers`, each with the selections [P, E] behind it.
    Raises `RuntimeError` where the processes cannot work together.
    """
    settings = {**rendezvous(PROCESSES), "OMP_NUM_THREADS": "1"}
    processes = []
    try:
        for rank in range(PROCESSES):
            environment = os.environ | settings | {"RANK": str(rank)}
            command = [sys.executable, "-m", "moe.expert_parallel", str(warmup), str(repeats)]
            pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            processes.append(subprocess.Popen(command, env=environment, **pipes))
        answers = [process.communicate() for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, complaint) in zip(processes, answers, strict=True):
        if process.returncode:
            raise RuntimeError(complaint.strip().split("\n")[-1])
    size = {"experts": EXPERTS, "top_k": TOP_K, "hidden_size": HIDDEN, "expert_size": UNITS, "value_bytes": 4}
    return size | json.loads(answers[0][0])


def patterns(tokens: int) -> dict[str, np.ndarray]:
    """Selections [P, E] of two micro-batches of so many tokens, from balance to all on one process."""
    rows, half = tokens * TOP_K, EXPERTS // 2
    found = {}
    for skew in SKEWS:
        share_E = (1.0 + np.arange(EXPERTS)) ** -skew
        whole_E = np.floor(share_E / share_E.sum() * rows).astype(int)
        whole_E[0] += rows - whole_E.sum()
        found[f"skew {skew}" if skew else "balanced"] = np.stack([whole_E, whole_E])
    here, there = (np.repeat(on, half) * (rows // half) for on in ((1, 0), (0, 1)))
    return found | {
        "all to one process": np.stack([here, here]),
        "none travels": np.stack([here, there]),
        "all travel": np.stack([there, here]),
    }


class Layer:
    """The experts of this process, and its half of a dropless layer."""

    def __init__(self, rank: int) -> None:
        torch.manual_seed(rank)
        own = EXPERTS // PROCESSES
        self.up_OHU = torch.randn(own, HIDDEN, 2 * UNITS) / HIDDEN**0.5
        self.down_OUH = torch.randn(own, UNITS, HIDDEN) / UNITS**0.5

    def __call__(self, hidden_TH: Tensor, selected_R: Tensor) -> Tensor:
        """Σ_k E_{selected[t·K + k]}(hidden[t]), [T, H]."""
        rows_RH, tokens_R, sent_E = sort_rows(hidden_TH, selected_R)
        told_E = torch.empty_like(sent_E)
        dist.all_to_all_single(told_E, sent_E)
        out, back = (counts.view(PROCESSES, -1).sum(dim=1).tolist() for counts in (sent_E, told_E))
        received, returned_RH = rows_RH.new_empty(sum(back), HIDDEN), torch.empty_like(rows_RH)
        dist.all_to_all_single(received, rows_RH, back, out)
        dist.all_to_all_single(returned_RH, self.products(received, told_E.view(PROCESSES, -1)), out, back)
        return add_rows(returned_RH, tokens_R, len(hidden_TH))

    def products(self, rows: Tensor, counts_PO: Tensor) -> Tensor:
        """Every row through its expert; rows come by sender and then by expert, and leave in the same order."""
        owners = torch.arange(counts_PO.shape[1]).repeat(len(counts_PO))
        order = owners.repeat_interleave(counts_PO.flatten()).argsort(stable=True)
        done = []
        for part, up, down in zip(
            rows[order].split(counts_PO.sum(dim=0).tolist()), self.up_OHU, self.down_OUH, strict=True
        ):
            gate, value = (part @ up).chunk(2, dim=-1)
            done.append((F.silu(gate) * value) @ down)
        return torch.empty_like(rows).index_copy_(0, order, torch.cat(done))


def sort_rows(hidden_TH: Tensor, selected_R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows sorted by expert, the token of each, and how many rows each expert gets."""
    tokens_R = selected_R.argsort(stable=True) // TOP_K
    return hidden_TH[tokens_R], tokens_R, torch.bincount(selected_R, minlength=EXPERTS)


def add_rows(rows_RH: Tensor, tokens_R: Tensor, num_tokens: int) -> Tensor:
    """The rows of each token, added up, [T, H]."""
    return rows_RH.new_zeros(num_tokens, rows_RH.shape[1]).index_add_(0, tokens_R, rows_RH)


Work = Callable[[], object]


def _pieces(layer: Layer, rank: int) -> dict[str, dict[str, Work]]:
    """Transfers, products and sorting alone, by kind and size."""
    pieces: dict[str, dict[str, Work]] = {"transfer": {}, "product": {}, "sort": {}}
    for size in TRANSFERS:
        splits = [0 if other == rank else size // 4 for other in range(PROCESSES)]
        sent, received = torch.zeros(size // 4), torch.zeros(size // 4)
        pieces["transfer"][str(size)] = lambda r=received, s=sent, n=splits: dist.all_to_all_single(r, s, n, n)
    for rows in ROWS:
        inputs, counts_PO = torch.randn(rows, HIDDEN), torch.full((PROCESSES, EXPERTS // PROCESSES), rows // EXPERTS)
        pieces["product"][str(rows)] = lambda x=inputs, n=counts_PO: layer.products(x, n)
        selected_R, hidden_TH = torch.arange(EXPERTS).repeat(rows // EXPERTS), torch.randn(rows // TOP_K, HIDDEN)
        pieces["sort"][str(rows)] = lambda x=hidden_TH, s=selected_R: add_rows(*sort_rows(x, s)[:2], len(x))
    return pieces


def _layers(layer: Layer, rank: int) -> tuple[list[dict[str, Any]], list[Work]]:
    """What is known of each layer, and the layers."""
    known, works = [], []
    for tokens in TOKENS:
        for name, counts_PE in patterns(tokens).items():
            shuffled_R = np.random.default_rng(tokens).permutation(np.repeat(np.arange(EXPERTS), counts_PE[rank]))
            selected_R, hidden_TH = torch.from_numpy(shuffled_R), torch.randn(tokens, HIDDEN)
            known.append({"pattern": name, "tokens": tokens, "counts": counts_PE.tolist()})
            works.append(lambda x=hidden_TH, s=selected_R: layer(x, s))
    return known, works


def _least(works: Sequence[Work], *, warmup: int, repeats: int) -> list[float]:
    """Least seconds of each; all of them in turn, so that a slow moment of the machine meets them alike, and in another
    order each time, since what came before decides what the caches hold."""
    spans = np.zeros((2, repeats, len(works)))
    rng = np.random.default_rng(0)
    for repeat in range(-warmup, repeats):
        for i in rng.permutation(len(works)):
            dist.barrier()
            began = time.perf_counter()
            works[i]()
            if repeat >= 0:
                spans[:, repeat, i] = began, time.perf_counter()
    both = [torch.empty(spans.shape, dtype=torch.float64) for _ in range(PROCESSES)]
    dist.all_gather(both, torch.from_numpy(spans))
    # One clock for the processes of a machine.
    latest = torch.stack(both).amax(dim=0)
    return (latest[1] - latest[0]).amin(dim=0).tolist()


def main(warmup: int, repeats: int) -> None:
    """One of the processes: the first prints the seconds as one line of JSON."""
    torch.set_num_threads(1)
    keep_memory()
    dist.init_process_group("gloo", timeout=TIMEOUT)
    rank = dist.get_rank()
    layer = Layer(rank)
    pieces = _pieces(layer, rank)
    known, layers = _layers(layer, rank)
    works = [work for named in pieces.values() for work in named.values()]
    with torch.inference_mode():
        seconds = iter(_least([*works, *layers], warmup=warmup, repeats=repeats))
    found: dict[str, Any] = {kind: {name: next(seconds) for name in named} for kind, named in pieces.items()}
    found["layers"] = [{**what, "seconds": next(seconds)} for what in known]
    if rank == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
