"""The `exact` estimator gives the loss and the gradients of the whole batch, however that is split."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from moe.balance.windows import Layout
from moe.config import check_capacity
from moe.model.build import routers
from moe.settings import ConfigError
from moe.step import NonFiniteError, Stopwatch
from tests import exactness
from tests.exactness import BATCH, WEIGHT

DIVISORS = [1, 2, 3, 4, 6, 12]


@st.composite
def compositions(draw: st.DrawFn) -> tuple[tuple[int], ...]:
    """Sizes of the passes of one rank: any ordered way to share out the batch."""
    cuts = sorted(draw(st.sets(st.integers(1, BATCH - 1))))
    return tuple((b - a,) for a, b in zip([0, *cuts], [*cuts, BATCH], strict=True))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    sizes=compositions(),
    windows=st.lists(st.tuples(st.sampled_from(DIVISORS), st.booleans()), min_size=1, max_size=3, unique=True),
    padded=st.booleans(),
    checkpointing=st.booleans(),
)
def test_loss_and_gradients_in_fp64_do_not_depend_on_the_split(seed, sizes, windows, padded, checkpointing) -> None:
    terms = [{"window": window, "weight": WEIGHT, "shuffled": shuffled} for window, shuffled in windows]
    config = exactness.run_config(terms)
    tokens, mask = exactness.batch(seed, padded=padded)
    expected_loss, expected = exactness.whole_batch(config, tokens, mask, torch.float64)
    loss, found = exactness.split_batch(
        config,
        tokens,
        mask if padded else None,
        sizes=sizes,
        dtype=torch.float64,
        checkpointing=checkpointing,
    )
    assert loss == pytest.approx(expected_loss, rel=1e-10)
    assert exactness.relative_error(found, expected) < 1e-10


WAYS: dict[str, dict[str, Any]] = {
    "sigmoid": {"gate": "sigmoid", "bias": {"window": 4}},
    "forced": {"forced": True},
    "similarity": {"similarity_weight": 0.02},
    "capacity": {"capacity": {"factor": 0.8, "window": 2}},
    "all": {"gate": "sigmoid", "similarity_weight": 0.02, "capacity": {"factor": 0.8, "window": 1}},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("sizes", "padded", "checkpointing"), [(((4,), (6,), (2,)), True, False), (((6,),) * 2, False, True)]
)
def test_every_way_of_routing_and_balancing_is_independent_of_the_split(way, sizes, padded, checkpointing) -> None:
    terms = [{"window": window, "weight": WEIGHT} for window in (1, 12)]
    config = exactness.run_config(terms, **WAYS[way])
    tokens, mask = exactness.batch(3, padded=padded)
    expected_loss, expected = exactness.whole_batch(config, tokens, mask, torch.float64)
    at = {"sizes": sizes, "dtype": torch.float64, "checkpointing": checkpointing}
    loss, found = exactness.split_batch(config, tokens, mask if padded else None, **at)
    assert loss == pytest.approx(expected_loss, rel=1e-10)
    assert exactness.relative_error(found, expected) < 1e-10
    _, plain = exactness.whole_batch(exactness.run_config(terms), tokens, mask, torch.float64)
    assert exactness.relative_error(plain, expected) > 1e-3


def test_the_share_of_dropped_selections_is_that_of_the_gates_that_are_zero() -> None:
    config = exactness.run_config([], capacity={"factor": 0.8, "window": 2})
    step = exactness.make_step(config, sizes=((4,), (8,)), dtype=torch.float64)
    zeros: list[list[float]] = [[], []]
    for layer, router in zip(zeros, routers(step.objective.model), strict=True):
        router.register_forward_hook(
            lambda _router, _inputs, output, layer=layer: layer.extend(output[1].flatten().tolist())
        )
    watch = Stopwatch(step.accelerator.device, measure=False)
    metrics = step(0, exactness.batch(0, padded=False)[0], watch, measure=True)
    assert metrics is not None
    assert metrics["dropped"] == pytest.approx([gates.count(0.0) / len(gates) for gates in zeros])
    assert min(metrics["dropped"]) > 0


@given(
    batch=st.sampled_from([12, 24, 30]),
    per_pass=st.integers(1, 12),
    processes=st.integers(1, 4),
    window=st.sampled_from([1, 2, 3, 4, 6]),
)
def test_a_capacity_window_is_refused_where_it_spans_ranks_or_passes(batch, per_pass, processes, window) -> None:
    config = exactness.run_config([], capacity={"window": window})
    train = {"batch_sequences": batch, "micro_sequences": 1, "sequences_per_pass": per_pass}
    config = config.model_copy(update={"train": config.train.model_copy(update=train)})
    assume(batch >= processes * -(-batch // (per_pass * processes)))  # else `check_split` refuses it
    layout = Layout.split(batch, pass_sequences=per_pass, num_ranks=processes)
    with pytest.raises(ConfigError) if layout.spans_ranks(window) else nullcontext():
        check_capacity(config, processes)


def test_loss_and_gradients_in_fp32_agree_to_rounding() -> None:
    config = exactness.run_config([{"window": 12, "weight": WEIGHT}, {"window": 2, "weight": WEIGHT}])
    tokens, mask = exactness.batch(0, padded=True)
    expected_loss, expected = exactness.whole_batch(config, tokens, mask, torch.float32)
    loss, found = exactness.split_batch(config, tokens, mask, sizes=((5,), (4,), (3,)), dtype=torch.float32)
    # fp32 has 24 bits of mantissa; sums over the batch lose a few.
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert exactness.relative_error(found, expected) < 1e-4


@pytest.mark.parametrize("estimator", ["prefix", "previous"])
def test_the_cheap_estimators_are_not_exact_under_accumulation(estimator: str) -> None:
    config = exactness.run_config([{"window": 12, "weight": WEIGHT, "estimator": estimator}])
    tokens, mask = exactness.batch(0, padded=False)
    _, expected = exactness.whole_batch(config, tokens, mask, torch.float64)
    _, found = exactness.split_batch(config, tokens, None, sizes=((4,), (4,), (4,)), dtype=torch.float64)
    assert exactness.relative_error(found, expected) > 1e-3


def gradients(terms: list[dict], sizes: tuple[tuple[int], ...]) -> dict[str, torch.Tensor]:
    tokens, _ = exactness.batch(0, padded=False)
    return exactness.split_batch(exactness.run_config(terms), tokens, None, sizes=sizes, dtype=torch.float64)[1]


@pytest.mark.parametrize("sizes", [((12,),), ((5,), (7,))])
def test_shuffling_moves_the_gradient_except_that_of_the_global_window(sizes: tuple[tuple[int], ...]) -> None:
    for window in (1, 4, 12):
        plain, shuffled = ([{"window": window, "weight": WEIGHT, "shuffled": value}] for value in (False, True))
        error = exactness.relative_error(gradients(shuffled, sizes), gradients(plain, sizes))
        assert error == 0 if window == 12 else error > 1e-3


def test_one_pass_needs_no_counting_for_a_shuffled_term() -> None:
    config = exactness.run_config([{"window": 2, "shuffled": True}])
    for sizes in (((12,),), ((4, 8),), ((4,), (8,))):
        pool = exactness.make_step(config, sizes=sizes, dtype=torch.float32).pool
        assert pool.needs_counting() == (len(sizes) > 1)


def test_every_step_draws_anew_and_a_resumed_run_draws_the_same() -> None:
    config = exactness.run_config([{"window": 2, "weight": WEIGHT, "shuffled": True}])
    tokens, _ = exactness.batch(0, padded=False)
    found = []
    for step in (3, 4, 3):
        made = exactness.make_step(config, sizes=((5,), (7,)), dtype=torch.float64)
        watch = Stopwatch(made.accelerator.device, measure=False)
        made.accumulate(step, tokens, watch)
        found.append(torch.cat([p.grad.flatten() for p in made.objective.parameters() if p.grad is not None]))
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])


def test_prefix_at_one_pass_is_exact() -> None:
    config = exactness.run_config([{"window": 12, "weight": WEIGHT, "estimator": "prefix"}])
    tokens, mask = exactness.batch(0, padded=True)
    _, expected = exactness.whole_batch(config, tokens, mask, torch.float64)
    _, found = exactness.split_batch(config, tokens, mask, sizes=((12,),), dtype=torch.float64)
    assert exactness.relative_error(found, expected) < 1e-10


@pytest.mark.parametrize("waits_for_device", [True, False])
def test_no_step_after_one_that_is_not_finite_changes_anything_until_it_is_found(waits_for_device: bool) -> None:
    config = exactness.run_config([{"window": 12, "weight": WEIGHT, "estimator": "ema", "half_life": 2.0}])
    step = exactness.make_step(config, sizes=((4,), (8,)), dtype=torch.float32)
    objective, optimizer = step.objective, step.optimizer
    step.waits_for_device = waits_for_device
    watch = Stopwatch(step.accelerator.device, measure=False)
    before: dict[str, torch.Tensor] = {}
    with pytest.raises(NonFiniteError) as error:
        for i in range(6):
            if i == 2:
                before = {name: value.clone() for name, value in (objective.state_dict() | step.state).items()}
                handle = objective.model.lm_head.weight.register_hook(lambda grad: grad * torch.nan)
            if i == 3:
                handle.remove()  # a later step alone would be finite
            step(i, exactness.batch(i, padded=False)[0], watch, measure=i == 5)
    assert error.value.step == 2
    assert i == (2 if waits_for_device else 5)
    after = objective.state_dict() | step.state
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert {int(state["step"]) for state in optimizer.state.values()} == {2}


class HostReads(TorchDispatchMode):
    """Counts how often the host reads a value of a tensor: on an accelerator it would wait for it."""

    READS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "bincount")
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += any(f"aten.{read}" in str(func) for read in self.READS)
        return func(*args, **(kwargs or {}))


def test_a_step_that_is_not_measured_reads_no_value_beyond_what_the_stock_model_reads() -> None:
    terms = [{"window": window, "weight": WEIGHT} for window in (1, 4, 12)]
    terms += [{"window": 2, "shuffled": True}, {"estimator": "prefix"}]
    terms += [{"estimator": "previous"}, {"estimator": "ema", "half_life": 2.0}]
    ways = {"gate": "sigmoid", "similarity_weight": 0.1, "capacity": {"factor": 1.0, "window": 1}}
    config = exactness.run_config(terms, bias={"window": 4}, **ways)
    step = exactness.make_step(config, sizes=((5,), (7,)), dtype=torch.float32)
    step.objective.model.set_experts_implementation("grouped_mm")  # what an accelerator runs
    step.waits_for_device = False
    watch = Stopwatch(step.accelerator.device, measure=False)
    tokens = exactness.batch(0, padded=False)[0]
    step(0, tokens, watch, measure=False)
    with HostReads() as stock:
        step.objective.model.model(input_ids=torch.from_numpy(tokens), use_cache=False)
    with HostReads() as ours:
        step(1, tokens, watch, measure=False)
    assert ours.count == 4 * stock.count, "two counting passes and two of training"
    with HostReads() as measured:
        step(2, tokens, watch, measure=True)
    assert measured.count > ours.count


def test_counting_passes_choose_the_experts_of_the_forward_passes_under_bf16() -> None:
    config = exactness.run_config([{"window": 12, "weight": WEIGHT}])
    AcceleratorState._reset_state()  # one process has one precision
    try:
        step = exactness.make_step(config, sizes=((6,), (6,)), dtype=torch.float32, mixed_precision="bf16")
        with torch.no_grad():
            for parameter in step.objective.parameters():
                parameter.mul_(8 if parameter.ndim > 1 else 1)  # layers that matter: rounding moves choices
        counted, trained, count = [], [], step.objective.count
        vars(step.objective)["count"] = lambda *share: counted.append(count(*share)) or counted[-1]
        step.prepared.register_forward_hook(lambda _module, _inputs, output: trained.append(output[1][0]))
        for seed in range(4):
            tokens, _ = exactness.batch(seed, padded=False)
            step.accumulate(0, tokens, Stopwatch(step.accelerator.device, measure=False))
    finally:
        AcceleratorState._reset_state()
    assert len(counted) == len(trained) == 8
    assert torch.equal(torch.stack([counts for counts, _ in counted]), torch.stack(trained))
