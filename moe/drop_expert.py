"""How much worse is held-out text predicted where one expert of one layer is never chosen?

An expert is left out of the choice alone: the next-best expert, or under forced balance the next in turn, takes its
place, with the score that the router gives it, and where gates are normalised they are so over the experts that are
then chosen. A token that had not chosen the expert keeps what its layer gave it. So only the choosers' outputs are
computed anew in that layer, and above it only the sequences that hold a chooser.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moe.model.router import Router, record_routing
from moe.probe import nats_of, token_nats

# S sequences, N tokens of a sequence, T = S·N tokens, L layers, E experts, K choices, H hidden units
# R = T·K rows, one for each choice; P pairs of an expert and a sequence that has chosen it


@torch.inference_mode()
def increases(model: PreTrainedModel, tokens_SN: Tensor, *, batch_size: int) -> Tensor:
    """Nats that each sequence loses without each expert, summed over its predicted tokens: fp64 [L, E, S].

    `batch_size`: sequences that go through the model at once.
    """
    return torch.cat([_increases(model, tokens, batch_size) for tokens in tokens_SN.split(batch_size)], dim=-1)


def _increases(model: PreTrainedModel, tokens_SN: Tensor, batch_size: int) -> Tensor:
    whole, traces = _trace(model, tokens_SN)
    nats_SN = token_nats(model, whole, tokens_SN)
    (num_sequences, length), device = tokens_SN.shape, tokens_SN.device
    num_experts = model.config.num_experts
    increase = torch.zeros(len(traces), num_experts * num_sequences, dtype=torch.float64, device=device)
    for number, (layer, before_TH, after_SNH, selected_TK) in enumerate(traces):
        token_R = torch.arange(len(selected_TK), device=device).repeat_interleave(selected_TK.shape[1])
        expert_R = selected_TK.flatten()
        sequence_R, position_R = token_R // length, token_R % length
        rows_RH = _without(layer, before_TH[token_R], expert_R, position_R)
        pair_R = expert_R * num_sequences + sequence_R
        if number == len(traces) - 1:
            # No layer above mixes tokens: a chooser's own prediction is all that changes.
            predicts_R = position_R < length - 1
            sequence_R, position_R, pair_R = (index[predicts_R] for index in (sequence_R, position_R, pair_R))
            without_R = nats_of(model, model.model.norm(rows_RH[predicts_R]), tokens_SN[sequence_R, position_R + 1])
            increase[number].index_add_(0, pair_R, without_R - nats_SN[sequence_R, position_R])
            continue
        pairs_P, place_R = pair_R.unique(return_inverse=True)
        for start in range(0, len(pairs_P), batch_size):
            pairs = pairs_P[start : start + batch_size]
            here_R = (place_R >= start) & (place_R < start + batch_size)
            hidden_PNH = after_SNH[pairs % num_sequences]
            hidden_PNH[place_R[here_R] - start, position_R[here_R]] = rows_RH[here_R]
            with _layers_above(model, number):
                hidden_PNH = model.model(inputs_embeds=hidden_PNH, use_cache=False).last_hidden_state
            without_PN = token_nats(model, hidden_PNH, tokens_SN[pairs % num_sequences])
            increase[number, pairs] = (without_PN - nats_SN[pairs % num_sequences]).sum(dim=1)
    return increase.view(len(traces), num_experts, num_sequences)


class _Trace(NamedTuple):
    """What passed through one layer."""

    layer: Any  # of whichever class of transformers
    before_TH: Tensor
    """What the experts' part of the layer is given and adds to."""
    after_SNH: Tensor
    """What the layer has given to the next."""
    selected_TK: Tensor


def _trace(model: PreTrainedModel, tokens_SN: Tensor) -> tuple[Tensor, list[_Trace]]:
    """The last hidden states, and the trace of each layer."""
    before, after, hooks = [], [], []
    for layer in model.model.layers:
        norm = layer.post_attention_layernorm
        hooks.append(norm.register_forward_pre_hook(lambda _, inputs: before.append(inputs[0].flatten(0, 1))))
        hooks.append(layer.register_forward_hook(lambda _, _inputs, output: after.append(output)))
    with record_routing(model) as routing:
        whole = model.model(input_ids=tokens_SN, use_cache=False).last_hidden_state
    for hook in hooks:
        hook.remove()
    selected = [decided.selected_TK for decided in routing]
    return whole, [_Trace(*parts) for parts in zip(model.model.layers, before, after, selected, strict=True)]


def _without(layer: Any, before_RH: Tensor, expert_R: Tensor, position_R: Tensor) -> Tensor:
    """What the layer gives for each row, at its position, if its router cannot choose the row's expert, [R, H]."""
    router = layer.mlp.gate
    assert isinstance(router, Router)
    top_k = router.top_k

    def leave_out(_router: nn.Module, _inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> tuple:
        logits_RE, gates, selected = output
        # Behind all others, in the order of the scores, and then away.
        kept_RK = (selected == expert_R[:, None]).byte().argsort(dim=-1, stable=True)[:, :-1]
        gates_RK = gates.gather(1, kept_RK)
        if router.normalize_top_k:
            gates_RK = gates_RK / gates_RK.sum(dim=-1, keepdim=True)
        return logits_RE, gates_RK, selected.gather(1, kept_RK)

    hook = router.register_forward_hook(leave_out)
    router.top_k, router.positions_SN = min(top_k + 1, len(router.weight)), position_R[None]
    try:
        return before_RH + layer.mlp(layer.post_attention_layernorm(before_RH)[None])[0]
    finally:
        router.top_k = top_k
        hook.remove()


@contextmanager
def _layers_above(model: PreTrainedModel, number: int) -> Iterator[None]:
    """The model begins behind the layer `number`, in the block."""
    layers = model.model.layers
    model.model.layers = layers[number + 1 :]
    try:
        yield
    finally:
        model.model.layers = layers
