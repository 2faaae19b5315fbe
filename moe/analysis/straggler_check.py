"""Does the straggler model predict a real layer? The machine is fitted to its parts alone, then layers are predicted.

Shape suffixes: P processes, E experts.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from moe.analysis.stragglers import Hardware, LayerSize, forward_parts, told_seconds


class Machine(NamedTuple):
    """What a layer's time is predicted from."""

    hardware: Hardware
    start: float
    """Seconds of sorting and of calling the products, whatever the routing."""
    per_row: float
    """Seconds of sorting one row of a process's own and of adding it up again."""

    def forward_seconds(self, counts_PE: ArrayLike, layer: LayerSize) -> float:
        """The forward pass of one layer: tell how many rows will come, send, multiply, send back."""
        counts = np.asarray(counts_PE, dtype=np.float64)
        group, num_experts = counts.shape
        products, exchange = forward_parts(counts, layer, self.hardware)
        told = told_seconds(group, num_experts, self.hardware)
        sorting = self.per_row * counts.sum(axis=1).max()
        return float(self.start + sorting + products + told + 2 * exchange)


def fit(
    transfer: Mapping[int, float], product: Mapping[int, float], sort: Mapping[int, float], layer: LayerSize
) -> Machine:
    """Seconds of each part by its size (bytes to the other process, rows, rows), fitted by a line each."""
    latency, per_byte = line(transfer)
    calls, per_row = line(product)
    sorting, per_sorted_row = line(sort)
    hardware = Hardware(layer.expert_flops / per_row, latency, 1 / per_byte, latency, 1 / per_byte)
    return Machine(hardware, calls + sorting, per_sorted_row)


def line(seconds: Mapping[int, float]) -> tuple[float, float]:
    """Start and slope of seconds over size by least squares of the relative errors; the start is never negative.

    Sizes 1 and 3 with seconds 3 and 7 give 1 + 2 size.
    """
    sizes, times = np.array(list(seconds), dtype=np.float64), np.array(list(seconds.values()))
    weighted = np.stack([1 / times, sizes / times], axis=1)
    start, slope = np.linalg.lstsq(weighted, np.ones(len(times)), rcond=None)[0]
    if start < 0:
        start, slope = 0.0, weighted[:, 1].sum() / (weighted[:, 1] ** 2).sum()
    return float(start), float(slope)
