"""How long does a training step take under expert parallelism? A time model of recorded loads: pure functions.

The experts are spread over groups of P devices; groups are data-parallel replicas. Every device has a micro-batch of
its own. A layer is as slow as its busiest device and its busiest link, twice: tokens travel to their experts and back,
and so do gradients. Everything is in seconds, bytes and floating-point operations; nothing overlaps.

Shape suffixes: M micro-batches, G devices, A groups, P devices of a group (senders, then receivers), L layers,
E experts.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Hardware:
    """Devices and links: a message of n bytes takes latency + n / bandwidth (the alpha-beta model)."""

    flops: float
    """Operations per second that one device reaches in the products of experts."""
    intra_latency: float
    """Seconds, between devices of one node."""
    intra_bandwidth: float
    """Bytes per second that one device sends, and receives at the same time."""
    inter_latency: float
    """Seconds, between nodes."""
    inter_bandwidth: float
    """Bytes per second of one device between nodes: each has a network port of its own."""
    node_devices: int = 8


UTILISATION, LINK_UTILISATION = 0.4, 0.8
"""Shares of the peaks that are reached: assumptions."""

HARDWARE = {
    "h100-ib": Hardware(UTILISATION * 989e12, 1.9e-6, LINK_UTILISATION * 450e9, 4.0e-6, LINK_UTILISATION * 50e9),
    "a100-ib": Hardware(UTILISATION * 312e12, 1.9e-6, LINK_UTILISATION * 300e9, 4.0e-6, LINK_UTILISATION * 25e9),
    "a100-ethernet-25g": Hardware(
        UTILISATION * 312e12, 1.9e-6, LINK_UTILISATION * 300e9, 30e-6, LINK_UTILISATION * 3.125e9
    ),
}
"""Nodes of eight GPUs; all are assumptions from public figures, nothing was measured on them. Dense bf16 peaks and
NVLink per direction: NVIDIA's data sheets of H100 SXM (989 TFLOP/s, 900 GB/s both ways) and A100 SXM (312 TFLOP/s,
600 GB/s). A 400 Gb/s NDR port per GPU as in DGX H100, 200 Gb/s HDR as in DGX A100, or 25 Gb/s Ethernet. Latencies per
message: what NCCL's own time model takes for a ring step under LL128 (NVIDIA/nccl, src/graph/tuning.cc, `hwLat`:
NVLink 1.9 us, network 4.0 us); 30 us for TCP is ours."""


@dataclass(frozen=True)
class LayerSize:
    """Widths of one layer; tokens travel and gradients are summed with `value_bytes` for each value."""

    hidden_size: int
    expert_size: int
    top_k: int
    num_shared_experts: int = 0
    sequence_length: int = 4096
    value_bytes: int = 2

    @property
    def expert_parameters(self) -> int:
        """Weights of one gated expert: three matrices."""
        return 3 * self.hidden_size * self.expert_size

    @property
    def expert_flops(self) -> int:
        """Operations of one token in one expert, forward."""
        return 2 * self.expert_parameters

    @property
    def dense_parameters(self) -> int:
        """Weights that every device holds: attention and shared experts."""
        return 4 * self.hidden_size**2 + self.num_shared_experts * self.expert_parameters

    @property
    def dense_flops(self) -> int:
        """Operations of one token in what does not depend on the routing, causal attention scores included, forward."""
        return 2 * self.dense_parameters + 2 * self.sequence_length * self.hidden_size


class StepTime(NamedTuple):
    """Seconds of one optimizer step of the slowest group, by cause, and the share of selections that was dropped."""

    experts: float
    all_to_all: float
    dense: float
    gradients: float
    dropped: float

    @property
    def seconds(self) -> float:
        """All of the step."""
        return self.experts + self.all_to_all + self.dense + self.gradients


def step_time(
    counts_MLE: ArrayLike,
    *,
    devices: int,
    layer: LayerSize,
    hardware: Hardware,
    capacity_factor: float | None = None,
    seed: int = 0,
) -> StepTime:
    """Time of a step in which each of `devices` routes one of the micro-batches, drawn by `seed`.

    `counts_MLE`: selections; they need not be whole numbers. A group is the largest number of devices that divides
    `devices` and the experts, so that every device holds equally many experts. One device, or equal counts everywhere,
    wait for nobody. Raises `ValueError` for micro-batches that do not make equally many selections.
    """
    counts = np.asarray(counts_MLE, dtype=np.float64)
    selections = counts.sum(axis=-1)
    if not np.allclose(selections, selections.flat[0]):
        raise ValueError("every micro-batch must make equally many selections in every layer")
    num_layers, num_experts = counts.shape[1:]
    group = math.gcd(devices, num_experts)
    kept_GLE, dropped = limit(counts[draw(len(counts), devices, seed)], capacity_factor)
    kept_ALPE = kept_GLE.reshape(-1, group, num_layers, num_experts).swapaxes(1, 2)
    experts_AL, exchange_AL = forward_parts(kept_ALPE, layer, hardware)
    # The backward pass multiplies twice and sends both gradients; how many rows will come is told once.
    told = told_seconds(group, num_experts, hardware)
    experts_A, exchange_A = (3 * experts_AL).sum(axis=1), (4 * exchange_AL + told).sum(axis=1)
    slowest = np.argmax(experts_A + exchange_A)
    tokens = selections.flat[0] / layer.top_k
    shared = all_reduce_seconds(
        num_layers * layer.dense_parameters * layer.value_bytes, ranks=devices, hardware=hardware
    )
    own = all_reduce_seconds(
        num_layers * num_experts // group * layer.expert_parameters * layer.value_bytes,
        ranks=devices // group,
        # Copies of an expert are a group apart.
        node_ranks=max(1, hardware.node_devices // group),
        hardware=hardware,
    )
    return StepTime(
        experts=float(experts_A[slowest]),
        all_to_all=float(exchange_A[slowest]),
        dense=3 * num_layers * tokens * layer.dense_flops / hardware.flops,
        gradients=shared + own,
        dropped=dropped,
    )


def balanced(counts_MLE: ArrayLike) -> Array:
    """The same number of selections, spread evenly over experts, layers and micro-batches."""
    counts = np.asarray(counts_MLE, dtype=np.float64)
    return np.full_like(counts, counts.mean())


def draw(num_micro_batches: int, devices: int, seed: int) -> NDArray[np.int64]:
    """Which micro-batch each device has: all of them before one comes again, in random order."""
    rng = np.random.default_rng(seed)
    rounds = -(-devices // num_micro_batches)
    return np.concatenate([rng.permutation(num_micro_batches) for _ in range(rounds)])[:devices]


def limit(counts_GLE: Array, capacity_factor: float | None) -> tuple[Array, float]:
    """Selections that are kept where an expert takes at most capacity_factor x (selections / E) from a micro-batch,
    rounded up (GShard, arXiv:2006.16668), and the share of those that are not; None keeps all."""
    if capacity_factor is None:
        return counts_GLE, 0.0
    kept = np.minimum(counts_GLE, np.ceil(capacity_factor * counts_GLE.mean(axis=-1, keepdims=True)))
    return kept, 1 - float(kept.sum() / counts_GLE.sum())


def forward_parts(counts_PE: Array, layer: LayerSize, hardware: Hardware) -> tuple[Array, Array]:
    """Seconds of the busiest device in the products of one layer's forward pass, and of sending its tokens one way;
    [..., P, E] -> [...] each."""
    group, num_experts = counts_PE.shape[-2:]
    moved_PP = counts_PE.reshape(*counts_PE.shape[:-1], group, num_experts // group).sum(axis=-1)
    products = moved_PP.sum(axis=-2).max(axis=-1) * layer.expert_flops / hardware.flops
    return products, exchange_seconds(moved_PP * layer.hidden_size * layer.value_bytes, hardware)


def told_seconds(group: int, num_experts: int, hardware: Hardware) -> Array:
    """Seconds in which every device tells every other one how many rows each of its experts will get."""
    return exchange_seconds(np.full((group, group), 8.0 * num_experts / group), hardware)


def exchange_seconds(bytes_PP: Array, hardware: Hardware) -> Array:
    """Seconds of an all-to-all in which device p sends bytes[..., p, q] to device q, a message to every other one.

    latency x peers + bytes of the most loaded device / bandwidth, in its node and then beyond; what a device keeps
    costs nothing.
    """
    group = bytes_PP.shape[-1]
    node_P = np.arange(group) // hardware.node_devices
    near_PP = (node_P[:, None] == node_P) & ~np.eye(group, dtype=bool)
    seconds_P = np.zeros(bytes_PP.shape[:-1])
    for mask_PP, latency, bandwidth in (
        (near_PP, hardware.intra_latency, hardware.intra_bandwidth),
        (node_P[:, None] != node_P, hardware.inter_latency, hardware.inter_bandwidth),
    ):
        sent_P, received_P = ((bytes_PP * mask_PP).sum(axis=axis) for axis in (-1, -2))
        seconds_P = seconds_P + latency * mask_PP.sum(axis=1) + np.maximum(sent_P, received_P) / bandwidth
    return seconds_P.max(axis=-1)


def all_reduce_seconds(
    num_bytes: float, *, ranks: int, hardware: Hardware, node_ranks: int | None = None, algorithm: str = "best"
) -> float:
    """Seconds to sum `num_bytes` over `ranks`, `node_ranks` of them in one node (by default all of its devices).

    Inside a node a ring sums shares, 2 (k - 1) (latency + bytes / k / bandwidth). Between n nodes each device sums its
    share by a `ring`, 2 (n - 1) (latency + share / n / bandwidth), or a `tree`, 2 ceil(log2 n) latency
    + 2 share / bandwidth, as NCCL's double trees do; `best` is the faster one.
    """
    inside = min(ranks, node_ranks or hardware.node_devices)
    nodes, share = -(-ranks // inside), num_bytes / inside
    near = 2 * (inside - 1) * (hardware.intra_latency + share / hardware.intra_bandwidth)
    if nodes == 1:
        return near
    far = {
        "ring": 2 * (nodes - 1) * (hardware.inter_latency + share / nodes / hardware.inter_bandwidth),
        "tree": 2 * math.ceil(math.log2(nodes)) * hardware.inter_latency + 2 * share / hardware.inter_bandwidth,
    }
    return near + (min(far.values()) if algorithm == "best" else far[algorithm])


class CountSync(NamedTuple):
    """What it costs to sum the counts of all layers over so many ranks, once."""

    payload_bytes: int
    """The counts of one rank."""
    sent_bytes: float
    """What one rank sends in a ring: 2 (n - 1) / n of the payload."""
    ring_seconds: float
    tree_seconds: float


def count_sync(*, num_layers: int, num_experts: int, ranks: int, hardware: Hardware, count_bytes: int = 8) -> CountSync:
    """Cost of the synchronised f: one all-reduce of [layers, experts] counts; one rank alone sends nothing."""
    payload = num_layers * num_experts * count_bytes
    ring, tree = (
        all_reduce_seconds(payload, ranks=ranks, hardware=hardware, algorithm=algorithm)
        for algorithm in ("ring", "tree")
    )
    return CountSync(payload, 2 * (ranks - 1) / ranks * payload, ring, tree)
