"""The losses of this package."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from moe.balance.estimators import Pooling, WindowPool
from moe.balance.losses import load_balancing_loss
from moe.balance.statistics import Statistics, sequence_statistics
from moe.balance.windows import Layout
from moe.conformance.kit import Adapter, Routing, Step

Result = TypeVar("Result")


class Ours(Adapter):
    """`moe.balance` of this package, called as `moe.step` calls it: each rank counts the choices that the forward
    returned, outside of the recomputed region; a counting pass goes before where the window spans passes; passes are
    summed up and data parallelism averages. The second loss has a window of one sequence."""

    def __init__(self, *, global_weight: float = 1.0, micro_weight: float = 0.0) -> None:
        super().__init__(global_weight=global_weight, micro_weight=micro_weight)
        self.pools: list[WindowPool] = []

    def begin(self, step: Step) -> None:
        super().begin(step)
        layouts = [Layout(step.sizes, rank) for rank in range(step.num_ranks)]
        if layouts != [known.layout for known in self.pools]:
            # One pool lives as long as a training run does, whose layout does not change.
            terms = [Pooling(layouts[0].batch_sequences), Pooling(1)]
            ranks = _Ranks(step.num_ranks)
            self.pools = [WindowPool(terms, layout, partial(ranks.sum, layout.rank)) for layout in layouts]
        for known in self.pools:
            known.begin()
        if self.pools[0].needs_counting():
            for i, ranks in enumerate(step.look_ahead()):
                for known, layers in zip(self.pools, ranks, strict=True):
                    known.count(i, _statistics(layers).counts_LSE)
            self._side_by_side(lambda rank: self.pools[rank].finish_counting())

    def losses(self, pass_index: int, ranks: list[list[Routing]]) -> list[Tensor]:
        found = [_statistics(layers) for layers in ranks]
        counts = self._side_by_side(lambda rank: self.pools[rank].counts(pass_index, found[rank].counts_LSE))
        tokens_per_rank = self.step.tokens / self.step.num_ranks
        losses = []
        for known, statistics, terms in zip(self.pools, found, counts, strict=True):
            loss = torch.zeros((), dtype=torch.float64)
            weights = (self.global_weight, self.micro_weight)
            for weight, (window, *_), counts_LWE in zip(weights, known.poolings, terms, strict=True):
                scores_LWE = known.layout.pool(statistics.scores_LSE, pass_index, window)
                loss = (
                    loss + weight * load_balancing_loss(counts_LWE, scores_LWE, tokens_per_rank=tokens_per_rank).mean()
                )
            losses.append(loss / self.step.num_ranks)
        return losses

    def end(self) -> None:
        for known in self.pools:
            known.end()

    def _side_by_side(self, work: Callable[[int], Result]) -> list[Result]:
        with ThreadPoolExecutor(len(self.pools)) as executor:
            return list(executor.map(work, range(len(self.pools))))


class _Ranks:
    """A sum over ranks that are threads: every one waits for what the others contribute."""

    def __init__(self, num_ranks: int) -> None:
        self.parts: list[Tensor] = [torch.empty(0)] * num_ranks
        self.barrier = threading.Barrier(num_ranks, timeout=60)

    def sum(self, rank: int, part: Tensor) -> Tensor:
        self.parts[rank] = part
        self.barrier.wait()
        total = torch.stack(self.parts).sum(dim=0)
        self.barrier.wait()
        return total


def _statistics(layers: list[Routing]) -> Statistics:
    mask_SN = layers[0].mask_SN
    return sequence_statistics(
        [routing.logits_TE for routing in layers],
        [routing.selected_TK for routing in layers],
        num_sequences=len(mask_SN),
        mask_SN=mask_SN,
    )
