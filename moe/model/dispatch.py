"""How do tokens reach their experts? Dropless: sorted by expert once, one slice per expert, gathered back.

Registered as the experts implementation `NAME` of transformers, so the model's own classes stay stock. The products are
operators, which compiled code calls as they are; what lies between them it fuses.
"""

from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

from moe.model.products import multiply

# T tokens, E experts, K choices, R = T·K rows sorted by expert, H hidden units, I expert units, J = 2·I

NAME = "moe_sorted"


def sorted_experts(experts: nn.Module, hidden_TH: Tensor, selected_TK: Tensor, gates_TK: Tensor) -> Tensor:
    """Σ_k gates[t, k] · E_{selected[t, k]}(hidden[t]), as [T, H]; the signature is transformers' experts interface.

    On an accelerator the stock grouped matrix product does it, which needs no row counts on the host.
    """
    if hidden_TH.device.type != "cpu":
        return grouped_experts(experts, hidden_TH, selected_TK, gates_TK)
    parameters: Any = experts
    # fp32 also under autocast, where norms leave hidden states so: in bf16 oneDNN compiles a product for every number
    # of rows, which took 600 MB more and 1.5 times as long.
    gate_up_EJH, down_EHI = (w.to(hidden_TH.dtype) for w in (parameters.gate_up_proj, parameters.down_proj))
    selected_R = selected_TK.flatten()
    order_R = order_by_expert(selected_R)
    tokens_R = order_R // selected_TK.shape[1]
    position_TK = torch.empty_like(order_R).scatter_(0, order_R, torch.arange(len(order_R))).view_as(selected_TK)
    counts_E = selected_R.new_zeros(len(down_EHI)).scatter_add_(0, selected_R, torch.ones_like(selected_R))
    gate_RI, up_RI = expand_product(hidden_TH, gate_up_EJH, tokens_R, position_TK, counts_E).chunk(2, dim=-1)
    # Weighted here and not behind the second product, so that its result need not be kept.
    inner_RI = F.silu(gate_RI) * up_RI * gates_TK.flatten()[order_R, None]
    return collect_product(inner_RI, down_EHI, tokens_R, position_TK, counts_E)


def grouped_experts(experts: nn.Module, hidden_TH: Tensor, selected_TK: Tensor, gates_TK: Tensor) -> Tensor:
    """`sorted_experts` by the stock product; under autocast in its dtype, result too, as linear layers do."""
    device, parameters = hidden_TH.device.type, cast(Any, experts)
    # Autocast does not know this product, whose dtype is that of the weights.
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_TH.dtype
    weighted = WithWeights(experts, parameters.gate_up_proj.to(dtype), parameters.down_proj.to(dtype))
    return grouped_mm_experts_forward(cast(nn.Module, weighted), hidden_TH.to(dtype), selected_TK, gates_TK)


class WithWeights:
    """Experts with these weights in place of their parameters."""

    def __init__(self, experts: nn.Module, gate_up_EJH: Tensor, down_EHI: Tensor) -> None:
        self.experts, self.gate_up_proj, self.down_proj = experts, gate_up_EJH, down_EHI

    def __getattr__(self, name: str) -> Any:
        return getattr(self.experts, name)


@torch.library.custom_op("moe::order_by_expert", mutates_args=())
def order_by_expert(selected_R: Tensor) -> Tensor:
    """Rows sorted by expert, those of one expert in their order, [R]; numpy sorts integers of 16 bits by radix."""
    return torch.from_numpy(selected_R.numpy().astype(np.int16).argsort(kind="stable"))


@torch.library.custom_op("moe::expand_product", mutates_args=())
def expand_product(
    hidden_TH: Tensor, weights_EJH: Tensor, tokens_R: Tensor, position_TK: Tensor, counts_E: Tensor
) -> Tensor:
    """Every token times the weights of each of its experts: hidden[t] · weights[e]ᵀ, [R, J].

    tokens_R: the token of each row; position_TK: which row each choice is; counts_E: rows of each expert.
    """
    outputs_RJ = hidden_TH.new_empty(len(tokens_R), weights_EJH.shape[1])
    rows_RH, counts = hidden_TH.index_select(0, tokens_R), counts_E.tolist()
    for rows, weight, outputs in zip(rows_RH.split(counts), weights_EJH.mT, outputs_RJ.split(counts), strict=True):
        multiply(rows, weight, outputs)
    return outputs_RJ


@torch.library.custom_op("moe::expand_product_backward", mutates_args=())
def expand_product_backward(
    grad_RJ: Tensor, hidden_TH: Tensor, weights_EJH: Tensor, tokens_R: Tensor, position_TK: Tensor, counts_E: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of hidden states and weights."""
    rows_RH, counts = hidden_TH.index_select(0, tokens_R), counts_E.tolist()
    grad_RH, grad_EJH = torch.empty_like(rows_RH), torch.empty_like(weights_EJH)
    parts = (values.split(counts) for values in (rows_RH, grad_RJ, grad_RH))
    for rows, grad, grad_rows, weight, grad_weight in zip(*parts, weights_EJH, grad_EJH, strict=True):
        multiply(grad, weight, grad_rows)
        multiply(grad.T, rows, grad_weight)
    return F.embedding_bag(position_TK, grad_RH, mode="sum"), grad_EJH


@torch.library.custom_op("moe::collect_product", mutates_args=())
def collect_product(
    inner_RI: Tensor, weights_EHI: Tensor, tokens_R: Tensor, position_TK: Tensor, counts_E: Tensor
) -> Tensor:
    """Every row times the weights of its expert, inner[r] · weights[e]ᵀ, summed over the K rows of each token, [T, H];
    arguments as in `expand_product`."""
    outputs_RH = inner_RI.new_empty(len(inner_RI), weights_EHI.shape[1])
    counts = counts_E.tolist()
    for rows, weight, outputs in zip(inner_RI.split(counts), weights_EHI.mT, outputs_RH.split(counts), strict=True):
        multiply(rows, weight, outputs)
    return F.embedding_bag(position_TK, outputs_RH, mode="sum")


@torch.library.custom_op("moe::collect_product_backward", mutates_args=())
def collect_product_backward(
    grad_TH: Tensor, inner_RI: Tensor, weights_EHI: Tensor, tokens_R: Tensor, position_TK: Tensor, counts_E: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of rows and weights."""
    grad_RI, grad_EHI = torch.empty_like(inner_RI), torch.empty_like(weights_EHI)
    grad_RH, counts = grad_TH.index_select(0, tokens_R), counts_E.tolist()
    parts = (values.split(counts) for values in (grad_RH, inner_RI, grad_RI))
    for grad, rows, grad_rows, weight, grad_weight in zip(*parts, weights_EHI, grad_EHI, strict=True):
        multiply(grad, weight, grad_rows)
        multiply(grad.T, rows, grad_weight)
    return grad_RI, grad_EHI


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _expand_gradients(ctx: Any, grad_RJ: Tensor) -> tuple[Tensor | None, ...]:
    return *expand_product_backward(grad_RJ.contiguous(), *ctx.saved_tensors), None, None, None


def _collect_gradients(ctx: Any, grad_TH: Tensor) -> tuple[Tensor | None, ...]:
    return *collect_product_backward(grad_TH.contiguous(), *ctx.saved_tensors), None, None, None


expand_product.register_autograd(_expand_gradients, setup_context=_save)
collect_product.register_autograd(_collect_gradients, setup_context=_save)


# What compilation needs to know: shapes alone.
@order_by_expert.register_fake
def _(selected_R: Tensor) -> Tensor:
    return torch.empty_like(selected_R)


@expand_product.register_fake
def _(hidden_TH: Tensor, weights_EJH: Tensor, tokens_R: Tensor, position_TK: Tensor, counts_E: Tensor) -> Tensor:
    return hidden_TH.new_empty(len(tokens_R), weights_EJH.shape[1])


@collect_product.register_fake
def _(inner_RI: Tensor, weights_EHI: Tensor, tokens_R: Tensor, position_TK: Tensor, counts_E: Tensor) -> Tensor:
    return inner_RI.new_empty(len(position_TK), weights_EHI.shape[1])


@expand_product_backward.register_fake
@collect_product_backward.register_fake
def _(grad: Tensor, values: Tensor, weights: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(values), torch.empty_like(weights)


ALL_EXPERTS_FUNCTIONS.register(NAME, sorted_experts)
