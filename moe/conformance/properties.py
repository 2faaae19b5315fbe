"""What users of a load-balancing loss rely on: one function per property, whose docstring says what it means.

Each takes an adapter's class and returns what deviates, in words; nothing deviates where the property holds.
"""

import math
from collections.abc import Callable

from torch import Tensor

from moe.conformance import batches
from moe.conformance.kit import Adapter, Batch, Outcome, Sizes, evaluate, run_step

Target = type[Adapter]
ALONE: Sizes = ((1,),)
TWO_PASSES: Sizes = ((1, 1), (1, 1))
MANY = 4  # ranks, accumulation steps or sequences that a split goes up to


def uniform(target: Target) -> list[str]:
    """Where every expert is chosen equally often, the logged value is 1: it can be read without knowing N_E and K."""
    return _value(_in_one(target, batches.uniform()).value, 1.0, target)


def collapse(target: Target) -> list[str]:
    """Where all tokens choose the same K experts, with all probability on them, the logged value is N_E / K."""
    return _value(_in_one(target, batches.collapsed(0, 0)).value, batches.NUM_EXPERTS / 2, target)


def top_k(target: Target) -> list[str]:
    """Uniform routing scores 1 for K = 1, 2 and 4: one weight means the same for every K."""
    found = {k: _in_one(target, batches.uniform(k)).value for k in (1, 2, 4)}
    return [f"{said} at K = {k}" for k, value in found.items() for said in _value(value, 1.0, target)]


def layers(target: Target) -> list[str]:
    """Two layers that collapse on different experts score as two that collapse on the same: f is not pooled over
    layers, where opposite faults would cancel."""
    expected = _in_one(target, batches.collapsed(0, 0)).value
    return _value(_in_one(target, batches.collapsed(0, 4)).value, expected, target)


def ranks(target: Target) -> list[str]:
    """Four data-parallel ranks that hold the same tokens give the gradient and the logged value of one."""
    return _scale(target, ((1,) * MANY,))


def accumulation(target: Target) -> list[str]:
    """Four accumulation steps of the same tokens give the gradient and the logged value of one."""
    return _scale(target, ((1,),) * MANY)


def micro_batch(target: Target) -> list[str]:
    """A micro-batch of four equal sequences gives the gradient and the logged value of one sequence."""
    return _scale(target, ((MANY,),))


def uneven(target: Target) -> list[str]:
    """Shares of 3, 2 and 2 sequences, over ranks or over passes, give what one share of 7 gives: a token weighs the
    same wherever it is. f is the same in every share here, and any factor of the number of shares is taken out."""
    return _splits(target, batches.graded(7), ((3, 2, 2),), ((3,), (2,), (2,)))


def padding(target: Target) -> list[str]:
    """Sequences that are filled up with padding give what they give without it."""
    short, long = batches.graded(3), batches.padded([1, 1, 2])
    return _compare(_in_one(target, long.share(0, 2)), _in_one(target, short.share(0, 2)), target)


def uneven_padding(target: Target) -> list[str]:
    """Shares with different numbers of tokens that are not padding, over ranks or over passes, give what one share with
    all of them gives. f is the same in every share here, and any factor of the number of shares is taken out."""
    return _splits(target, batches.padded([4, 1, 2, 1]), ((1, 1, 1, 1),), ((1,), (1,), (1,), (1,)))


def over_ranks(target: Target) -> list[str]:
    """f is counted over all data-parallel ranks: ranks that hold different domains give what one rank with all of them
    gives. Any factor of the number of shares is taken out."""
    return _splits(target, batches.domains([0, 0, 0, 0, 1, 1, 2, 3]), ((2, 2, 2, 2),))


def over_passes(target: Target) -> list[str]:
    """f is counted over all accumulation steps of the optimizer step: passes over different domains give what one pass
    over all of them gives. Any factor of the number of shares is taken out."""
    return _splits(target, batches.domains([0, 0, 0, 0, 1, 1, 2, 3]), ((2,), (2,), (2,), (2,)))


def recomputation(target: Target) -> list[str]:
    """Under activation recomputation, which runs the forward of a layer twice, choices are counted once."""
    found = run_step(target(), _mixed(), TWO_PASSES, recompute=True)
    return _compare(found, run_step(target(), _mixed(), TWO_PASSES), target)


def evaluation(target: Target) -> list[str]:
    """A forward without gradient between two optimizer steps changes nothing in the second."""
    adapter = target()
    run_step(adapter, _mixed(), TWO_PASSES)
    evaluate(adapter, batches.domains([3, 3, 2, 1]), TWO_PASSES)
    found = run_step(adapter, _mixed(), TWO_PASSES)
    undisturbed = target()
    run_step(undisturbed, _mixed(), TWO_PASSES)
    return _compare(found, run_step(undisturbed, _mixed(), TWO_PASSES), target)


def fresh_step(target: Target) -> list[str]:
    """An optimizer step does not depend on the choices of the one before."""
    adapter = target()
    run_step(adapter, batches.domains([3, 3, 2, 1]), TWO_PASSES)
    return _compare(run_step(adapter, _mixed(), TWO_PASSES), run_step(target(), _mixed(), TWO_PASSES), target)


def gradient(target: Target) -> list[str]:
    """The gradient reaches the router of every layer, finite and not zero."""
    norms = run_step(target(), _mixed(), TWO_PASSES).gradient.flatten(1).norm(dim=1)
    return [
        f"gradient of layer {layer} is {norm:.4g}"
        for layer, norm in enumerate(norms.tolist())
        if norm == 0 or not math.isfinite(norm)
    ]


def hybrid(target: Target) -> list[str]:
    """Two losses at once, global at weight 1 and a smaller window at 0.5, are the sum of the two alone, in value and
    gradient."""
    both, first, second = (
        run_step(target(global_weight=a, micro_weight=b), _mixed(), TWO_PASSES)
        for a, b in ((1.0, 0.5), (1.0, 0.0), (0.0, 0.5))
    )
    total = Outcome(first.value + second.value, first.gradient + second.gradient)
    return _compare(both, total, target) or _nothing(second)


PROPERTIES: dict[str, Callable[[Target], list[str]]] = {
    "uniform routing scores 1": uniform,
    "collapse on K experts scores N_E / K": collapse,
    "the balanced value is 1 for every K": top_k,
    "layers do not cancel": layers,
    "scale: data-parallel size": ranks,
    "scale: accumulation steps": accumulation,
    "scale: micro-batch size": micro_batch,
    "uneven split": uneven,
    "padding does not count": padding,
    "uneven padding": uneven_padding,
    "f is pooled over ranks": over_ranks,
    "f is pooled over accumulation steps": over_passes,
    "recomputation counts once": recomputation,
    "evaluation changes nothing": evaluation,
    "steps do not leak": fresh_step,
    "the gradient reaches every router": gradient,
    "hybrid weights add up": hybrid,
}


def _mixed() -> Batch:
    """Four sequences for two ranks and two passes, whose counts differ from pass to pass and from rank to rank."""
    return batches.domains([0, 0, 1, 2])


def _in_one(target: Target, batch: Batch) -> Outcome:
    return run_step(target(), batch, ((len(batch.mask_SN),),))


def _scale(target: Target, sizes: Sizes) -> list[str]:
    alone = run_step(target(), batches.copies(1), ALONE)
    return _compare(run_step(target(), batches.copies(sum(map(sum, sizes))), sizes), alone, target)


def _splits(target: Target, batch: Batch, *splits: Sizes) -> list[str]:
    """How `batch` in each split deviates from `batch` in one, without the factors that copies of one sequence, in as
    many shares, show."""
    expected = _in_one(target, batch)
    alone = run_step(target(), batches.copies(1), ALONE)
    said = []
    for sizes in splits:
        places = tuple((1,) * len(shares) for shares in sizes)
        factor = run_step(target(), batches.copies(sum(map(sum, places))), places)
        found = run_step(target(), batch, sizes)
        value = found.value / _ratio(factor.value, alone.value)
        words = _compare(Outcome(value, found.gradient / _along(factor.gradient, alone.gradient)), expected, target)
        where = "" if len(splits) == 1 else "over ranks: " if len(sizes) == 1 else "over passes: "
        said += [where + ", ".join(words)] if words else []
    return said


def _compare(found: Outcome, expected: Outcome, target: Target) -> list[str]:
    said = _value(found.value, expected.value, target)
    size = float(expected.gradient.norm())
    # Not "error > tolerance", which a NaN would pass.
    if not float((found.gradient - expected.gradient).norm()) <= target.tolerance * size:
        factor = _along(found.gradient, expected.gradient)
        rest = _ratio(float((found.gradient - factor * expected.gradient).norm()), size)
        off_by = f"{rest:.0%}" if rest >= 0.01 else f"{rest:.1e}"
        said.append(f"gradient x {_apart(factor, 1.0)[0]}" if rest <= target.tolerance else f"gradient off by {off_by}")
    return said


def _value(found: float, expected: float, target: Target) -> list[str]:
    if abs(found - expected) <= target.tolerance * max(1.0, abs(expected)):
        return []
    return ["value {} instead of {}".format(*_apart(found, expected))]


def _apart(a: float, b: float) -> tuple[str, str]:
    """Both in four digits, or in as many as it takes to tell them apart."""
    digits = next((n for n in range(4, 17) if f"{a:.{n}g}" != f"{b:.{n}g}"), 17)
    return f"{a:.{digits}g}", f"{b:.{digits}g}"


def _nothing(outcome: Outcome) -> list[str]:
    return [] if outcome.gradient.norm() > 0 else ["the second loss has no gradient"]


def _along(found: Tensor, expected: Tensor) -> float:
    """By how much `found` goes in the direction of `expected`."""
    return _ratio(float((found * expected).sum()), float((expected * expected).sum()))


def _ratio(a: float, b: float) -> float:
    """Nothing is a measure of nothing: 1 where `b` is 0."""
    return a / b if b else 1.0
