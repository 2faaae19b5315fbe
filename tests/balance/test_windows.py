"""A window means the same however the global batch is split."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe.balance.losses import load_balancing_loss
from moe.balance.windows import Layout, WindowPool, pool

# L layers, B sequences of the global batch, E experts

BATCH = 24
DIVISORS = [1, 2, 3, 4, 6, 8, 12, 24]


def random_batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts and scores [L, B, E] of two layers with 10 tokens a sequence."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(2, BATCH, 5, generator=generator, dtype=torch.float64)
    scores = scores / scores.sum(dim=-1, keepdim=True) * 10
    counts = torch.multinomial(torch.rand(2 * BATCH, 5, generator=generator), 20, replacement=True, generator=generator)
    return torch.nn.functional.one_hot(counts, 5).sum(dim=1).view(2, BATCH, 5), scores


def whole_batch_loss(counts: torch.Tensor, scores: torch.Tensor, window: int) -> torch.Tensor:
    grouped = [v.unflatten(1, (-1, window)).sum(dim=2) for v in (counts, scores)]
    return load_balancing_loss(grouped[0], grouped[1], torch.tensor(10 * BATCH))


def split_loss(counts, scores, window: int, pass_sequences: int, num_ranks: int, estimator: str) -> torch.Tensor:
    """Mean over ranks and passes, ranks in lock step: every rank's reduction sees what the others contribute."""
    layouts = [Layout(BATCH, pass_sequences, num_ranks, rank) for rank in range(num_ranks)]
    mailbox: list[torch.Tensor] = []

    def local(layout: Layout, i: int, values: torch.Tensor) -> torch.Tensor:
        positions = layout.positions(i)
        return values[:, positions.start : positions.stop]

    def run(reduce) -> list[torch.Tensor]:
        results = []
        pools = [WindowPool([(window, estimator)], layout, reduce) for layout in layouts]
        if pools[0].needs_counting():
            for layout, p in zip(layouts, pools, strict=True):
                for i in range(layout.num_passes):
                    p.count(i, local(layout, i, counts))
            for p in pools:
                p.finish()
        for i in range(layouts[0].num_passes):
            for layout, p in zip(layouts, pools, strict=True):
                (known,) = p.counts(i, local(layout, i, counts))
                pooled = pool(local(layout, i, scores), layout.positions(i), window, layout.windows(i, window))
                results.append(load_balancing_loss(known, pooled, torch.tensor(10 * pass_sequences)))
        return results

    # The first run records every rank's contributions in call order, the second hands out their sums.
    run(lambda tensor: mailbox.append(tensor.clone()) or tensor)
    groups = [mailbox[i : i + num_ranks] for i in range(0, len(mailbox), num_ranks)]
    sums = iter([sum(group) for group in groups for _ in group])
    if estimator == "prefix":
        assert all(len(group) == num_ranks for group in groups)
    return torch.stack(run(lambda tensor: next(sums).clone())).mean(dim=0)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 100),
    window=st.sampled_from(DIVISORS),
    pass_sequences=st.sampled_from([1, 2, 3, 4, 6, 8]),
    num_ranks=st.sampled_from([1, 2, 3]),
)
def test_exact_window_loss_does_not_depend_on_the_split(seed, window, pass_sequences, num_ranks) -> None:
    if BATCH % (pass_sequences * num_ranks):
        num_ranks = 1
    counts, scores = random_batch(seed)
    expected = whole_batch_loss(counts, scores, window)
    assert torch.allclose(split_loss(counts, scores, window, pass_sequences, num_ranks, "exact"), expected, rtol=1e-12)


def test_prefix_equals_exact_where_a_window_lies_inside_one_pass() -> None:
    counts, scores = random_batch(0)
    for window in (1, 2, 4, 8):
        loss = split_loss(counts, scores, window, 4, 2, "prefix")
        assert torch.allclose(loss, whole_batch_loss(counts, scores, window), rtol=1e-12)


def test_prefix_is_algorithm_1_running_counts_over_running_totals() -> None:
    counts, scores = random_batch(3)
    losses, running = [], torch.zeros(2, 5, dtype=torch.float64)
    for i in range(0, BATCH, 4):
        running += counts[:, i : i + 4].sum(dim=1)
        frequency = running / running.sum(dim=-1, keepdim=True)
        mean_score = scores[:, i : i + 4].sum(dim=1) / 40
        losses.append(5 * (frequency * mean_score).sum(dim=-1))
    expected = torch.stack(losses).mean(dim=0)
    assert torch.allclose(split_loss(counts, scores, BATCH, 4, 1, "prefix"), expected, rtol=1e-12)
    assert not torch.allclose(expected, whole_batch_loss(counts, scores, BATCH), rtol=1e-6)


def test_a_window_inside_one_rank_needs_no_reduction_and_several_terms_share_one() -> None:
    counts, _ = random_batch(0)
    calls: list[torch.Tensor] = []

    def reduce(tensor: torch.Tensor) -> torch.Tensor:
        calls.append(tensor)
        return tensor

    layout = Layout(BATCH, 6, num_ranks=2)
    WindowPool([(1, "exact"), (3, "exact")], layout, reduce).counts(0, counts[:, :6])
    assert not calls
    WindowPool([(12, "exact"), (24, "prefix"), (1, "exact")], layout, reduce).counts(0, counts[:, :6])
    assert [tuple(call.shape) for call in calls] == [(2, 2, 5)]
