"""One optimizer step: passes over the global batch, losses, gradients and update."""

import math
import time
from contextlib import nullcontext

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from moe.balance.capacity import Capacity
from moe.balance.controllers import bias_update
from moe.balance.estimators import Pooling, WindowPool
from moe.balance.losses import balance_coefficients, z_loss
from moe.balance.regularisers import similarity_loss
from moe.balance.statistics import Draws, Statistics
from moe.balance.windows import Layout, draw_tokens
from moe.config import BalanceTerm, RunConfig, TrainConfig, check_split, window_sequences
from moe.meter import Meter
from moe.model.build import routers
from moe.model.objective import Objective
from moe.model.router import follow_positions
from moe.shard import whole

# L layers, B sequences of the batch, S sequences of a pass, N tokens of a sequence, W windows, E experts


class NonFiniteError(ArithmeticError):
    """The gradient of optimizer step `step` (from 0) is not finite; weights and state are those before that step."""

    def __init__(self, step: int) -> None:
        super().__init__(f"step {step + 1}: the gradient is not finite")
        self.step = step


def split_batch(config: TrainConfig, *, num_ranks: int, rank: int) -> Layout:
    """This rank's share of the global batch; raises `ConfigError` where some rank would have none."""
    check_split(config, num_ranks)
    return Layout.split(config.batch_sequences, pass_sequences=config.pass_sequences, num_ranks=num_ranks, rank=rank)


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


def pooling(term: BalanceTerm, train: TrainConfig) -> Pooling:
    """Which counts the term wants."""
    window = window_sequences(term, train)
    # A draw of the whole batch is the batch.
    shuffled = term.shuffled and window < train.batch_sequences
    return Pooling(window, term.estimator, term.half_life or 0.0, shuffled)


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
    """Calls the prepared (perhaps distributed) objective on this rank's share of a global batch and updates it.

    A step whose gradient is not finite changes nothing. `skip_nonfinite` counts such steps and goes on; else
    `NonFiniteError` is raised. On an accelerator that waits for the next measured step, so that no other step waits for
    the device, and no step in between changes anything either.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        objective: Objective,
        prepared: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        layout: Layout,
        skip_nonfinite: bool = False,
    ) -> None:
        if isinstance(prepared, DistributedDataParallel):
            # Every rank computes its buffers alike: nothing is to be sent before a forward pass.
            prepared.forward_sync_buffers = False
        self.config = config
        self.objective = objective
        self.prepared = prepared
        self.optimizer = optimizer
        self.accelerator = accelerator
        self.layout = layout
        self.skip_nonfinite = skip_nonfinite
        self.terms = config.balance.terms
        if config.balance.bias:
            for router in routers(objective.model):
                if router.bias is None:
                    router.use_bias()
        self.capacity: Capacity | None = None
        if limited := config.balance.capacity:
            self.capacity = Capacity(limited.factor, window_sequences(limited, config.train))
            follow_positions(objective.model)
            for router in routers(objective.model):
                router.capacity = self.capacity
        self.pool = WindowPool([pooling(term, config.train) for term in self.terms], layout, self._sum_over_ranks)
        self.skipped = torch.zeros((), device=accelerator.device)
        """Steps of the run that were skipped, a tensor that no step waits for."""
        # The CPU never runs ahead: looking at a value costs nothing there.
        self.waits_for_device = accelerator.device.type == "cpu"
        self._nonfinite = self._stuck = torch.zeros((), device=accelerator.device)

    def __call__(
        self, step: int, tokens_BN: np.ndarray, stopwatch: Stopwatch, *, measure: bool, record: bool = False
    ) -> dict | None:
        """One update from the whole global batch int64 [B, N]; returns its metrics if asked to `measure`.

        The metrics are those of the batch before the update; they are None for a skipped step, and so is the balance
        loss of a term that does not act in this step. With `record` the counts of every sequence [L, B, E] are
        `pool.totals(1)` after it. Raises `NonFiniteError`.
        """
        meter = self.accumulate(step, tokens_BN, stopwatch, measure=measure, record=record)
        rate = learning_rate(self.config.train, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        norm = self.accelerator.clip_grad_norm_(self.prepared.parameters(), self.config.train.gradient_clip)
        norm = whole(torch.as_tensor(norm))
        nonfinite = 1 - norm.isfinite().float()
        if self.skip_nonfinite:
            self._nonfinite = nonfinite
            self.skipped = self.skipped + nonfinite
        else:
            self._nonfinite = torch.maximum(self._nonfinite, nonfinite)
            self._stuck = self._stuck + self._nonfinite
        # The fused optimizer looks at this flag on the device, as it does for a gradient scaler.
        setattr(getattr(self.optimizer, "optimizer", self.optimizer), "found_inf", self._nonfinite)  # noqa: B010
        self.optimizer.step()
        self._update_balance()
        if (measure or self.waits_for_device) and not self.skip_nonfinite and self._nonfinite > 0:
            # From the first one on no step has changed anything.
            raise NonFiniteError(step + 1 - int(self._stuck))
        self.optimizer.zero_grad()
        stopwatch.lap("optimizer")
        if meter is None or self._nonfinite > 0:
            return None
        metrics = meter.metrics(self.accelerator, self.pool)
        pairs = zip(self.terms, metrics["balance"], strict=True)
        metrics["balance"] = [value_L if is_active(term, step) else None for term, value_L in pairs]
        return {"learning_rate": rate, "grad_norm": float(norm), **metrics}

    def accumulate(
        self,
        step: int,
        tokens_BN: np.ndarray,
        stopwatch: Stopwatch,
        *,
        measure: bool = False,
        record: bool = False,
        mask_BN: np.ndarray | None = None,
    ) -> Meter | None:
        """Add the gradient of the whole global batch to `grad` of the parameters, averaged over the ranks.

        `mask_BN`: true where a token counts, false where it is padding, which stands at the ends of sequences.
        """
        settings, num_ranks = self.config, self.layout.num_ranks
        counted_BN = np.ones(tokens_BN.shape, dtype=bool) if mask_BN is None else mask_BN
        tokens_per_rank = int(counted_BN.sum()) / num_ranks
        targets_per_rank = int(counted_BN[:, 1:].sum()) / num_ranks
        parts_BN = [tokens_BN, mask_BN]
        if any(pooling.shuffled for pooling in self.pool.poolings):
            # The sample order of the seed has the streams below 5.
            parts_BN.append(draw_tokens(counted_BN, np.random.default_rng((settings.seed, 5, step))))
        shares = [self._shares(i, *parts_BN) for i in range(self.layout.num_passes)]
        bias = settings.balance.bias
        totals = [settings.train.micro_sequences] * measure + [1] * record
        totals += [self.capacity.window] if measure and self.capacity else []
        self.pool.begin([*totals, window_sequences(bias, settings.train)] if bias else totals)
        if self.pool.needs_counting():
            for i, share in enumerate(shares):
                # In the arithmetic of the forward pass, which may choose other experts.
                with self.accelerator.autocast():
                    counts = self.objective.count(*share)
                self.pool.count(i, *counts)
            self.pool.finish_counting()
        stopwatch.lap("sync")
        meter = Meter(settings.train.micro_sequences, self.capacity) if measure else None
        for i, share in enumerate(shares):
            last = i == self.layout.num_passes - 1
            # A divided training keeps no whole gradients: it adds up the parts of every pass.
            alone = not last and not isinstance(self.prepared, FSDPModule)
            with self.accelerator.no_sync(self.prepared) if alone else nullcontext():
                with self.accelerator.autocast():
                    nats, statistics = self.prepared(*share)
                statistics = Statistics(*statistics)
                stopwatch.lap("forward")
                counts = self.pool.counts(i, statistics.counts_LSE, statistics.drawn_LDE)
                stopwatch.lap("sync")
                lm_loss = nats / targets_per_rank
                z_L = z_loss(statistics, tokens_per_rank=tokens_per_rank)
                loss = lm_loss + settings.balance.z_loss_weight * z_L.mean()
                terms_TLSE = self._coefficients(i, counts, tokens_per_rank)
                pairs = zip(self.terms, terms_TLSE, strict=True)
                active = [term.weight * part for term, part in pairs if term.weight and is_active(term, step)]
                if active:
                    coefficients_LSE = torch.stack(active).sum(dim=0) / len(z_L)
                    # One product for all terms, since each is linear in the score sums.
                    loss = loss + (coefficients_LSE.to(statistics.scores_LSE.dtype) * statistics.scores_LSE).sum()
                if last and settings.balance.similarity_weight:
                    similarity_L = similarity_loss(
                        torch.stack([whole(r.weight) for r in routers(self.objective.model)])
                    )
                    loss = loss + settings.balance.similarity_weight * similarity_L.mean()
                    if meter is not None:
                        meter.similarity_L = similarity_L.detach()
                stopwatch.lap("forward")
                self.accelerator.backward(loss)
                stopwatch.lap("backward")
            if meter is not None:
                scores_LSE = statistics.scores_LSE.detach()
                meter.add(lm_loss, z_L, [(part * scores_LSE).sum(dim=(1, 2)) for part in terms_TLSE])
        return meter

    @property
    def state(self) -> dict[str, Tensor]:
        """What is carried from step to step beside parameters and optimizer: past counts, biases, skipped steps."""
        past = {f"past.{i}": counts_LE for i, counts_LE in self.pool.past.items()}
        biases = [router.bias for router in routers(self.objective.model)]
        present = {f"bias.{i}": bias_E for i, bias_E in enumerate(biases) if bias_E is not None}
        return {"skipped": self.skipped, **past, **present}

    @state.setter
    def state(self, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            kind, _, index = name.partition(".")
            value = value.to(self.accelerator.device)
            if kind == "skipped":
                self.skipped = value
            elif kind == "past":
                self.pool.past[int(index)] = value
            else:
                routers(self.objective.model)[int(index)].bias = value

    def _update_balance(self) -> None:
        """Selection biases and past counts after the step, unless it changes nothing."""
        self.pool.end(forget=self._nonfinite > 0)
        if bias := self.config.balance.bias:
            counts_LWE = self.pool.totals(window_sequences(bias, self.config.train))
            change_LE = bias_update(counts_LWE, rate=bias.rate) * (1 - self._nonfinite)
            for router, change_E in zip(routers(self.objective.model), change_LE, strict=True):
                assert router.bias is not None
                router.bias += change_E

    def _shares(
        self, i: int, tokens_BN: np.ndarray, mask_BN: np.ndarray | None, draws_BN: np.ndarray | None = None
    ) -> tuple[Tensor, Tensor | None, Draws | None]:
        """This rank's part of pass `i`, as `Objective` takes it."""
        mask_SN = None if mask_BN is None else self._share(mask_BN, i)
        draws = None if draws_BN is None else Draws(self._share(draws_BN, i), len(draws_BN))
        return self._share(tokens_BN, i), mask_SN, draws

    def _share(self, values_BN: np.ndarray, pass_index: int) -> Tensor:
        positions = self.layout.positions(pass_index)
        return torch.from_numpy(values_BN[positions.start : positions.stop]).to(self.accelerator.device)

    def _coefficients(self, i: int, counts: list[Tensor], tokens_per_rank: float) -> list[Tensor]:
        """Per term, what each score sum of this pass counts in its loss, [L, S, E]."""
        return [
            balance_coefficients(counts_LWE, tokens_per_rank=tokens_per_rank)[
                :, self.layout.windows_of(i, pooling.window)
            ]
            for pooling, counts_LWE in zip(self.pool.poolings, counts, strict=True)
        ]

    def _sum_over_ranks(self, counts: Tensor) -> Tensor:
        return self.accelerator.reduce(counts, reduction="sum")
