"""One optimizer step: passes over the global batch, losses, gradients, update, and the metrics of that batch."""

import math
import time
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from moe.balance.losses import load_balancing_loss, z_loss
from moe.balance.metrics import dead_experts, load_entropy, max_violation
from moe.balance.statistics import Statistics
from moe.balance.windows import Layout, WindowPool, pool
from moe.config import BalanceTerm, RunConfig, TrainConfig, window_sequences
from moe.model.objective import Objective
from moe.settings import ConfigError

# L layers, S sequences of a pass, W windows, E experts


def split_batch(config: TrainConfig, *, num_ranks: int, rank: int) -> Layout:
    """This rank's share of the global batch; raises `ConfigError` where it does not split evenly."""
    if config.batch_sequences % (config.pass_sequences * num_ranks):
        raise ConfigError(
            f"train.batch_sequences ({config.batch_sequences}) must be a multiple of {num_ranks} processes x "
            f"train.sequences_per_pass ({config.pass_sequences}): change hardware.processes or one of the two"
        )
    return Layout(config.batch_sequences, config.pass_sequences, num_ranks, rank)


def make_optimizer(config: TrainConfig, module: torch.nn.Module) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices alone."""
    matrices = [p for p in module.parameters() if p.ndim >= 2]
    vectors = [p for p in module.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up over `warmup_steps`, then a cosine that ends at `final_learning_rate` in the last step."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - 1 - config.warmup_steps)
    half_cosine = (1 + math.cos(math.pi * done)) / 2
    return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * half_cosine


def is_active(term: BalanceTerm, step: int) -> bool:
    """Whether the term is part of the objective in this optimizer step."""
    return term.start_step <= step and (term.end_step is None or step < term.end_step)


class Stopwatch:
    """Seconds of the parts of a step; it waits for the accelerator only when `measure` asks for a split."""

    def __init__(self, device: torch.device, *, measure: bool) -> None:
        self.seconds: dict[str, float] = {"data": 0.0, "forward": 0.0, "sync": 0.0, "backward": 0.0, "optimizer": 0.0}
        self._wait = measure and device.type == "cuda"
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """Count the time since the last lap as `part`."""
        if self._wait:
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[part] += now - self._last
        self._last = now


class Step:
    """Calls the prepared (perhaps distributed) objective on this rank's share of a global batch and updates it."""

    def __init__(
        self,
        config: RunConfig,
        *,
        objective: Objective,
        prepared: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        layout: Layout,
    ) -> None:
        self.config = config
        self.objective = objective
        self.prepared = prepared
        self.optimizer = optimizer
        self.accelerator = accelerator
        self.layout = layout
        self.terms = config.balance.terms
        self.windows = [(window_sequences(term, config.train), term.estimator) for term in self.terms]

    def __call__(self, step: int, tokens_BN: np.ndarray, stopwatch: Stopwatch, *, measure: bool) -> dict | None:
        """One update from the whole global batch int64 [B, N]; returns its metrics if asked to `measure`.

        Raises `ConfigError` where the loss or the gradient is found not to be finite, before anything is saved.
        """
        shares = [self._share(tokens_BN, i) for i in range(self.layout.num_passes)]
        window_pool = WindowPool(self.windows, self.layout, self._sum_over_ranks)
        if window_pool.needs_counting():
            for i, tokens_SN in enumerate(shares):
                window_pool.count(i, self.objective.count(tokens_SN).counts_LSE)
            window_pool.finish()
        stopwatch.lap("sync")
        meter = _Meter(self.config.train.micro_sequences) if measure else None
        for i, tokens_SN in enumerate(shares):
            last = i == self.layout.num_passes - 1
            with self.accelerator.no_sync(self.prepared) if not last else nullcontext():
                lm_loss, statistics = self.prepared(tokens_SN)
                statistics = Statistics(*statistics)
                stopwatch.lap("forward")
                counts = window_pool.counts(i, statistics.counts_LSE)
                stopwatch.lap("sync")
                balance_TL, z_L = self._auxiliary(i, statistics, counts)
                weights_T = [term.weight * is_active(term, step) for term in self.terms]
                loss = lm_loss + self.config.balance.z_loss_weight * z_L.mean()
                for weight, value_L in zip(weights_T, balance_TL, strict=True):
                    loss = loss + weight * value_L.mean()
                stopwatch.lap("forward")
                self.accelerator.backward(loss / self.layout.num_passes)
                stopwatch.lap("backward")
            if meter is not None:
                meter.add(lm_loss, z_L, balance_TL, statistics.counts_LSE)
        rate = learning_rate(self.config.train, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        grad_norm = self.accelerator.clip_grad_norm_(self.prepared.parameters(), self.config.train.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        stopwatch.lap("optimizer")
        if meter is None:
            return None
        record = {"learning_rate": rate, "grad_norm": float(grad_norm), **meter.metrics(self.accelerator)}
        if not math.isfinite(record["lm_loss"]) or not math.isfinite(record["grad_norm"]):
            raise ConfigError(
                f"step {step + 1}: LM loss {record['lm_loss']} or gradient norm {record['grad_norm']} is not finite; "
                "lower train.learning_rate or the weights of balance.terms"
            )
        return record

    def _share(self, tokens_BN: np.ndarray, pass_index: int) -> Tensor:
        positions = self.layout.positions(pass_index)
        return torch.from_numpy(tokens_BN[positions.start : positions.stop]).to(self.accelerator.device)

    def _auxiliary(self, i: int, statistics: Statistics, counts: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Per term the loss per layer [L], and the z-loss per layer [L]."""
        positions, tokens = self.layout.positions(i), statistics.tokens_S.sum()
        losses = []
        for (window, _), counts_LWE in zip(self.windows, counts, strict=True):
            scores_LWE = pool(statistics.scores_LSE, positions, window, self.layout.windows(i, window))
            losses.append(load_balancing_loss(counts_LWE, scores_LWE, tokens))
        return losses, z_loss(statistics)

    def _sum_over_ranks(self, counts: Tensor) -> Tensor:
        return self.accelerator.reduce(counts, reduction="sum")


class _Meter:
    """Metrics of one global batch, summed up over its passes and then over the ranks."""

    def __init__(self, micro_sequences: int) -> None:
        self.micro_sequences = micro_sequences
        self.values: list[Tensor] = []
        self.counts: list[Tensor] = []

    def add(self, lm_loss: Tensor, z_L: Tensor, balance_TL: list[Tensor], counts_LSE: Tensor) -> None:
        micro_LME = counts_LSE.unflatten(1, (-1, self.micro_sequences)).sum(dim=2)
        rows = [lm_loss.detach().expand_as(z_L), z_L.detach(), max_violation(micro_LME).mean(dim=1)]
        self.values.append(torch.stack([row.double() for row in (*rows, *(b.detach() for b in balance_TL))]))
        self.counts.append(counts_LSE.sum(dim=1))

    def metrics(self, accelerator: Accelerator) -> dict[str, Any]:
        values = accelerator.reduce(torch.stack(self.values).mean(dim=0), reduction="mean")
        lm_loss, z, max_vio_micro, *balance = values.tolist()
        counts_LE = accelerator.reduce(torch.stack(self.counts).sum(dim=0), reduction="sum")
        return {
            "lm_loss": lm_loss[0],
            "z_loss": z,
            "balance": balance,
            "max_vio_global": max_violation(counts_LE).tolist(),
            "max_vio_micro": max_vio_micro,
            "load_entropy": load_entropy(counts_LE).tolist(),
            "dead_experts": dead_experts(counts_LE).tolist(),
        }
