"""Which selections find room: by hand, against a loop, and where none is dropped."""

import pytest
import torch

from moe.balance.capacity import dropped_share, has_room, room


def slow_has_room(selected: torch.Tensor, num_experts: int, window: int, factor: float) -> list[list[bool]]:
    """Token by token: an expert counts what it has taken in this window."""
    num_tokens, top_k = selected.shape
    found = []
    for start in range(0, num_tokens, window):
        taken = [0] * num_experts
        for t in range(start, start + window):
            row = []
            for expert in selected[t].tolist():
                row.append(taken[expert] < factor * top_k * window / num_experts)
                taken[expert] += row[-1]
            found.append(row)
    return found


def choices(num_tokens: int, num_experts: int, top_k: int) -> torch.Tensor:
    """Skewed towards the first experts."""
    scores = torch.randn(num_tokens, num_experts, generator=torch.Generator().manual_seed(0))
    return (scores - 0.3 * torch.arange(num_experts)).topk(top_k, dim=-1).indices


def test_an_example_by_hand() -> None:
    # Four tokens, three experts, top-1: ceil(1 · 4 / 3) = 2 places of each expert in a window of four.
    selected = torch.tensor([[0], [0], [1], [0]])
    assert has_room(selected, num_experts=3, window_tokens=4, factor=1.0).flatten().tolist() == [True] * 3 + [False]
    # In windows of two, ceil(2 / 3) = 1 place: the second token of the first window is dropped, none of the second.
    windows = has_room(selected, num_experts=3, window_tokens=2, factor=1.0).flatten().tolist()
    assert windows == [True, False, True, True]


@pytest.mark.parametrize("window", [1, 4, 12, 24])
@pytest.mark.parametrize(("top_k", "factor"), [(1, 1.0), (2, 0.5), (2, 1.25), (3, 2.0)])
def test_the_first_tokens_of_a_window_find_room_as_in_the_loop(window: int, top_k: int, factor: float) -> None:
    selected = choices(24, 6, top_k)
    found = has_room(selected, num_experts=6, window_tokens=window, factor=factor)
    assert found.tolist() == slow_has_room(selected, 6, window, factor)
    counts = torch.nn.functional.one_hot(selected, 6).sum(dim=1).unflatten(0, (-1, window)).sum(dim=1)
    dropped = (~found).double().mean().item()
    # A second layer in which nothing is dropped has a share of its own.
    even = torch.full_like(counts, -(-top_k * window // 6)) if factor >= 1 else torch.zeros_like(counts)
    shares = dropped_share(torch.stack([counts, even]), factor=factor).tolist()
    assert shares[0] == pytest.approx(dropped)
    assert shares[1] == 0 or factor < 1


def test_a_factor_of_experts_over_k_drops_nothing_and_a_little_less_does() -> None:
    selected = torch.tensor([0, 1]).expand(10, 2)
    assert has_room(selected, num_experts=5, window_tokens=10, factor=5 / 2).all()
    assert not has_room(selected, num_experts=5, window_tokens=10, factor=2.2).all()


def test_room_is_rounded_up_and_rounding_of_the_factor_makes_none() -> None:
    assert room(1.0, 10, 4) == 3
    assert 1.1 * 100 / 10 > 11
    assert room(1.1, 100, 10) == 11
    assert room(0.01, 8, 8) == 1
