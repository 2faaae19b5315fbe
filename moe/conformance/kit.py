"""One optimizer step of a routed model that is nothing but routers, through the eyes of an implementation under test.

Per layer logits = hidden @ W in fp64, so that gradients are those of the router weights. All ranks of a pass run side
by side in this process. What belongs to a framework, its synchronisation and its averaging, is in its adapter.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# L layers, S sequences, N tokens of a sequence, T = S·N tokens, E experts, K choices

Sizes = tuple[tuple[int, ...], ...]
"""Sequences of each pass and, within it, of each rank."""


class Routing(NamedTuple):
    """What one router decided for the tokens that one rank has in one pass."""

    logits_TE: Tensor
    """With gradient in training."""
    selected_TK: Tensor
    """The K largest logits."""
    mask_SN: Tensor
    """True where a token counts, false where it is padding; T runs through the S sequences one after the other."""


class Step(NamedTuple):
    """What a training loop knows before its first pass."""

    num_layers: int
    num_experts: int
    top_k: int
    sizes: Sizes
    tokens: int
    """Tokens of the global batch that count."""
    look_ahead: Callable[[], list[list[list[Routing]]]]
    """Routings by pass, rank and layer, without gradient, for an implementation that counts in advance."""

    @property
    def num_passes(self) -> int:
        """Accumulation steps."""
        return len(self.sizes)

    @property
    def num_ranks(self) -> int:
        """Data-parallel size."""
        return len(self.sizes[0])


class Adapter:
    """An implementation under test; its docstring says which, and the class is called once per measurement.

    The gradients of all ranks and passes are added up: whatever the framework divides by or multiplies with (the mean
    of data parallelism, the number of accumulation steps), the adapter does to the losses that it hands out. So a wrong
    factor shows. An evaluation makes the same calls as a pass, under `torch.no_grad()`, outside of `begin` and `end`.
    """

    not_applicable: ClassVar[dict[str, str]] = {}
    """Names of properties that are not to be asked for, each with its reason."""
    tolerance: ClassVar[float] = 1e-9
    """Relative, of values and gradients."""
    reentrant: ClassVar[bool] = False
    """Whether activation recomputation runs the first forward without gradient (`use_reentrant` of torch)."""

    def __init__(self, *, global_weight: float = 1.0, micro_weight: float = 0.0) -> None:
        self.global_weight = global_weight
        self.micro_weight = micro_weight
        """Weight of the second loss, over a smaller window, of an implementation that has one."""

    def begin(self, step: Step) -> None:
        """An optimizer step starts."""
        self.step = step

    def inside(self, pass_index: int, layer: int, ranks: list[Routing]) -> Sequence[Tensor]:
        """What is done within the forward of one layer, and again when activations are recomputed.

        Returns losses (scalars) whose gradient is added in the backward of that layer; none by default.
        """
        return ()

    def losses(self, pass_index: int, ranks: list[list[Routing]]) -> Sequence[Tensor]:
        """What is done after the forward of a pass, with the routings by rank and layer; returns losses (scalars)."""
        return ()

    def end(self) -> None:
        """The optimizer has stepped."""

    def logged(self) -> float | None:
        """The value that the framework logs for this step; None stands for the sum of all losses."""
        return None


class Batch(NamedTuple):
    """A global batch: inputs of the routers, chosen so that the identity as W gives the wanted logits."""

    hidden_LSNE: Tensor
    mask_SN: Tensor
    top_k: int

    def share(self, start: int, stop: int) -> "Batch":
        """Some of its sequences."""
        return Batch(self.hidden_LSNE[:, start:stop], self.mask_SN[start:stop], self.top_k)

    def split(self, sizes: Sizes) -> list[list["Batch"]]:
        """Shares by pass and rank: neighbouring sequences, rank by rank within pass by pass."""
        assert sum(map(sum, sizes)) == len(self.mask_SN), "the sizes share out the whole batch"
        stops = itertools.accumulate(itertools.chain.from_iterable(sizes))
        # Each inner loop goes on where the one before has left `stops`.
        return [[self.share(stop - size, stop) for size, stop in zip(ranks, stops, strict=False)] for ranks in sizes]


class Outcome(NamedTuple):
    """What one optimizer step was made of."""

    value: float
    """Logged."""
    gradient: Tensor
    """Seen by the optimizer, [L, E, E]."""


def run_step(adapter: Adapter, batch: Batch, sizes: Sizes, *, recompute: bool = False) -> Outcome:
    """One optimizer step on `batch`, split into `sizes`; `recompute`: under activation recomputation of every layer."""
    num_layers, _, _, num_experts = batch.hidden_LSNE.shape
    weights = [torch.eye(num_experts, dtype=torch.float64, requires_grad=True) for _ in range(num_layers)]
    passes = batch.split(sizes)

    def look_ahead() -> list[list[list[Routing]]]:
        return [[[_route(share, i, w.detach()) for i, w in enumerate(weights)] for share in ranks] for ranks in passes]

    adapter.begin(Step(num_layers, num_experts, batch.top_k, sizes, int(batch.mask_SN.sum()), look_ahead))
    spent: list[float] = []
    for pass_index, ranks in enumerate(passes):
        _forward(adapter, pass_index, ranks, weights, spent, recompute=recompute).backward()
    adapter.end()
    logged = adapter.logged()
    gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    return Outcome(sum(spent) if logged is None else float(logged), torch.stack(gradients))


def evaluate(adapter: Adapter, batch: Batch, sizes: Sizes) -> None:
    """The forward passes of a step, without gradient."""
    weights = [torch.eye(batch.hidden_LSNE.shape[-1], dtype=torch.float64)] * len(batch.hidden_LSNE)
    with torch.no_grad():
        for pass_index, ranks in enumerate(batch.split(sizes)):
            _forward(adapter, pass_index, ranks, weights, [], recompute=False)


def _forward(
    adapter: Adapter, pass_index: int, ranks: list[Batch], weights: list[Tensor], spent: list[float], *, recompute: bool
) -> Tensor:
    """What a pass backpropagates; the values of its losses are added to `spent` when their gradient is."""

    def region(layer: int, weight: Tensor) -> Tensor:
        inner = [_route(share, layer, weight) for share in ranks]
        losses = adapter.inside(pass_index, layer, inner)
        return _Attach.apply(torch.cat([routing.logits_TE for routing in inner]), spent, *losses)  # type: ignore

    outputs = [
        checkpoint(region, layer, weight, use_reentrant=adapter.reentrant, preserve_rng_state=False)
        if recompute
        else region(layer, weight)
        for layer, weight in enumerate(weights)
    ]
    lengths = [share.mask_SN.numel() for share in ranks]
    by_layer = [
        [_routing(part_TE, share) for part_TE, share in zip(logits_TE.split(lengths), ranks, strict=True)]
        for logits_TE in outputs
    ]
    losses = list(adapter.losses(pass_index, [list(layers) for layers in zip(*by_layer, strict=True)]))
    spent += [float(loss.detach()) for loss in losses]
    # The language-model loss, which has no gradient here, takes the backward through every layer.
    return torch.stack([0 * logits_TE.sum() for logits_TE in outputs] + losses).sum()


def _route(share: Batch, layer: int, weight: Tensor) -> Routing:
    return _routing(share.hidden_LSNE[layer].flatten(0, 1) @ weight, share)


def _routing(logits_TE: Tensor, share: Batch) -> Routing:
    return Routing(logits_TE, logits_TE.detach().topk(share.top_k, dim=-1).indices, share.mask_SN)


class _Attach(torch.autograd.Function):
    """Passes `output` on, and gives each loss the gradient 1 when the backward comes by."""

    @staticmethod
    def forward(ctx, output: Tensor, spent: list[float], *losses: Tensor) -> Tensor:
        ctx.spent = spent
        # As experts would need it in their backward: recomputation goes through all of the layer.
        ctx.save_for_backward(output, *losses)
        return output.view_as(output)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        # Recomputation allows one look.
        _, *losses = ctx.saved_tensors
        ctx.spent += [float(loss) for loss in losses]
        return grads[0], None, *map(torch.ones_like, losses)
