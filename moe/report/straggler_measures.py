"""Step time under expert parallelism, estimated from the recorded choices of one experiment: tidy frames.

Measured are the choices alone: a recorded sequence stands for one of `LAYER.sequence_length` tokens, and times come
from the model of `moe/analysis/stragglers.py`.
"""

import math
from functools import lru_cache

import numpy as np
import pandas as pd

from moe.analysis.straggler_check import fit
from moe.analysis.stragglers import HARDWARE, LayerSize, StepTime, balanced, count_sync, step_time
from moe.report import measures
from moe.report.record_types import ExpertParallel
from moe.report.records import Records, Run

# S steps, L layers, B sequences of the batch, M micro-batches, E experts

LAYER = LayerSize(hidden_size=2048, expert_size=1024, top_k=1)
"""Widths of the layer whose time is estimated, ours: those of the reference arm, enlarged. Experts, top-K, shared
experts, and how much wider an expert is than those of the reference, are each run's own."""
PRESET = next(iter(HARDWARE))
"""What the figure is drawn for."""
DEVICES = tuple(2**i for i in range(10))
CAPACITIES = (1.0, 1.25, 1.5, 2.0)
RANDOM = "random choices"
"""No arm: independent uniform choices, as many as were recorded; what chance alone costs."""
RANKS = (1, 8, 64, 512, 4096)
PAPER_COUNTS = (48, 160)
"""Layers and experts: the paper's larger models have so many experts, the depth is ours."""


@lru_cache(maxsize=1)
def straggler_frame(records: Records, experiment: str) -> pd.DataFrame:
    """One row per run, preset, number of devices and capacity factor (0: dropless), and of random choices.

    `ratio` is the step time relative to perfect balance, `layer_ratio` that of experts and all-to-all alone; the parts
    are in milliseconds per layer. Empty where no run of the arms that figures show has recorded its choices.
    """
    rows, reference = [], records.reference(experiment)
    apart, expert_size = all_apart(records, experiment), reference_run(records, experiment).config.model.expert_size
    for arm, seed, run in records.runs_of(experiment, measures.shown_arms(records, experiment)):
        counts_SLBE = late_counts(run)
        if counts_SLBE is None:
            continue
        model = run.config.model
        layer = LayerSize(
            hidden_size=LAYER.hidden_size,
            expert_size=LAYER.expert_size * model.expert_size // expert_size,
            top_k=model.top_k,
            num_shared_experts=model.num_shared_experts,
        )
        rows += _rows(arm, seed, run, counts_SLBE, layer, apart)
        if arm == reference:
            shape, rng = counts_SLBE.shape, np.random.default_rng(seed)
            selections = run.config.data.sequence_length * model.top_k
            drawn = rng.multinomial(selections, np.full(shape[-1], 1 / shape[-1]), size=shape[:-1])
            rows += _rows(RANDOM, seed, run, drawn, layer, apart)
    return pd.DataFrame(rows)


def late_counts(run: Run) -> np.ndarray | None:
    """Selections [S, L, B, E] in the recorded steps of the second half, or None where none was recorded."""
    if run.counts is None:
        return None
    late = [i for i, step in enumerate(run.counts.steps) if 2 * step >= run.train.steps]
    return run.counts.counts_SLBE[late]


def reference_run(records: Records, experiment: str) -> Run:
    """A run of the arm that others are compared with."""
    return records.run(experiment, records.reference(experiment))


def all_apart(records: Records, experiment: str) -> int:
    """The fewest devices over which the experts of the reference arm are spread as far as they ever are."""
    num_experts = reference_run(records, experiment).config.model.num_experts
    return max(math.gcd(devices, num_experts) for devices in DEVICES)


def _rows(
    arm: str, seed: int, run: Run, counts_SLBE: np.ndarray, layer: LayerSize, apart: int
) -> list[dict[str, object]]:
    num_steps, num_layers, batch, num_experts = counts_SLBE.shape
    micro = run.config.train.micro_sequences
    counts_SLME = counts_SLBE.reshape(num_steps, num_layers, batch // micro, micro, num_experts).sum(axis=3)
    counts_SMLE = counts_SLME.swapaxes(1, 2) * (LAYER.sequence_length / run.config.data.sequence_length)
    settings = [(PRESET, devices, None) for devices in DEVICES]
    settings += [(PRESET, apart, factor) for factor in CAPACITIES]
    settings += [(preset, apart, None) for preset in HARDWARE if preset != PRESET]
    rows = []
    for preset, devices, factor in settings:
        how = {"devices": devices, "layer": layer, "hardware": HARDWARE[preset], "capacity_factor": factor}
        times = [step_time(counts_MLE, **how, seed=step) for step, counts_MLE in enumerate(counts_SMLE)]
        mean, even = StepTime(*np.mean(times, axis=0)), step_time(balanced(counts_SMLE[0]), **how)
        parts = {f"{part}_ms": 1e3 * value / num_layers for part, value in mean._asdict().items() if part != "dropped"}
        moved, evenly = (time.experts + time.all_to_all for time in (mean, even))
        rows.append(
            {
                "arm": arm,
                "seed": seed,
                "preset": preset,
                "devices": devices,
                "capacity_factor": factor or 0.0,
                "ratio": mean.seconds / even.seconds,
                "layer_ratio": moved / evenly,
                "step_ms": 1e3 * mean.seconds / num_layers,
                **parts,
                "dropped": mean.dropped,
            }
        )
    return rows


def sync_frame(records: Records) -> pd.DataFrame:
    """One row per size of the counts, preset and number of ranks: bytes and microseconds of one summation of the
    counts, and its share of the time that a micro-batch computes."""
    run = next(iter(records.runs.values()))
    model, micro = run.config.model, run.config.train.micro_sequences
    sizes = {"this scale": (model.num_layers, model.num_experts), "paper's experts": PAPER_COUNTS}
    flops = LAYER.dense_flops + model.top_k * LAYER.expert_flops
    rows = []
    for name, (num_layers, num_experts) in sizes.items():
        for preset, hardware in HARDWARE.items():
            compute = 3 * num_layers * micro * LAYER.sequence_length * flops / hardware.flops
            for ranks in RANKS:
                cost = count_sync(num_layers=num_layers, num_experts=num_experts, ranks=ranks, hardware=hardware)
                row = {"counts": name, "layers": num_layers, "experts": num_experts, "preset": preset, "ranks": ranks}
                row |= {"window": ranks * micro, "payload_bytes": cost.payload_bytes, "sent_bytes": cost.sent_bytes}
                row |= {"ring_us": 1e6 * cost.ring_seconds, "tree_us": 1e6 * cost.tree_seconds}
                rows.append(row | {"share": min(cost.ring_seconds, cost.tree_seconds) / compute})
    return pd.DataFrame(rows)


def check_frame(measured: ExpertParallel) -> pd.DataFrame:
    """One row per real layer of two processes: its time and the predicted one, in milliseconds and relative to the
    balanced layer of as many tokens, and the errors of both predictions."""
    layer = LayerSize(measured.hidden_size, measured.expert_size, measured.top_k, value_bytes=measured.value_bytes)
    machine = fit(measured.transfer, measured.product, measured.sort, layer)
    frame = pd.DataFrame(
        {
            "pattern": item.pattern,
            "tokens": item.tokens,
            "measured_ms": 1e3 * item.seconds,
            "predicted_ms": 1e3 * machine.forward_seconds(item.counts, layer),
        }
        for item in measured.layers
    )
    frame["error"] = frame["predicted_ms"] / frame["measured_ms"] - 1
    first = frame.groupby("tokens")[["measured_ms", "predicted_ms"]].transform("first")
    frame["measured_ratio"], frame["predicted_ratio"] = (
        frame[f"{kind}_ms"] / first[f"{kind}_ms"] for kind in ("measured", "predicted")
    )
    frame["ratio_error"] = frame["predicted_ratio"] / frame["measured_ratio"] - 1
    return frame


def check_sentence(records: Records) -> str:
    """How far the model is from a real layer on the machine of the records, for captions."""
    measured = records.latency.expert_parallel if records.latency else None
    if measured is None:
        return "The model was not checked against a real layer: no expert-parallel layer was timed."
    frame = check_frame(measured)
    skewed = frame.loc[frame["pattern"] != frame["pattern"].iloc[0], "ratio_error"].abs()
    error = frame["error"].abs()
    return (
        f"Checked on {len(frame)} real layers of two processes on the records' machine, with latency, bandwidth and "
        f"speed fitted to their parts alone: the predicted time is off by {error.median():.0%} at the median and "
        f"{error.max():.0%} at most, the time relative to balance by {skewed.median():.0%} and {skewed.max():.0%}. "
        "Other devices and larger groups are extrapolated."
    ).replace("%", " %")
