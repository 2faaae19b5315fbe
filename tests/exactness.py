"""One global batch with padding, its loss and gradients by definition, and the same through any split."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeRMSNorm

from moe.balance.capacity import Capacity
from moe.balance.windows import Layout
from moe.config import RunConfig
from moe.model.build import build_model, routers
from moe.model.objective import Objective
from moe.model.router import follow_positions, record_routing
from moe.settings import parse
from moe.step import Step, Stopwatch, make_optimizer

# B sequences, N tokens of a sequence, E experts

BATCH, LENGTH, VOCABULARY = 12, 9, 300
WEIGHT = 0.3


def run_config(terms: Sequence[dict], bias: dict | None = None, *, gate: str = "softmax", **balance: Any) -> RunConfig:
    """A small run with these balance terms, this selection bias, other fields of balance, and a large z-loss."""
    domain = {"name": "any", "source": {"corpus": "kjv"}}
    sizes = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "num_experts": 6, "top_k": 2, "expert_size": 8}
    sizes |= {"gate": gate}
    raw = {
        "model": sizes,
        "data": {"domains": [domain], "vocab_size": VOCABULARY, "sequence_length": 16, "train_tokens": 32},
        "train": {"batch_sequences": BATCH, "micro_sequences": 2, "warmup_steps": 5, "learning_rate": 0.02},
        "balance": {"terms": list(terms), "bias": bias, "z_loss_weight": 0.1, **balance},
    }
    return parse(RunConfig, raw, "exactness")


def batch(seed: int, *, padded: bool) -> tuple[np.ndarray, np.ndarray]:
    """Tokens int64 [B, N] and the mask of those that count; every sequence keeps at least two."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, LENGTH + 1, BATCH) if padded else np.full(BATCH, LENGTH)
    return rng.integers(0, VOCABULARY, (BATCH, LENGTH)), np.arange(LENGTH) < lengths[:, None]


def fresh_objective(config: RunConfig, dtype: torch.dtype) -> Objective:
    """The model of the run, with router weights large enough that experts differ."""
    model = build_model(
        config.model, vocab_size=VOCABULARY, max_tokens=16, seed=config.seed, forced=config.balance.forced
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gate.weight" in name:
                parameter.mul_(20)
    model = model.to(dtype)
    for parent in list(model.modules()):
        for name, norm in parent.named_children():
            # The stock norm rounds to fp32 inside, also in a model of fp64: a rounding that scales with no gradient.
            if isinstance(norm, Qwen3MoeRMSNorm):
                exact = torch.nn.RMSNorm(norm.weight.shape, eps=norm.variance_epsilon)
                exact.weight = norm.weight
                setattr(parent, name, exact)
    return Objective(model).train()


def whole_batch(
    config: RunConfig, tokens_BN: np.ndarray, mask_BN: np.ndarray, dtype: torch.dtype
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients by definition: one pass, full logits, one window after the other."""
    objective = fresh_objective(config, dtype)
    tokens, mask = torch.from_numpy(tokens_BN), torch.from_numpy(mask_BN)
    if limited := config.balance.capacity:
        assert isinstance(limited.window, int)
        follow_positions(objective.model)
        for router in routers(objective.model):
            router.capacity = Capacity(limited.factor, limited.window)
    # Tokens of the batch in random order, of which one draw after the other takes as many as its window holds.
    shuffled = np.random.default_rng((config.seed, 5, 0)).permutation(np.flatnonzero(mask_BN))
    with record_routing(objective.model) as layers:
        logits_BNV = objective.model(input_ids=tokens, use_cache=False).logits
    nats = F.cross_entropy(logits_BNV[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    loss = nats[mask[:, 1:].flatten()].mean()
    for layer, router in zip(layers, routers(objective.model), strict=True):
        identity_EE = torch.eye(config.model.num_experts, dtype=dtype)
        similarity = (router.weight @ router.weight.T - identity_EE).abs().sum()
        loss = loss + config.balance.similarity_weight * similarity / len(layers)
        logits_BNE, selected_BNK = (v.unflatten(0, tokens.shape) for v in (layer.logits_TE, layer.selected_TK))
        z = logits_BNE[mask].logsumexp(dim=-1).square().mean()
        loss = loss + config.balance.z_loss_weight * z / len(layers)
        for term in config.balance.terms:
            assert isinstance(term.window, int)
            for start in range(0, BATCH, term.window):
                counted = mask[start : start + term.window]
                chosen = selected_BNK[start : start + term.window][counted]
                if term.shuffled:
                    before = int(mask[:start].sum())
                    chosen = selected_BNK.flatten(0, 1)[shuffled[before : before + len(chosen)]]
                chosen = F.one_hot(chosen, config.model.num_experts)
                f_E = chosen.sum(dim=(0, 1)).to(dtype)
                f_E = f_E / f_E.sum()
                logits_TE = logits_BNE[start : start + term.window][counted]
                scores_TE = logits_TE.softmax(dim=-1)
                if config.model.gate == "sigmoid":
                    scores_TE = logits_TE.sigmoid() / logits_TE.sigmoid().sum(dim=-1, keepdim=True)
                # Windows count by their tokens.
                value = config.model.num_experts * (f_E * scores_TE.sum(dim=0)).sum() / mask.sum()
                loss = loss + term.weight * value / len(layers)
    loss.backward()
    return loss.item(), _gradients(objective)


def split_batch(
    config: RunConfig,
    tokens_BN: np.ndarray,
    mask_BN: np.ndarray | None,
    *,
    sizes: tuple[tuple[int, ...], ...],
    dtype: torch.dtype,
    checkpointing: bool = False,
) -> tuple[float, dict[str, torch.Tensor]]:
    """The same through `Step` in this process's share of the split: the loss of all ranks, and the gradients."""
    step = make_step(config, sizes=sizes, dtype=dtype, checkpointing=checkpointing)
    watch = Stopwatch(step.accelerator.device, measure=False)
    meter = step.accumulate(0, tokens_BN, watch, measure=True, record=True, mask_BN=mask_BN)
    assert meter is not None
    metrics = meter.metrics(step.accelerator, step.pool)
    balance = config.balance
    loss = metrics["lm_loss"] + balance.z_loss_weight * float(np.mean(metrics["z_loss"]))
    if balance.similarity_weight:
        loss += balance.similarity_weight * float(np.mean(metrics["similarity"]))
    loss += sum(term.weight * float(np.mean(v)) for term, v in zip(balance.terms, metrics["balance"], strict=True))
    return loss, _gradients(step.objective)


def curve(config: RunConfig, *, sizes: tuple[tuple[int, ...], ...], steps: int) -> list[list[float]]:
    """LM loss, gradient norm and balance losses of each of so many steps in fp64, over four batches in turn."""
    step = make_step(config, sizes=sizes, dtype=torch.float64)
    values = []
    for i in range(steps):
        watch = Stopwatch(step.accelerator.device, measure=False)
        metrics = step(i, batch(i % 4, padded=False)[0], watch, measure=True)
        assert metrics is not None
        values.append([metrics["lm_loss"], metrics["grad_norm"], *np.ravel(metrics["balance"]).tolist()])
    return values


def make_step(
    config: RunConfig,
    *,
    sizes: tuple[tuple[int, ...], ...],
    dtype: torch.dtype,
    checkpointing: bool = False,
    mixed_precision: str = "no",
) -> Step:
    """A step of this process's share of the split, with a fresh model."""
    accelerator = Accelerator(mixed_precision=mixed_precision)
    objective = fresh_objective(config, dtype)
    if checkpointing:
        objective.model.activation_checkpointing_enable({"use_reentrant": False})
    return Step(
        config,
        objective=objective,
        prepared=accelerator.prepare(objective),
        optimizer=make_optimizer(config.train, objective),
        accelerator=accelerator,
        layout=Layout(sizes, accelerator.process_index),
    )


def relative_error(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Largest difference of any parameter's gradient relative to the norm of that gradient."""
    assert found.keys() == expected.keys()
    return max(float((found[name] - expected[name]).norm() / expected[name].norm()) for name in expected)


def _gradients(objective: Objective) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in objective.model.named_parameters() if p.grad is not None}
