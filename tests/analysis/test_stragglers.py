"""The time model against cases counted by hand, a loop over every message, and what must hold for any load."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe.analysis.stragglers import (
    HARDWARE,
    Hardware,
    LayerSize,
    all_reduce_seconds,
    balanced,
    count_sync,
    draw,
    exchange_seconds,
    forward_parts,
    limit,
    step_time,
)

# One operation and one byte a second, so that times are counts; nodes of two devices.
UNIT = Hardware(flops=1, intra_latency=10, intra_bandwidth=1, inter_latency=100, inter_bandwidth=0.5, node_devices=2)
LAYER = LayerSize(hidden_size=1, expert_size=1, top_k=1, value_bytes=1)  # 6 operations and 1 byte a row
FREE = Hardware(flops=1, intra_latency=0, intra_bandwidth=math.inf, inter_latency=0, inter_bandwidth=math.inf)


def loads(seed: int, micro_batches: int = 8, layers: int = 2, experts: int = 8, skew: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    share = np.exp(skew * rng.normal(size=(micro_batches, layers, experts)))
    return rng.multinomial(256, share / share.sum(axis=-1, keepdims=True))


def test_two_devices_counted_by_hand():
    # Device 0 sends 3 rows to device 1 and keeps 1; device 1 sends 2 and keeps 2. Device 1 multiplies 5 rows.
    products, exchange = forward_parts(np.array([[1.0, 3.0], [2.0, 2.0]]), LAYER, UNIT)
    assert products == 5 * 6
    assert exchange == 10 + 3
    step = step_time([[[1, 3]], [[2, 2]]], devices=2, layer=LAYER, hardware=UNIT)
    assert step.experts == 3 * 5 * 6
    assert step.all_to_all == 4 * (10 + 3) + 10 + 8  # and the count of the other's expert
    # 4 matrices of width 1, and the scores of 4,096 positions: (2 · 4 + 2 · 4096) operations a token, forward.
    assert step.dense == 3 * 4 * (8 + 8192)
    # A ring of two sends two halves of the 4 shared bytes; each expert has one copy.
    assert step.gradients == 2 * (10 + 4 / 2)
    assert step.seconds == sum(step[:4]) and step.dropped == 0


def test_an_exchange_equals_a_loop_over_all_messages():
    bytes_PP = np.random.default_rng(0).integers(1, 100, (6, 6)).astype(float)
    slowest = 0.0
    for p in range(6):
        near = [q for q in range(6) if q != p and q // 2 == p // 2]
        far = [q for q in range(6) if q // 2 != p // 2]
        inside = max(bytes_PP[p, near].sum(), bytes_PP[near, p].sum()) / 1 + 10 * len(near)
        beyond = max(bytes_PP[p, far].sum(), bytes_PP[far, p].sum()) / 0.5 + 100 * len(far)
        slowest = max(slowest, inside + beyond)
    assert exchange_seconds(bytes_PP, UNIT) == pytest.approx(slowest)


def test_one_device_and_equal_loads_wait_for_nobody():
    counts = loads(0)
    even = balanced(counts)
    assert even.sum() == pytest.approx(counts.sum())
    assert step_time(counts, devices=1, layer=LAYER, hardware=UNIT) == pytest.approx(
        step_time(even, devices=1, layer=LAYER, hardware=UNIT)
    )
    for devices in (2, 8, 32):
        step = step_time(even, devices=devices, layer=LAYER, hardware=FREE)
        assert step.experts == pytest.approx(3 * 2 * 256 * LAYER.expert_flops)  # 2 layers of 256 rows


def test_all_rows_on_one_expert_take_as_many_times_as_long_as_there_are_devices():
    counts = np.zeros((8, 2, 8))
    counts[..., 3] = 256
    for devices in (1, 2, 4, 8):
        step, even = (step_time(c, devices=devices, layer=LAYER, hardware=FREE) for c in (counts, balanced(counts)))
        assert step.experts / even.experts == pytest.approx(devices)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), devices=st.sampled_from([1, 2, 4, 8, 16, 64]))
def test_no_load_multiplies_faster_than_balance_and_every_resource_only_helps(seed: int, devices: int):
    counts = loads(seed)
    hardware = HARDWARE["h100-ib"]
    wide = LayerSize(hidden_size=256, expert_size=128, top_k=2)

    def seconds(counts: np.ndarray, hardware: Hardware = hardware, factor: float | None = None) -> float:
        return step_time(counts, devices=devices, layer=wide, hardware=hardware, capacity_factor=factor).seconds

    # What stays at home by chance may save more than an uneven load costs: products alone.
    products = [step_time(c, devices=devices, layer=wide, hardware=FREE).experts for c in (counts, balanced(counts))]
    assert products[0] >= products[1] * (1 - 1e-12)
    for field in ("flops", "intra_bandwidth", "inter_bandwidth"):
        faster = Hardware(**{**vars(hardware), field: 2 * getattr(hardware, field)})
        assert seconds(counts, faster) <= seconds(counts)
    for field in ("intra_latency", "inter_latency"):
        slower = Hardware(**{**vars(hardware), field: 2 * getattr(hardware, field)})
        assert seconds(counts, slower) >= seconds(counts)
    limited = [seconds(counts, factor=factor) for factor in (0.5, 1.0, 1.5, 8.0)]
    assert limited == sorted(limited) and limited[-1] == pytest.approx(seconds(counts))


def test_the_sharper_the_skew_the_slower():
    shares = [np.full(8, 32.0), *([32 + d] + [32 - d / 7] * 7 for d in (16.0, 64.0, 224.0))]
    times = [step_time(np.tile(share, (8, 1, 1)), devices=8, layer=LAYER, hardware=UNIT).seconds for share in shares]
    assert times == sorted(set(times))


def test_dropped_are_the_choices_beyond_the_capacity():
    # 12 choices over 3 experts: 4 each at factor 1, 6 at 1.5, and 1.3 x 4 is rounded up to 6.
    counts = np.array([[[10.0, 2.0, 0.0]]])
    for factor, kept in ((1.0, 4), (1.5, 6), (1.3, 6), (3.0, 10)):
        found, dropped = limit(counts, factor)
        assert found.tolist() == [[[kept, 2.0, 0.0]]]
        assert dropped == pytest.approx(1 - (kept + 2) / 12)
    assert limit(counts, None) == (counts, 0.0)


def test_every_micro_batch_is_drawn_before_one_comes_again():
    assert sorted(draw(8, 4, seed=1)) == sorted(set(draw(8, 4, seed=1)))
    assert np.bincount(draw(8, 64, seed=1)).tolist() == [8] * 8
    assert draw(8, 64, seed=1).tolist() == draw(8, 64, seed=1).tolist() != draw(8, 64, seed=2).tolist()


def test_a_group_has_equally_many_experts_on_every_device():
    # 12 experts on 8 devices: groups of 4 with 3 experts each, so two groups share nothing but gradients.
    counts = np.zeros((8, 1, 12))
    counts[..., :3] = 4
    step = step_time(counts, devices=8, layer=LAYER, hardware=FREE)
    assert step.experts == 3 * 4 * 12 * LAYER.expert_flops  # one device of each group has all rows of its four


def test_unequal_micro_batches_are_refused():
    with pytest.raises(ValueError, match="equally many selections"):
        step_time([[[1, 2]], [[2, 2]]], devices=2, layer=LAYER, hardware=UNIT)


def test_all_reduce_by_hand():
    assert all_reduce_seconds(8, ranks=1, hardware=UNIT) == 0
    assert all_reduce_seconds(8, ranks=2, hardware=UNIT) == 2 * (10 + 4)
    # Two devices of each of 4 nodes: halves inside, then rings or trees of halves between nodes.
    ring, tree = 2 * 3 * (100 + 4 / 4 / 0.5), 2 * 2 * 100 + 2 * 4 / 0.5
    inside = 2 * (10 + 4)
    assert all_reduce_seconds(8, ranks=8, hardware=UNIT, algorithm="ring") == inside + ring
    assert all_reduce_seconds(8, ranks=8, hardware=UNIT, algorithm="tree") == inside + tree
    assert all_reduce_seconds(8, ranks=8, hardware=UNIT) == inside + min(ring, tree)


def test_the_sync_sends_at_most_twice_its_counts_and_its_tree_grows_with_the_logarithm():
    sizes = {"num_layers": 24, "num_experts": 160, "hardware": HARDWARE["h100-ib"]}
    alone, *others = (count_sync(**sizes, ranks=ranks) for ranks in (1, 8, 64, 512, 4096))
    assert (alone.sent_bytes, alone.ring_seconds, alone.tree_seconds) == (0, 0, 0)
    assert all(cost.payload_bytes == 24 * 160 * 8 and cost.sent_bytes < 2 * cost.payload_bytes for cost in others)
    times = [cost.tree_seconds for cost in others]
    steps = np.diff(times)
    assert times == sorted(times) and steps[1] == pytest.approx(steps[2])
