"""Where are the choices pooled? Windows of whole sequences of the global batch, whatever hardware runs it.

A global batch has positions 0 .. batch - 1. Passes run in turn; in each pass the ranks run side by side; each rank
takes `pass_sequences` neighbouring positions. Window w holds the positions w · window .. (w + 1) · window - 1: it may
lie inside one rank's share of a pass, or span ranks and passes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# L layers, S sequences of this rank in this pass, W windows, E experts


@dataclass(frozen=True)
class Layout:
    """How one global batch is split, and which share this process has."""

    batch_sequences: int
    pass_sequences: int
    num_ranks: int = 1
    rank: int = 0

    @property
    def num_passes(self) -> int:
        """Accumulation steps of one optimizer step."""
        return self.batch_sequences // (self.pass_sequences * self.num_ranks)

    def positions(self, pass_index: int) -> range:
        """Positions of this rank's sequences in a pass."""
        first = (pass_index * self.num_ranks + self.rank) * self.pass_sequences
        return range(first, first + self.pass_sequences)

    def windows(self, pass_index: int, window: int) -> range:
        """Windows that the sequences of a pass belong to, over all ranks."""
        width = self.pass_sequences * self.num_ranks
        return range(pass_index * width // window, ((pass_index + 1) * width - 1) // window + 1)


def pool(values_LSE: Tensor, positions: range, window: int, windows: range) -> Tensor:
    """Sum per window, [L, W, E]: the sequence at position p belongs to window p // window."""
    index_S = torch.arange(positions.start, positions.stop, device=values_LSE.device) // window - windows.start
    shape = (values_LSE.shape[0], len(windows), values_LSE.shape[2])
    return values_LSE.new_zeros(shape).index_add(1, index_S, values_LSE)


class WindowPool:
    """Counts that the f of each term is computed from, during one optimizer step.

    terms: (window, estimator) of each term. reduce: sums a tensor over all ranks; called at most once per pass, with
    the counts of all layers and terms. A term whose windows lie within one rank's share needs no reduction.

    exact: all of the window. Where windows span passes, the step first runs `count` for every pass, then `finish`.
    prefix: what the passes so far have seen of the window, counts and totals alike (arXiv:2501.11873, Algorithm 1).
    """

    def __init__(self, terms: Sequence[tuple[int, str]], layout: Layout, reduce: Callable[[Tensor], Tensor]) -> None:
        self.terms = terms
        self.layout = layout
        self.reduce = reduce
        self._seen: dict[int, Tensor] = {}

    def needs_counting(self) -> bool:
        """Whether a term asks for counts of passes that are still to come."""
        return any(self._spans_passes(window) and estimator == "exact" for window, estimator in self.terms)

    def count(self, pass_index: int, counts_LSE: Tensor) -> None:
        """Add one pass to the windows that are counted in advance."""
        for i, (window, estimator) in enumerate(self.terms):
            if self._spans_passes(window) and estimator == "exact":
                self._add(i, pass_index, self._pooled(pass_index, window, counts_LSE))

    def finish(self) -> None:
        """Sum what was counted in advance over the ranks, in one collective for all terms."""
        for i, total in zip(self._seen, self._reduced(list(self._seen.values())), strict=True):
            self._seen[i] = total

    def counts(self, pass_index: int, counts_LSE: Tensor) -> list[Tensor]:
        """Per term, [L, W, E] counts of the windows of this pass, as far as its estimator knows them."""
        pooled = [self._pooled(pass_index, window, counts_LSE) for window, _ in self.terms]
        shared = [i for i, term in enumerate(self.terms) if self._needs_reduction(*term)]
        for i, total in zip(shared, self._reduced([pooled[i] for i in shared]), strict=True):
            pooled[i] = total
        for i, (window, estimator) in enumerate(self.terms):
            if self._spans_passes(window):
                if estimator == "prefix":
                    self._add(i, pass_index, pooled[i])
                windows = self.layout.windows(pass_index, window)
                pooled[i] = self._seen[i][:, windows.start : windows.stop]
        return pooled

    def _pooled(self, pass_index: int, window: int, counts_LSE: Tensor) -> Tensor:
        layout = self.layout
        return pool(counts_LSE, layout.positions(pass_index), window, layout.windows(pass_index, window))

    def _add(self, i: int, pass_index: int, pooled_LWE: Tensor) -> None:
        window = self.terms[i][0]
        if i not in self._seen:
            shape = (pooled_LWE.shape[0], self.layout.batch_sequences // window, pooled_LWE.shape[2])
            self._seen[i] = pooled_LWE.new_zeros(shape)
        windows = self.layout.windows(pass_index, window)
        self._seen[i][:, windows.start : windows.stop] += pooled_LWE

    def _reduced(self, parts_LWE: list[Tensor]) -> list[Tensor]:
        if not parts_LWE or self.layout.num_ranks == 1:
            return parts_LWE
        return list(self.reduce(torch.cat(parts_LWE, dim=1)).split([part.shape[1] for part in parts_LWE], dim=1))

    def _spans_passes(self, window: int) -> bool:
        return (self.layout.pass_sequences * self.layout.num_ranks) % window != 0

    def _needs_reduction(self, window: int, estimator: str) -> bool:
        counted_in_advance = self._spans_passes(window) and estimator == "exact"
        return self.layout.pass_sequences % window != 0 and not counted_in_advance
