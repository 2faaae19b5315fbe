"""Which experts did every sequence of a batch choose while the run trained? Recorded at each checkpoint step.

Writes `counts.parquet`: one row per step, layer and sequence of the global batch, in this order. Columns: step, layer;
position in the batch; micro_batch, of `train.micro_sequences` neighbouring positions; domain; counts, one per expert,
that sum to the sequence's tokens times top-K. They are the choices before the update of that step.
"""

import json
from pathlib import Path

import numpy as np
from torch import Tensor

from moe import provenance
from moe.config import RunConfig
from moe.data.order import TrainingBatches

# L layers, B sequences of the batch, E experts


class SequenceCounts:
    """The recorded counts while a run trains: one file for each step, in the state folder.

    On a resume, those beyond the checkpoint are dropped, since they come again.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self.folder = folder
        for path in self._files():
            if _step(path) > first_step:
                path.unlink()

    def add(self, step: int, counts_LBE: Tensor) -> None:
        """Keep the counts of a step, before its checkpoint is."""
        with provenance.complete_file(self.folder / f"counts-{step:08d}.npy") as temporary:
            np.save(temporary, counts_LBE.cpu().numpy().astype(np.uint32))

    def write(self, out: Path, config: RunConfig, batches: TrainingBatches, stamp: dict) -> None:
        """Write all of them to `out`; its metadata hold `stamp`."""
        # Its allocator would stand beside the activations of every step.
        import pyarrow as pa
        import pyarrow.parquet as pq

        counts = pa.list_(pa.uint32(), config.model.num_experts)
        columns = {"step": pa.int32(), "layer": pa.int32(), "position": pa.int32(), "micro_batch": pa.int32()}
        schema = pa.schema({**columns, "domain": pa.string(), "counts": counts}, {"moe": json.dumps(stamp)})
        with (
            provenance.complete_file(out) as temporary,
            pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
        ):
            for path in self._files():
                counts_LBE = np.load(path, allow_pickle=False)
                layer, position = (index.ravel() for index in np.indices(counts_LBE.shape[:2]))
                values = {
                    "step": np.full_like(layer, _step(path)),
                    "layer": layer,
                    "position": position,
                    "micro_batch": position // config.train.micro_sequences,
                    "domain": np.tile(batches.domains(_step(path) - 1), len(counts_LBE)),
                    "counts": pa.FixedSizeListArray.from_arrays(counts_LBE.ravel(), type=counts),
                }
                writer.write_table(pa.table(values, schema))

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("counts-*.npy"))


def _step(path: Path) -> int:
    """Optimizer steps that were done when the file was written, as in `train.jsonl`."""
    return int(path.stem.split("-")[1])
