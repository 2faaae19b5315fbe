"""A window means the same however the global batch is split, and each estimator knows what its name says."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe.balance.controllers import bias_update
from moe.balance.estimators import Pooling, WindowPool
from moe.balance.losses import load_balancing_loss
from moe.balance.metrics import max_violation
from moe.balance.windows import Layout

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


def grouped(values_LBE: torch.Tensor, window: int) -> torch.Tensor:
    return values_LBE.unflatten(1, (-1, window)).sum(dim=2)


def whole_batch_loss(counts: torch.Tensor, scores: torch.Tensor, window: int) -> torch.Tensor:
    return load_balancing_loss(grouped(counts, window), grouped(scores, window), tokens_per_rank=10 * BATCH)


class Ranks:
    """All ranks of a split in lock step in one process: a reduction waits until every rank has brought its part."""

    def __init__(self, sizes: tuple[tuple[int, ...], ...], poolings: list[Pooling]) -> None:
        self.layouts = [Layout(sizes, rank) for rank in range(len(sizes[0]))]
        self.poolings = poolings
        self.past: list[dict[int, torch.Tensor]] = [{} for _ in self.layouts]
        self.reductions = 0

    def step(self, counts: torch.Tensor, scores: torch.Tensor, totals=()) -> tuple[list[torch.Tensor], list]:
        """Loss [L] of each term, summed over passes and averaged over ranks, and the totals of every rank."""
        parts: list[torch.Tensor] = []
        # The first run records every rank's parts in call order, the second hands out their sums.
        self._run(counts, scores, totals, lambda tensor: parts.append(tensor.clone()) or tensor)
        calls = len(parts) // len(self.layouts)
        sums = [sum(parts[rank * calls + call] for rank in range(len(self.layouts))) for call in range(calls)]
        self.reductions = calls
        results = iter(sums * len(self.layouts))
        losses, pools = self._run(counts, scores, totals, lambda tensor: next(results).clone())
        self.past = [p.past for p in pools]
        return losses, [[p.totals(window) for window in totals] for p in pools]

    def _run(self, counts, scores, totals, reduce):
        pools, losses = [], [torch.zeros(2, dtype=torch.float64) for _ in self.poolings]
        for layout, past in zip(self.layouts, self.past, strict=True):
            p = WindowPool(self.poolings, layout, reduce)
            p.past = dict(past)
            p.begin(totals)
            local = [(layout.positions(i).start, layout.positions(i).stop) for i in range(layout.num_passes)]
            if p.needs_counting():
                for i, (start, stop) in enumerate(local):
                    p.count(i, counts[:, start:stop])
                p.finish_counting()
            for i, (start, stop) in enumerate(local):
                known = p.counts(i, counts[:, start:stop])
                for t, (pooling, counts_LWE) in enumerate(zip(self.poolings, known, strict=True)):
                    scores_LWE = layout.pool(scores[:, start:stop], i, pooling.window)
                    losses[t] += load_balancing_loss(counts_LWE, scores_LWE, tokens_per_rank=10 * BATCH)
            p.end()
            pools.append(p)
        return losses, pools


@st.composite
def splits(draw: st.DrawFn) -> tuple[tuple[int, ...], ...]:
    """Any way to share the batch out over passes and ranks, in order."""
    num_ranks = draw(st.sampled_from([1, 2, 3]))
    places = num_ranks * draw(st.integers(1, 4))
    cuts = sorted(draw(st.sets(st.integers(1, BATCH - 1), min_size=places - 1, max_size=places - 1)))
    sizes = [b - a for a, b in zip([0, *cuts], [*cuts, BATCH], strict=True)]
    return tuple(tuple(sizes[i : i + num_ranks]) for i in range(0, places, num_ranks))


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 100), window=st.sampled_from(DIVISORS), sizes=splits())
def test_exact_window_loss_does_not_depend_on_the_split(seed, window, sizes) -> None:
    counts, scores = random_batch(seed)
    (loss,), _ = Ranks(sizes, [Pooling(window)]).step(counts, scores)
    assert torch.allclose(loss, whole_batch_loss(counts, scores, window), rtol=1e-12)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 100), window=st.sampled_from(DIVISORS), sizes=splits())
def test_metrics_and_bias_updates_do_not_depend_on_the_split_by_a_bit(seed, window, sizes) -> None:
    counts, scores = random_batch(seed)
    _, totals = Ranks(sizes, [Pooling(BATCH, "prefix")]).step(counts, scores, totals=(window, 4))
    for counts_LWE, micro_LWE in totals:
        assert counts_LWE.dtype == micro_LWE.dtype == torch.int64, "fp32 cannot count beyond 2^24"
        assert torch.equal(counts_LWE, grouped(counts, window)) and torch.equal(micro_LWE, grouped(counts, 4))
        update = bias_update(counts_LWE, rate=0.001)
        assert torch.equal(update, bias_update(grouped(counts, window), rate=0.001))
        assert torch.equal(max_violation(micro_LWE), max_violation(grouped(counts, 4)))


@settings(max_examples=50, deadline=None)
@given(sizes=splits(), windows=st.lists(st.sampled_from(DIVISORS), min_size=1, max_size=3))
def test_there_is_one_collective_per_forward_pass_at_most_for_all_terms(sizes, windows) -> None:
    counts, scores = random_batch(0)
    poolings = [Pooling(window) for window in windows] + [Pooling(BATCH, "prefix"), Pooling(BATCH, "previous")]
    ranks = Ranks(sizes, poolings)
    ranks.step(counts, scores, totals=(4, 12))
    counting = any(ranks.layouts[0].spans_passes(window) for window in windows)
    if len(ranks.layouts) > 1:
        assert 1 <= ranks.reductions <= len(sizes) * (1 + counting)
    else:
        assert ranks.reductions == 0


def test_prefix_equals_exact_where_a_window_lies_inside_one_pass() -> None:
    counts, scores = random_batch(0)
    for window in (1, 2, 4, 8):
        (loss,), _ = Ranks(((4, 4), (4, 4), (4, 4)), [Pooling(window, "prefix")]).step(counts, scores)
        assert torch.allclose(loss, whole_batch_loss(counts, scores, window), rtol=1e-12)


def test_prefix_is_algorithm_1_running_counts_over_running_totals() -> None:
    counts, scores = random_batch(3)
    for sizes in (((4,),) * 6, ((1,), (9,), (14,))):
        expected, running, start = torch.zeros(2).double(), torch.zeros(2, 5, dtype=torch.float64), 0
        for (size,) in sizes:
            running += counts[:, start : start + size].sum(dim=1)
            frequency = running / running.sum(dim=-1, keepdim=True)
            expected += 5 * (frequency * scores[:, start : start + size].sum(dim=1)).sum(dim=-1) / (10 * BATCH)
            start += size
        ranks = Ranks(sizes, [Pooling(BATCH, "prefix")])
        assert torch.allclose(ranks.step(counts, scores)[0][0], expected, rtol=1e-12)
        # It is reset after the optimizer step.
        assert torch.allclose(ranks.step(counts, scores)[0][0], expected, rtol=1e-12)
        assert not torch.allclose(expected, whole_batch_loss(counts, scores, BATCH), rtol=1e-6)


def loss_with(shares_LE: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """The loss of the whole batch for a given f."""
    return 5 * (shares_LE * scores.sum(dim=1)).sum(dim=-1) / (10 * BATCH)


def test_previous_uses_the_last_steps_global_counts_on_every_split_and_is_zero_before() -> None:
    batches = [random_batch(seed) for seed in range(3)]
    for sizes in (((24,),), ((8,), (16,)), ((5, 7), (9, 3))):
        ranks = Ranks(sizes, [Pooling(BATCH, "previous")])
        losses = [ranks.step(*batch)[0][0] for batch in batches]
        assert losses[0].tolist() == [0, 0]
        for before, (_, scores), loss in zip(batches, batches[1:], losses[1:], strict=False):
            counts_LE = before[0].sum(dim=1).double()
            assert torch.allclose(loss, loss_with(counts_LE / counts_LE.sum(-1, keepdim=True), scores), rtol=1e-12)


def test_ema_weighs_a_step_half_as_much_after_its_half_life() -> None:
    batches = [random_batch(seed) for seed in range(4)]
    for sizes in (((24,),), ((5, 7), (9, 3))):
        ranks = Ranks(sizes, [Pooling(BATCH, "ema", half_life=2.0)])
        losses = [ranks.step(*batch)[0][0] for batch in batches]
        shares = [counts.sum(dim=1).double() / (20 * BATCH) for counts, _ in batches]
        weights = [0.5 ** (age / 2) for age in (2, 1, 0)]
        expected = sum(w * s for w, s in zip(weights, shares[:3], strict=True)) / sum(weights)
        assert torch.allclose(losses[3], loss_with(expected, batches[3][1]), rtol=1e-12)


def test_a_forgotten_step_leaves_no_trace_in_the_past() -> None:
    counts, _ = random_batch(0)
    p = WindowPool([Pooling(BATCH, "ema", half_life=1.0)], Layout(((BATCH,),)), lambda tensor: tensor)
    for forget, expected in ((True, 0), (False, 20 * BATCH), (True, 20 * BATCH)):
        p.begin()
        p.counts(0, counts)
        p.end(forget=torch.tensor(forget))
        assert p.past[0].sum(dim=-1).tolist() == [expected] * 2


def test_a_window_inside_one_rank_needs_no_reduction() -> None:
    counts, _ = random_batch(0)
    calls: list[torch.Tensor] = []
    p = WindowPool([Pooling(1), Pooling(3)], Layout(((6, 6), (6, 6))), lambda tensor: calls.append(tensor) or tensor)
    p.begin()
    p.counts(0, counts[:, :6])
    assert not calls
