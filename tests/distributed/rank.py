"""One of several gloo processes: runs every case of `CASES` on its share and saves what it found.

python -m tests.distributed.rank FOLDER   (with RANK, WORLD_SIZE and so on in the environment)
"""

import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed
from accelerate.state import PartialState

from tests import exactness

# Equal and uneven shares of twelve sequences, for two and for three ranks.
SPLITS = {2: [((3, 3), (3, 3)), ((5, 1), (2, 4)), ((6, 6),)], 3: [((2, 2, 2), (2, 2, 2)), ((1, 4, 2), (3, 1, 1))]}
# Windows inside a rank, across ranks, and across ranks and passes, together; and beyond the step.
TERMS = (
    [{"window": window, "weight": exactness.WEIGHT} for window in (1, 4, 12)],
    [{"window": 12, "weight": exactness.WEIGHT, "estimator": "prefix"}, {"window": 2, "weight": exactness.WEIGHT}],
    [{"window": 12, "weight": exactness.WEIGHT, "estimator": "ema", "half_life": 2.0}],
    [{"window": window, "weight": exactness.WEIGHT, "shuffled": True} for window in (1, 4)],
)

# Everything that is carried from step to step.
STEPS = 50
CURVE = exactness.run_config(
    [*TERMS[0], *TERMS[2]],
    bias={"window": 4, "rate": 0.01},
    gate="sigmoid",
    similarity_weight=0.01,
    capacity={"factor": 1.1, "window": 1},
)


def cases(num_ranks: int) -> Iterator[tuple[int, tuple[tuple[int, ...], ...], bool, bool]]:
    """Index of the terms, split, whether padded, whether activations are recomputed."""
    for terms, sizes, padded in itertools.product(range(len(TERMS)), SPLITS[num_ranks], (False, True)):
        yield terms, sizes, padded, terms == 0


def main(folder: Path) -> None:
    """Write `<rank>.pt`: loss, gradients and reductions of every case, and last a training curve."""
    calls: list[tuple[int, ...]] = []
    real = torch.distributed.all_reduce

    def counted(tensor: torch.Tensor, *args, **kwargs):
        calls.append(tuple(tensor.shape))
        return real(tensor, *args, **kwargs)

    torch.distributed.all_reduce = counted
    results = []
    for terms, sizes, padded, recompute in cases(int(os.environ["WORLD_SIZE"])):
        config = exactness.run_config(TERMS[terms])
        tokens, mask = exactness.batch(len(results), padded=padded)
        calls.clear()
        loss, gradients = exactness.split_batch(
            config, tokens, mask if padded else None, sizes=sizes, dtype=torch.float64, checkpointing=recompute
        )
        results.append({"loss": loss, "gradients": gradients, "reductions": list(calls)})
    uneven = SPLITS[int(os.environ["WORLD_SIZE"])][1]
    results.append({"curve": exactness.curve(CURVE, sizes=uneven, steps=STEPS)})
    torch.save(results, folder / f"{os.environ['RANK']}.pt")
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
