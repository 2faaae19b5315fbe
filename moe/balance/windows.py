"""Where are the choices pooled? Windows of whole sequences of the global batch, whatever hardware runs it.

A global batch has positions 0 .. batch - 1. Passes run in turn; in each pass the ranks run side by side; each rank
takes neighbouring positions. Window w holds the positions w · window .. (w + 1) · window - 1: it may lie inside one
rank's share of a pass, or span ranks and passes.
"""

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

# L layers, B sequences of the batch, S of them of this rank in this pass, N tokens of a sequence, W windows, E experts


@dataclass(frozen=True)
class Layout:
    """How one global batch is split, and which share this process has."""

    sizes: tuple[tuple[int, ...], ...]
    """Sequences of each pass and, within it, of each rank; they need not be equal."""
    rank: int = 0

    @classmethod
    def split(cls, batch_sequences: int, *, pass_sequences: int, num_ranks: int = 1, rank: int = 0) -> "Layout":
        """As few passes as at most `pass_sequences` per rank and pass allow, all shares as even as can be.

        Raises `ValueError` where a rank would be without a sequence in some pass.
        """
        num_passes = -(-batch_sequences // (pass_sequences * num_ranks))
        base, more = divmod(batch_sequences, num_passes * num_ranks)
        if not base:
            raise ValueError(f"{batch_sequences} sequences cannot be shared out over {num_passes} x {num_ranks} places")
        sizes = iter([base + (place < more) for place in range(num_passes * num_ranks)])
        return cls(tuple(tuple(itertools.islice(sizes, num_ranks)) for _ in range(num_passes)), rank)

    @property
    def num_passes(self) -> int:
        """Accumulation steps of one optimizer step."""
        return len(self.sizes)

    @property
    def num_ranks(self) -> int:
        """Processes that run a pass side by side."""
        return len(self.sizes[0])

    @cached_property
    def batch_sequences(self) -> int:
        """Sequences of the global batch."""
        return sum(map(sum, self.sizes))

    @cached_property
    def _ends(self) -> list[int]:
        """First position of every share, pass by pass and rank by rank, and the end of the batch."""
        return [0, *itertools.accumulate(itertools.chain.from_iterable(self.sizes))]

    def positions(self, pass_index: int) -> range:
        """Positions of this rank's sequences in a pass."""
        share = pass_index * self.num_ranks + self.rank
        return range(self._ends[share], self._ends[share + 1])

    def windows(self, pass_index: int, window: int) -> range:
        """Windows that the sequences of a pass belong to, over all ranks."""
        first, end = (self._ends[i * self.num_ranks] for i in (pass_index, pass_index + 1))
        return range(first // window, (end - 1) // window + 1)

    def windows_of(self, pass_index: int, window: int) -> Tensor:
        """The window of each of this rank's sequences in a pass, counted from the first of `windows`, int64 [S]."""
        at = self.positions(pass_index)
        return torch.arange(at.start, at.stop) // window - self.windows(pass_index, window).start

    def spans_passes(self, window: int) -> bool:
        """Whether some window holds sequences of several passes."""
        return any(end % window for end in self._ends[:: self.num_ranks])

    def spans_ranks(self, window: int) -> bool:
        """Whether some window holds sequences of several ranks or passes."""
        return any(end % window for end in self._ends)

    def pool(self, values_LSE: Tensor, pass_index: int, window: int) -> Tensor:
        """Sum of this rank's sequences of a pass per window of `windows`, [L, W, E]."""
        shape = (values_LSE.shape[0], len(self.windows(pass_index, window)), values_LSE.shape[2])
        index_S = self.windows_of(pass_index, window).to(values_LSE.device)
        return values_LSE.new_zeros(shape).index_add(1, index_S, values_LSE)


def draw_tokens(counted_BN: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The draw that every token of a global batch is in, int64 [B, N]: draw p takes as many of the tokens that count
    as sequence p has, at random and without replacement (arXiv:2501.11873, Table 2). Neighbouring draws together are
    the draw of a window. What `counted_BN` leaves out, padding, stands in draw 0 and is not to be counted."""
    places = np.flatnonzero(counted_BN)
    draws_BN = np.zeros(counted_BN.shape, dtype=np.int64)
    draws_BN.reshape(-1)[rng.permutation(places)] = places // counted_BN.shape[1]
    return draws_BN
