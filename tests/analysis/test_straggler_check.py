"""A machine that follows the model is found again, and its layers are predicted."""

import pytest

from moe.analysis.straggler_check import fit, line
from moe.analysis.stragglers import LayerSize

LAYER = LayerSize(hidden_size=128, expert_size=128, top_k=2, value_bytes=4)


def test_a_line_is_found_again_and_never_starts_below_zero():
    assert line({1: 3.0, 3: 7.0, 10: 21.0}) == pytest.approx((1, 2))
    start, slope = line({1: 1.0, 2: 3.0})
    assert start == 0 and 1 < slope < 1.5


def test_a_layer_takes_what_its_parts_take():
    machine = fit({0: 1e-4, 1000: 1.1e-4}, {100: 3e-4, 200: 4e-4}, {100: 2e-4, 200: 3e-4}, LAYER)
    # Each process makes 8 choices; process 0 multiplies 12 rows, sends 2 rows of 512 bytes and receives 6.
    found = machine.forward_seconds([[4, 2, 1, 1], [3, 3, 1, 1]], LAYER)
    calls = 2e-4 + 1e-4
    told = 1e-4 + 8 * 4 / 2 * 1e-8
    assert found == pytest.approx(calls + 8 * 1e-6 + 12 * 1e-6 + told + 2 * (1e-4 + 6 * 512 * 1e-8))
