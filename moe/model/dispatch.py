"""How do tokens reach their experts? Dropless: sorted by expert once, one slice per expert, gathered back.

Registered as the experts implementation `NAME` of transformers, so the model's own classes stay stock.
"""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

# T tokens, E experts, K choices, R = T·K rows sorted by expert, H hidden units, I expert units, J = 2·I

NAME = "moe_sorted"


def sorted_experts(experts: nn.Module, hidden_TH: Tensor, selected_TK: Tensor, gates_TK: Tensor) -> Tensor:
    """Σ_k gates[t, k] · E_{selected[t, k]}(hidden[t]), as [T, H]; the signature is transformers' experts interface.

    On an accelerator the stock grouped matrix product does it, which needs no row counts on the host.
    """
    if hidden_TH.device.type != "cpu":
        return grouped_mm_experts_forward(experts, hidden_TH, selected_TK, gates_TK)
    parameters = (experts.gate_up_proj.to(hidden_TH.dtype), experts.down_proj.to(hidden_TH.dtype))
    return _SortedExperts.apply(hidden_TH, selected_TK, gates_TK, *parameters)


class _SortedExperts(torch.autograd.Function):
    """The gated MLPs of all experts: one matrix product per expert, written into one buffer.

    Autograd over slices of the stacked weights would add a full-size gradient per expert, and over the permutation a
    scatter; here each expert's gradient is written to its own slice and every permutation is a gather.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_TH: Tensor, selected_TK: Tensor, gates_TK: Tensor, gate_up_EJH: Tensor, down_EHI: Tensor
    ) -> Tensor:
        num_tokens, top_k = selected_TK.shape
        selected_R = selected_TK.flatten()
        order_R = selected_R.argsort(stable=True)
        position_TK = torch.empty_like(order_R).scatter_(0, order_R, torch.arange(len(order_R))).view(num_tokens, top_k)
        slices_E = _slices(torch.bincount(selected_R, minlength=len(down_EHI)).tolist())
        rows_RH = hidden_TH[order_R // top_k]
        gate_up_RJ = rows_RH.new_empty(len(rows_RH), gate_up_EJH.shape[1])
        for expert, rows in enumerate(slices_E):
            torch.mm(rows_RH[rows], gate_up_EJH[expert].T, out=gate_up_RJ[rows])
        gate_RI, up_RI = gate_up_RJ.chunk(2, dim=-1)
        act_RI = F.silu(gate_RI)
        inner_RI = act_RI * up_RI
        outputs_RH = torch.empty_like(rows_RH)
        for expert, rows in enumerate(slices_E):
            torch.mm(inner_RI[rows], down_EHI[expert].T, out=outputs_RH[rows])
        ctx.save_for_backward(
            order_R, position_TK, gates_TK, gate_up_EJH, down_EHI, rows_RH, gate_up_RJ, act_RI, inner_RI, outputs_RH
        )
        ctx.slices_E = slices_E
        return _weighted_sum(outputs_RH, position_TK, gates_TK)

    @staticmethod
    def backward(ctx: Any, grad_TH: Tensor) -> tuple[Tensor | None, ...]:
        (order_R, position_TK, gates_TK, gate_up_EJH, down_EHI, rows_RH, gate_up_RJ, act_RI, inner_RI, outputs_RH) = (
            ctx.saved_tensors
        )
        grad_RH = grad_TH[order_R // gates_TK.shape[1]]
        grad_gates_TK = torch.linalg.vecdot(grad_RH, outputs_RH)[position_TK]
        grad_RH.mul_(gates_TK.flatten()[order_R, None])
        grad_down_EHI, grad_inner_RI = torch.empty_like(down_EHI), torch.empty_like(inner_RI)
        for expert, rows in enumerate(ctx.slices_E):
            torch.mm(grad_RH[rows].T, inner_RI[rows], out=grad_down_EHI[expert])
            torch.mm(grad_RH[rows], down_EHI[expert], out=grad_inner_RI[rows])
        gate_RI, up_RI = gate_up_RJ.chunk(2, dim=-1)
        grad_gate_up_RJ = torch.empty_like(gate_up_RJ)
        grad_gate_RI, grad_up_RI = grad_gate_up_RJ.chunk(2, dim=-1)
        torch.mul(grad_inner_RI, act_RI, out=grad_up_RI)
        grad_gate_RI.copy_(torch.ops.aten.silu_backward(grad_inner_RI.mul_(up_RI), gate_RI))
        grad_gate_up_EJH, grad_rows_RH = torch.empty_like(gate_up_EJH), grad_RH
        for expert, rows in enumerate(ctx.slices_E):
            torch.mm(grad_gate_up_RJ[rows].T, rows_RH[rows], out=grad_gate_up_EJH[expert])
            torch.mm(grad_gate_up_RJ[rows], gate_up_EJH[expert], out=grad_rows_RH[rows])
        grad_hidden_TH = _weighted_sum(grad_rows_RH, position_TK, None)
        return grad_hidden_TH, None, grad_gates_TK, grad_gate_up_EJH, grad_down_EHI


def _slices(rows_per_expert: list[int]) -> list[slice]:
    ends = list(itertools.accumulate(rows_per_expert))
    return [slice(end - rows, end) for end, rows in zip(ends, rows_per_expert, strict=True)]


def _weighted_sum(values_RH: Tensor, position_TK: Tensor, weights_TK: Tensor | None) -> Tensor:
    """Sum over each token's K rows, [T, H]; choice by choice, which never holds [T, K, H]."""
    total_TH = None
    for choice, position_T in enumerate(position_TK.unbind(1)):
        term_TH = values_RH[position_T]
        if weights_TK is not None:
            term_TH.mul_(weights_TK[:, choice, None])
        total_TH = term_TH if total_TH is None else total_TH.add_(term_TH)
    assert total_TH is not None
    return total_TH


ALL_EXPERTS_FUNCTIONS.register(NAME, sorted_experts)
