"""Where did a number stop being finite? The first layer and the domains, found by going through a batch once more."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moe.balance.losses import load_balancing_loss, z_loss
from moe.model.objective import Objective
from moe.shard import whole

# B sequences of the batch, N tokens of a sequence, L layers, W windows, E experts


def locate(objective: Objective, tokens_BN: np.ndarray, domains_B: Sequence[str]) -> str:
    """Say which layer and which domains make the loss or the gradient of the batch int64 [B, N] non-finite.

    Every sequence is run alone, forward with all losses and, where they are finite, backward. If every sequence alone
    is finite, the sum over the batch is not: then the layer and the domain of the largest gradient are named.
    """
    found: dict[str, list[str]] = {}
    largest = (-1.0, "", "")
    for tokens_N, domain in zip(torch.from_numpy(tokens_BN), domains_B, strict=True):
        objective.zero_grad()
        if place := _forward_place(objective, tokens_N[None]):
            found.setdefault(place, []).append(domain)
            continue
        sizes = {name: whole(p.grad).abs().max() for name, p in objective.named_parameters() if p.grad is not None}
        if bad := [_layer_of(name) for name, size in sizes.items() if not size.isfinite()]:
            # The backward pass meets the last layer first.
            found.setdefault(f"the gradient of {bad[-1]}", []).append(domain)
        largest = max(largest, *((float(size), _layer_of(name), domain) for name, size in sizes.items()))
    objective.zero_grad()
    if found:
        place, domains = next(iter(found.items()))
        names = ", ".join(f"'{name}'" for name in dict.fromkeys(domains))
        return f"{place} is not finite on domain {names}"
    size, layer, domain = largest
    return (
        "the gradient of the batch is not finite, though that of every sequence alone is; the largest is that of "
        f"{layer} on domain '{domain}' ({size:.2g})"
    )


def _forward_place(objective: Objective, tokens_SN: Tensor) -> str | None:
    """What is not finite in the forward pass; where all is, the gradient of all losses lies in `grad` afterwards."""
    with _outputs_that_are_not_finite(objective.model) as places:
        nats, statistics = objective(tokens_SN.to(next(objective.parameters()).device))
    if places:
        return f"the output of {places[0]}"
    z_L = z_loss(statistics, tokens_per_rank=tokens_SN.numel())
    counts_LWE, scores_LWE = (values.sum(dim=1, keepdim=True) for values in statistics[:2])
    balance_L = load_balancing_loss(counts_LWE, scores_LWE, tokens_per_rank=tokens_SN.numel())
    for i, value in enumerate(z_L + balance_L):
        if not value.isfinite():
            return f"the router of layer {i}"
    if not nats.isfinite():
        return "the LM loss, behind the last layer,"
    (nats / tokens_SN.numel() + z_L.mean() + balance_L.mean()).backward()
    return None


@contextmanager
def _outputs_that_are_not_finite(model: PreTrainedModel) -> Iterator[list[str]]:
    """Collect the names of the embedding and the layers whose output is not finite, in the order of the forward
    pass."""
    found: list[str] = []

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def look(_module: nn.Module, _inputs: tuple, output: Tensor | tuple) -> None:
            values = output[0] if isinstance(output, tuple) else output
            if not values.isfinite().all():
                found.append(name)

        return module.register_forward_hook(look)

    parts = {"the embedding": model.model.embed_tokens}
    parts |= {f"layer {i}": layer for i, layer in enumerate(model.model.layers)}
    handles = [watch(name, module) for name, module in parts.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _layer_of(name: str) -> str:
    _, separator, rest = name.partition(".layers.")
    return f"layer {rest.split('.')[0]}" if separator else "the embedding"
