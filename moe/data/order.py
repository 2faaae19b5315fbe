"""Which sequences make up the batch of a step? A pure function of (seed, step), so that a resume needs one integer.

Training slots 0, 1, 2 ... run through all batches. Each block of sum(weights) slots holds every domain as often as its
weight says, so domains stay in proportion; a domain's sequences come in a random order without repetition until all
were seen. Within a batch the positions are shuffled, so that windows of a few sequences meet all mixtures of domains.

With `micro_purity` above 0 the slots are filled by whole micro-batches: each block of sum(weights) micro-batches holds
every domain as often as its weight says, and a micro-batch takes the next sequences of its domain. Then every sequence
keeps its place with probability `micro_purity`, and the others trade places at random within the span, the fewest
batches that hold whole blocks. So what is seen in a span, and in which proportion, does not depend on `micro_purity`;
only who sits beside whom does. A sequence comes again only when all of its domain were seen, but for trades within the
span in which that happens.
"""

import math
from functools import lru_cache
from pathlib import Path

import numpy as np

from moe.config import DataConfig, RunConfig
from moe.data.packing import read_packed

# B sequences of a batch, G segments of a sequence


class SampleOrder:
    """Sample ids of every step, from the number of packed training sequences of each domain (in config order)."""

    def __init__(
        self, config: DataConfig, num_sequences: list[int], *, batch_sequences: int, micro_sequences: int, seed: int
    ) -> None:
        self.config = config
        self.num_sequences = num_sequences
        self.batch_sequences = batch_sequences
        self.micro_sequences = micro_sequences
        self.seed = seed
        self._weights = np.array([domain.weight for domain in config.domains])
        # Of each place of a block: its domain, and which of the domain's places it is.
        self._block = np.array([(d, i) for d, weight in enumerate(self._weights) for i in range(weight)])
        micro_batches = batch_sequences // micro_sequences
        self._span_batches = len(self._block) // math.gcd(len(self._block), micro_batches)
        self._span = lru_cache(maxsize=1)(self._grouped)
        self._permutation = lru_cache(maxsize=2 * len(num_sequences))(self._permuted)

    @classmethod
    def of_run(cls, config: RunConfig, num_sequences: list[int]) -> "SampleOrder":
        """The order of a run."""
        sizes = {"batch_sequences": config.train.batch_sequences, "micro_sequences": config.train.micro_sequences}
        return cls(config.data, num_sequences, **sizes, seed=config.seed)

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Domain and sequence number of every segment, both int64 [B, G].

        Purity 1: all segments of a sequence are of one domain and one packed sequence. Below it, each segment is
        replaced with probability 1 - purity by the same segment of a random sequence of a domain drawn from the mix.
        """
        rng = np.random.default_rng((self.seed, 0, step))
        if self.config.micro_purity:
            span, place = divmod(step, self._span_batches)
            rows = self._span(span)[place * self.batch_sequences :][: self.batch_sequences]
        else:
            rows = self._samples(*self._uses(step * self.batch_sequences, self.batch_sequences, stream=1))
            rows = rows[rng.permutation(self.batch_sequences)]
        domains, sequences = (np.repeat(column[:, None], self.config.segments, axis=1) for column in rows.T)
        if self.config.purity < 1:
            other = rng.choice(len(self._weights), size=domains.shape, p=self._weights / self._weights.sum())
            number = rng.integers(np.array(self.num_sequences)[other])
            replaced = rng.random(domains.shape) >= self.config.purity
            domains, sequences = np.where(replaced, other, domains), np.where(replaced, number, sequences)
        return domains, sequences

    def _grouped(self, span: int) -> np.ndarray:
        """Domain and sequence number [sequences of a span, 2] by micro-batches."""
        micro, number = self.micro_sequences, self._span_batches * self.batch_sequences
        domains_M, uses_M = self._uses(span * number // micro, number // micro, stream=3)
        uses = (uses_M[:, None] * micro + np.arange(micro)).reshape(-1)
        rows = self._samples(np.repeat(domains_M, micro), uses)
        rng = np.random.default_rng((self.seed, 4, span))
        traded = np.flatnonzero(rng.random(number) >= self.config.micro_purity)
        rows[traded] = rows[rng.permutation(traded)]
        return rows

    def _uses(self, start: int, number: int, *, stream: int) -> tuple[np.ndarray, np.ndarray]:
        """Domain of each of so many places from `start` on, and how many places before it have that domain."""
        size = len(self._block)
        first, stop = start // size, -(-(start + number) // size)
        # A generator costs more than all else: one per block, not one per place.
        orders = [np.random.default_rng((self.seed, stream, block)).permutation(size) for block in range(first, stop)]
        places = np.arange(start, start + number)
        domains, turns = self._block[np.concatenate(orders)[places - first * size]].T
        return domains, places // size * self._weights[domains] + turns

    def _samples(self, domains: np.ndarray, uses: np.ndarray) -> np.ndarray:
        """Domain and sequence number [places, 2] of the domains' sequences by their turn."""
        epochs, sequences = np.divmod(uses, np.array(self.num_sequences)[domains])
        for domain, epoch in set(zip(domains.tolist(), epochs.tolist(), strict=True)):
            chosen = (domains == domain) & (epochs == epoch)
            sequences[chosen] = self._permutation(domain, epoch)[sequences[chosen]]
        return np.stack([domains, sequences], axis=1)

    def _permuted(self, domain: int, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, 2, domain, epoch)).permutation(self.num_sequences[domain])


class TrainingBatches:
    """Global batches of a run, read from its packed data; raises `ConfigError` where that is missing or damaged."""

    def __init__(self, config: RunConfig, data_folder: Path) -> None:
        self._names = [domain.name for domain in config.data.domains]
        self._packed = [read_packed(data_folder, name, "train") for name in self._names]
        self._order = SampleOrder.of_run(config, [len(sequences) for sequences in self._packed])

    def tokens(self, step: int) -> np.ndarray:
        """Tokens int64 [B, sequence_length] of the batch of a step."""
        return read_batch(self._packed, *self._order.batch(step))

    def domains(self, step: int) -> list[str]:
        """Domain of every sequence of the batch; of a mixed sequence all of its domains, joined by `+`."""
        domains_BG, _ = self._order.batch(step)
        return ["+".join(self._names[d] for d in dict.fromkeys(row)) for row in domains_BG.tolist()]


def read_batch(packed: list[np.ndarray], domains_BG: np.ndarray, sequences_BG: np.ndarray) -> np.ndarray:
    """Tokens int64 [B, sequence_length] of the samples, from packed domains [sequences, sequence_length]."""
    num_segments = domains_BG.shape[1]
    tokens = np.empty((*domains_BG.shape, packed[0].shape[1] // num_segments), dtype=np.int64)
    for domain, sequences in enumerate(packed):
        rows, segments = np.nonzero(domains_BG == domain)
        if len(rows):
            parts = sequences.reshape(len(sequences), num_segments, -1)
            tokens[rows, segments] = parts[sequences_BG[rows, segments], segments]
    return tokens.reshape(len(domains_BG), -1)
