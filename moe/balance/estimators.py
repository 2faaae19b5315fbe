"""How is f of a window known before all of the window was seen? Counts that each term's f is computed from.

exact     all of the window; where windows span passes, a counting pass goes before
prefix    what the passes so far have seen of it, counts and totals alike (arXiv:2501.11873, Algorithm 1)
previous  the whole last optimizer step
ema       all steps before, each step's counts weighing half as much after `half_life` steps
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from moe.balance.windows import Layout

# L layers, S sequences of this rank in this pass, D draws of the batch, W windows, E experts


class Pooling(NamedTuple):
    """Which counts one term wants."""

    window: int
    """Sequences; the whole batch for `previous` and `ema`."""
    estimator: str = "exact"
    half_life: float = 0.0
    """Optimizer steps, of `ema`."""
    shuffled: bool = False
    """Whether the counts are those of draws from the whole batch; of `exact` alone."""

    @property
    def looks_back(self) -> bool:
        """Whether f comes from earlier optimizer steps."""
        return self.estimator in ("previous", "ema")

    @property
    def decay(self) -> float:
        """Weight of what was known when a step is added to it."""
        return 0.5 ** (1 / self.half_life) if self.estimator == "ema" else 0.0


class WindowPool:
    """Counts for the terms of a training run, one optimizer step after the other.

    A step calls `begin`; where `needs_counting`, `count` for every pass and `finish_counting`; `counts` for every pass;
    and `end`. reduce: sums a tensor over all ranks; called at most once per pass, with the counts of all layers and
    terms, and once by `finish_counting`. A window that lies within one rank's share needs no reduction.
    drawn_LDE: counts per draw, as in `Statistics`, where a term is shuffled.
    """

    def __init__(self, poolings: Sequence[Pooling], layout: Layout, reduce: Callable[[Tensor], Tensor]) -> None:
        self.poolings = list(poolings)
        self.layout = layout
        self.reduce = reduce
        self.past: dict[int, Tensor] = {}
        """Counts of earlier steps [L, E], fp64, of the terms that look back; absent before the first step."""
        self._seen: dict[int, Tensor] = {}
        self._totals: dict[int, Tensor] = {}

    def begin(self, totals: Sequence[int] = ()) -> None:
        """Start an optimizer step, after whose last pass `totals` shall know the windows of these sizes."""
        if any(pooling.looks_back for pooling in self.poolings):
            totals = [*totals, self.layout.batch_sequences]
        self._seen = {}
        self._totals = dict.fromkeys(totals, torch.zeros((), dtype=torch.int64))

    def needs_counting(self) -> bool:
        """Whether a term asks for counts of passes that are still to come."""
        return any(self._counted_in_advance(pooling) for pooling in self.poolings)

    def count(self, pass_index: int, counts_LSE: Tensor, drawn_LDE: Tensor | None = None) -> None:
        """Add one pass to the windows that are counted in advance."""
        for i, pooling in enumerate(self.poolings):
            if self._counted_in_advance(pooling):
                self._add(i, pass_index, self._wanted(pooling, pass_index, counts_LSE, drawn_LDE))

    def finish_counting(self) -> None:
        """Sum what was counted in advance over the ranks."""
        self._seen = dict(zip(self._seen, self._reduced(list(self._seen.values())), strict=True))

    def counts(self, pass_index: int, counts_LSE: Tensor, drawn_LDE: Tensor | None = None) -> list[Tensor]:
        """Per term, [L, W, E] counts of the windows of this pass, as far as its estimator knows them; without a step
        before, a term that looks back knows none, so that its loss is 0."""
        known: dict[int, Tensor] = {}
        for i, pooling in enumerate(self.poolings):
            if not pooling.looks_back and not self._counted_in_advance(pooling):
                known[i] = self._wanted(pooling, pass_index, counts_LSE, drawn_LDE)
        for window, total in self._totals.items():
            part = self._pooled(pass_index, window, counts_LSE)
            self._totals[window] = total + self._placed(pass_index, window, part)
        shared = [i for i in known if self.layout.spans_ranks(self._reach(self.poolings[i]))]
        last = list(self._totals) if pass_index == self.layout.num_passes - 1 else []
        sums = self._reduced([*(known[i] for i in shared), *(self._totals[window] for window in last)])
        known |= zip(shared, sums[: len(shared)], strict=True)
        self._totals |= zip(last, sums[len(shared) :], strict=True)
        return [self._known(i, pass_index, counts_LSE, known) for i in range(len(self.poolings))]

    def totals(self, window: int) -> Tensor:
        """Counts [L, W, E] of all windows of the step, after its last pass."""
        return self._totals[window]

    def end(self, forget: Tensor | None = None) -> None:
        """Let the terms that look back take in this step, unless the scalar `forget` is true."""
        for i, pooling in enumerate(self.poolings):
            if pooling.looks_back:
                counts_LE = self._totals[self.layout.batch_sequences].sum(dim=1).double()
                past = self.past.get(i, torch.zeros_like(counts_LE))
                new = pooling.decay * past + counts_LE
                self.past[i] = new if forget is None else torch.where(forget, past, new)

    def _known(self, i: int, pass_index: int, counts_LSE: Tensor, pooled: dict[int, Tensor]) -> Tensor:
        pooling = self.poolings[i]
        if pooling.looks_back:
            nothing = counts_LSE.new_zeros(counts_LSE.shape[0], counts_LSE.shape[2], dtype=torch.float64)
            return self.past.get(i, nothing)[:, None]
        if not self.layout.spans_passes(self._reach(pooling)):
            return pooled[i]
        if pooling.estimator == "prefix":
            self._add(i, pass_index, pooled[i])
        windows = self.layout.windows(pass_index, pooling.window)
        return self._seen[i][:, windows.start : windows.stop]

    def _reach(self, pooling: Pooling) -> int:
        """Size of the windows whose sequences decide on the counts."""
        return self.layout.batch_sequences if pooling.shuffled else pooling.window

    def _wanted(self, pooling: Pooling, pass_index: int, counts_LSE: Tensor, drawn_LDE: Tensor | None) -> Tensor:
        """What a pass contributes to the windows that it meets, or to those of the whole batch where it is shuffled."""
        if not pooling.shuffled:
            return self._pooled(pass_index, pooling.window, counts_LSE)
        assert drawn_LDE is not None
        return drawn_LDE.unflatten(1, (-1, pooling.window)).sum(dim=2)

    def _pooled(self, pass_index: int, window: int, counts_LSE: Tensor) -> Tensor:
        return self.layout.pool(counts_LSE, pass_index, window)

    def _placed(self, pass_index: int, window: int, pooled_LWE: Tensor) -> Tensor:
        """The counts of a pass among those of all windows of the batch."""
        windows = self.layout.windows(pass_index, window)
        after = self.layout.batch_sequences // window - windows.stop
        return torch.nn.functional.pad(pooled_LWE, (0, 0, windows.start, after))

    def _add(self, i: int, pass_index: int, pooled_LWE: Tensor) -> None:
        pooling = self.poolings[i]
        placed = pooled_LWE if pooling.shuffled else self._placed(pass_index, pooling.window, pooled_LWE)
        self._seen[i] = self._seen[i] + placed if i in self._seen else placed

    def _reduced(self, parts_LWE: list[Tensor]) -> list[Tensor]:
        if not parts_LWE or self.layout.num_ranks == 1:
            return parts_LWE
        return list(self.reduce(torch.cat(parts_LWE, dim=1)).split([part.shape[1] for part in parts_LWE], dim=1))

    def _counted_in_advance(self, pooling: Pooling) -> bool:
        return pooling.estimator == "exact" and self.layout.spans_passes(self._reach(pooling))
