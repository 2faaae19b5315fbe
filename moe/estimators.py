"""Which estimator of f should one use under gradient accumulation? Measured while a run trains, and afterwards timed.

The run is trained with `exact` over the global batch. Every so many steps, before the update, the gradient of the
balance loss is taken with the f that each cheaper estimator would have used, at several numbers of passes, and compared
with that of `exact`. After training, optimizer steps with each estimator are timed side by side.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from moe import provenance
from moe.balance.estimators import Pooling, WindowPool
from moe.balance.losses import load_balancing_loss
from moe.balance.statistics import Statistics
from moe.balance.windows import Layout
from moe.checkpoint import load_checkpoint, save_checkpoint
from moe.config import BalanceConfig, BalanceTerm, RunConfig
from moe.data.order import TrainingBatches
from moe.model.build import build_model, routers
from moe.model.objective import Objective
from moe.model.products import use_fastest_products
from moe.progress import Progress
from moe.scale import EstimatorsConfig, HardwareConfig, check_estimators
from moe.settings import read_json
from moe.speed import keep_memory
from moe.step import Step, Stopwatch, make_optimizer, split_batch

# L layers, S sequences, M measured steps, C candidates

TIMED = ("exact", "prefix", "previous")  # `ema` does what `previous` does


class Candidate(NamedTuple):
    """One way to know f, and the number of passes that the batch is split into."""

    label: str
    passes: int
    pooling: Pooling
    term: int = 0
    """Index of the term of the run that carries its past."""


def measure(
    *,
    run_folder: Path,
    data_folder: Path,
    state_folder: Path,
    settings: EstimatorsConfig,
    hardware: HardwareConfig,
    out: Path,
) -> None:
    """Train the run of `run_folder/config.json` under observation and write gradient errors and step times to `out`.

    `gradients`: cosine and relative error |g - g_exact| / |g_exact| of the gradient of the balance loss, the mean over
    layers, with respect to each layer's router weight. `passes` is null where f does not depend on it.
    `step_seconds`: seconds of optimizer steps; the i-th of all entries were measured next to each other.
    """
    torch.set_num_threads(hardware.threads)
    use_fastest_products()
    run = read_json(RunConfig, run_folder / "config.json")
    check_estimators(run.train, settings)
    batch = run.train.batch_sequences
    passes = [number for number in settings.passes if batch % number == 0]
    config = _observed(run, settings)
    candidates = list(_candidates(config, passes))
    accelerator = Accelerator(mixed_precision="bf16" if run.train.precision == "bf16" else "no")
    model = build_model(run.model, vocab_size=run.data.vocab_size, max_tokens=run.data.sequence_length, seed=run.seed)
    objective = Objective(model.to(accelerator.device)).train()
    optimizer = make_optimizer(run.train, objective)
    first_step, state = load_checkpoint(state_folder, objective, optimizer)
    errors_MLC2 = list(state.pop("errors", torch.zeros(0)))

    def make_step(config: RunConfig) -> Step:
        layout = split_batch(config.train, num_ranks=1, rank=0)
        return Step(
            config, objective=objective, prepared=objective, optimizer=optimizer, accelerator=accelerator, layout=layout
        )

    step_once = make_step(config)
    step_once.state = state
    batches = TrainingBatches(run, data_folder)
    progress = Progress(
        f"estimators on {run_folder.name}", run.train.steps, first_step, batch * run.data.sequence_length
    )
    keep_memory()
    for step in range(first_step, run.train.steps):
        tokens_BN = batches.tokens(step)
        observed = (step + 1) % settings.every == 0
        if observed:
            tokens = torch.from_numpy(tokens_BN).to(accelerator.device)
            errors_MLC2.append(_errors(objective, tokens, candidates, step_once.pool.past))
        step_once(step, tokens_BN, Stopwatch(accelerator.device, measure=False), measure=False)
        if observed:
            carried = step_once.state | {"errors": torch.stack(errors_MLC2)}
            save_checkpoint(state_folder, step + 1, objective, optimizer, carried)
        progress.advance(step + 1, None)
    progress.close()

    device = provenance.device_name(accelerator.device)
    record = provenance.run_stamp("moe-estimators/1", run, run=run_folder.name, device=device)
    record |= {"threads": hardware.threads, "batch_sequences": batch, "steps": run.train.steps}
    gradients = [
        {"step": settings.every * (m + 1), "estimator": candidate.label}
        | {"passes": None if candidate.pooling.looks_back else candidate.passes, "layer": layer}
        | {"cosine": float(cosine), "relative_error": float(error)}
        for m, errors_LC2 in enumerate(errors_MLC2)
        for layer, errors_C2 in enumerate(errors_LC2)
        for candidate, (cosine, error) in zip(candidates[1:], errors_C2[1:], strict=True)
    ]
    steps = {(name, number): make_step(_timed(run, name, number)) for name in TIMED for number in (1, *passes)}
    times: dict[tuple[str, int], list[float]] = {key: [] for key in steps}
    for repeat in range(settings.repeats + 1):
        tokens_BN = batches.tokens(run.train.steps + repeat)
        for key, timed_step in steps.items():
            watch = Stopwatch(accelerator.device, measure=True)
            timed_step(run.train.steps - 1, tokens_BN, watch, measure=False)
            times[key] += [sum(watch.seconds.values())] if repeat else []  # the first warms up
    seconds = [{"estimator": name, "passes": number, "seconds": value} for (name, number), value in times.items()]
    provenance.write_json(out, record | {"gradients": gradients, "step_seconds": seconds})
    provenance.remove_folder(state_folder)


def _observed(run: RunConfig, settings: EstimatorsConfig) -> RunConfig:
    """The run with `exact` balance over the global batch, and terms of weight 0 that carry the past of the others."""
    weight = max((term.weight for term in run.balance.terms), default=0.0)
    past = [BalanceTerm(weight=0, estimator="previous")]
    past += [BalanceTerm(weight=0, estimator="ema", half_life=half_life) for half_life in settings.half_lives]
    return run.model_copy(update={"balance": _balance(run, BalanceTerm(weight=weight), *past)})


def _timed(run: RunConfig, estimator: str, passes: int) -> RunConfig:
    """The run with one term of this estimator, in so many passes."""
    term = BalanceTerm.model_validate({"estimator": estimator})
    train = run.train.model_copy(update={"sequences_per_pass": run.train.batch_sequences // passes})
    return run.model_copy(update={"train": train, "balance": _balance(run, term)})


def _balance(run: RunConfig, *terms: BalanceTerm) -> BalanceConfig:
    others = {"bias": None, "forced": False, "capacity": None}
    return run.balance.model_copy(update={"terms": terms, **others})


def _candidates(config: RunConfig, passes: list[int]) -> Iterator[Candidate]:
    """`exact` first, which the others are compared with."""
    batch = config.train.batch_sequences
    yield Candidate("exact", 1, Pooling(batch))
    for number in passes:
        yield Candidate("pass", number, Pooling(batch // number))
        yield Candidate("prefix", number, Pooling(batch, "prefix"))
    for i, term in enumerate(config.balance.terms[1:], start=1):
        label = "previous" if term.half_life is None else f"ema {term.half_life:g}"
        yield Candidate(label, 1, Pooling(batch, term.estimator, term.half_life or 0.0), term=i)


def _errors(objective: Objective, tokens: Tensor, candidates: list[Candidate], past: dict[int, Tensor]) -> Tensor:
    """Cosine and relative error of every candidate's gradient, fp64 [L, C, 2]."""
    statistics = objective.route(tokens)
    weights_L = [router.weight for router in routers(objective.model)]
    gradients_CL = []
    for candidate in candidates:
        loss_L = _loss(candidate, statistics, {0: past[candidate.term]} if candidate.term in past else {})
        gradients = torch.autograd.grad(loss_L.mean(), weights_L, retain_graph=True)
        gradients_CL.append(torch.stack([gradient.double().flatten() for gradient in gradients]))
    exact_LX, gradient_LCX = gradients_CL[0], torch.stack(gradients_CL, dim=1)
    norm_L1 = exact_LX.norm(dim=-1, keepdim=True)
    cosine_LC = (gradient_LCX * exact_LX[:, None]).sum(dim=-1) / (norm_L1 * gradient_LCX.norm(dim=-1))
    return torch.stack([cosine_LC, (gradient_LCX - exact_LX[:, None]).norm(dim=-1) / norm_L1], dim=-1)


def _loss(candidate: Candidate, statistics: Statistics, past: dict[int, Tensor]) -> Tensor:
    """Balance loss of the whole batch per layer, [L], with the f that the candidate knows in each pass."""
    num_sequences = statistics.counts_LSE.shape[1]
    layout = Layout.split(num_sequences, pass_sequences=num_sequences // candidate.passes)
    window_pool = WindowPool([candidate.pooling], layout, lambda counts: counts)
    window_pool.past = past
    window_pool.begin()
    losses = []
    for i in range(layout.num_passes):
        share = slice(layout.positions(i).start, layout.positions(i).stop)
        (counts_LWE,) = window_pool.counts(i, statistics.counts_LSE[:, share])
        scores_LWE = layout.pool(statistics.scores_LSE[:, share], i, candidate.pooling.window)
        tokens = float(statistics.tokens_S.sum())
        losses.append(load_balancing_loss(counts_LWE, scores_LWE, tokens_per_rank=tokens))
    return torch.stack(losses).sum(dim=0)
