"""A records folder in the formats of the real stages, with plausible values and no training behind it."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moe.config import DataConfig, RunConfig
from moe.provenance import stamp, write_json
from moe.scale import Experiment, LatencyConfig
from moe.settings import digest
from moe.sweep import expand

DOMAINS = ("zh-law", "arxiv", "encyclopedia", "news", "dialogue", "python", "biomedical", "archaic")
LAYERS, EXPERTS, TOP_K, TOKENS = 3, 16, 2, 32_768
TERM = {"weight": 0.01}
ARMS = {
    "1 sequence": {"balance.terms": [TERM | {"window": 1}]},
    "4 sequences": {"balance.terms": [TERM | {"window": 4}]},
    "global": {"balance.terms": [TERM | {"window": "global"}]},
    "hybrid": {"balance.terms": [TERM | {"window": "global"}, {"weight": 1e-4, "window": 1}]},
}
GAIN = {"1 sequence": 0.0, "4 sequences": 0.018, "global": 0.041, "hybrid": 0.038}
FOCUS = {"1 sequence": 0.5, "4 sequences": 1.0, "global": 2.0, "hybrid": 1.8}
WINDOW_EXPERIMENT = Experiment(
    title="Balance window",
    question="Does pooling the choices of more sequences lower the held-out loss and specialise the experts?",
    prediction="Held-out loss falls from one sequence to the global batch; an interval above zero would refute it.",
    paper="Table 1, Figure 2, Figure 4",
    axes={"balance": {"arms": ARMS}},  # type: ignore[arg-type]
    contrasts=(("global", "1 sequence"), ("4 sequences", "1 sequence"), ("hybrid", "global")),
)

PAIR = {"first": "global", "second": "1 sequence"}
EXPECT = (
    PAIR | {"claim": "The global batch has the lower loss.", "direction": "lower"},
    PAIR | {"claim": "The global batch specialises less.", "direction": "lower", "measure": "divergence"},
    {
        "claim": "The hybrid equals global.",
        "first": "hybrid",
        "second": "global",
        "direction": "equal",
        "margin": 0.004,
    },
)
PREDICTED_EXPERIMENT = Experiment.model_validate(
    WINDOW_EXPERIMENT.model_dump()
    | {
        "paper": "Table 1, Table 2, Figure 2, Figure 4",
        "expect": EXPECT,
        "recovery": {"from": "1 sequence", "to": "global", "by": ["4 sequences", "hybrid"]},
    }
)
"""The same with predictions: the first right, the second wrong, the third beyond what three seeds tell."""


def run_config(fields, seed):
    """The resolved config of one synthetic arm."""
    sources = [{"name": name, "source": {"kind": "pip", "corpus": name}} for name in DOMAINS]
    raw = {"data": DataConfig(domains=sources).model_dump(), "seed": seed, "model": {"num_layers": LAYERS}}  # type: ignore[arg-type]
    for path, value in fields.items():
        section, key = path.split(".")
        raw.setdefault(section, {})[key] = value
    return RunConfig.model_validate(raw)


def write_records(
    root: Path,
    experiments=None,
    *,
    seeds=(0, 1, 2),
    domains=DOMAINS,
    latency=True,
    tasks=True,
    estimators=True,
    drop=True,
) -> tuple[Path, Path]:
    """Write `runs.json` and the run folders."""
    experiments = experiments or {"balance_window": WINDOW_EXPERIMENT}
    rows = []
    for name, experiment in experiments.items():
        # A test may compare arms whose rows it adds itself.
        bare = experiment.model_copy(update={"contrasts": (), "expect": (), "recovery": None})
        for index, (arm, labels, fields) in enumerate(expand(name, bare)):
            for seed in seeds:
                run = f"{name}-{index}-s{seed}"
                row = {"run": run, "experiment": name, "arm": arm, "labels": labels, "seed": seed, "data": "d-12"}
                rows.append(row)
                write_run(root / "runs" / run, arm, run_config(dict(fields), seed), domains, tasks=tasks, drop=drop)
    table = {
        "schema": "moe-runs/1",
        "scale": "cpu",
        "description": "Two cores, 20 minutes.",
        "settings": {},
        "experiments": {name: experiment.model_dump(mode="json") for name, experiment in experiments.items()},
        "runs": rows,
    }
    write_json(root / "runs.json", table)
    if latency:
        write_json(root / "latency.json", _latency([row["run"] for row in rows if row["seed"] == seeds[0]]))
    if estimators:
        write_json(root / "estimators.json", estimators_record(rows[-1]["run"], seeds[0]))
    return root / "runs.json", root / "runs"


def write_run(folder, arm, config, domains, *, tasks, drop=True):
    """Every small record of one run."""
    seed = config.seed
    rng = np.random.default_rng([seed, len(arm)])
    head = {"device": "Example CPU, 2 cores", "run": folder.name, "seed": seed, "config_hash": digest(config)}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config.model_dump(mode="json"))
    gain, focus = GAIN.get(arm, 0.01), FOCUS.get(arm, 1.0)
    final = _curve(folder, rng, gain, focus, len(config.balance.terms))
    size = {"parameters": 3_400_000, "active_parameters": 900_000, "processes": 1, "steps": 400, "tokens": 1_638_400}
    write_json(folder / "train.json", stamp("moe-train/1", **head, **size, final=final, weights_sha256="ab" * 32))

    base = np.linspace(2.6, 4.4, len(domains)) + 0.004 * np.random.default_rng(seed).normal()
    nats = base - gain + 0.004 * rng.normal(size=len(domains))
    heldout = {
        name: {
            "nats": x,
            "perplexity": float(np.exp(x)),
            "bits_per_byte": x / 2.3,
            "tokens": TOKENS,
            "bytes": TOKENS * 3,
        }
        for name, x in zip(domains, nats.tolist(), strict=True)
    }
    average = {
        key: float(np.mean([row[key] for row in heldout.values()])) for key in ("nats", "perplexity", "bits_per_byte")
    }
    lm_eval = _lm_eval(rng) if tasks else None
    record = stamp("moe-evaluation/1", **head, heldout=heldout, average=average, lm_eval=lm_eval)
    write_json(folder / "evaluation.json", record | (_drop(seed, focus, domains) if drop else {}))
    _routing(folder / "routing.parquet", folder.name, seed, rng, focus, domains)
    _counts(folder / "counts.parquet", config, focus, domains)


def _latency(runs):
    """Latencies of `runs`, timed side by side."""
    rng = np.random.default_rng(11)
    moment = rng.random(5)  # the machine's slow moments meet every run
    found = {}
    for i, run in enumerate(runs):
        learned = {
            "prefill_seconds": rng.gamma(90, 4e-4, 5).tolist(),
            "decode_seconds": rng.gamma(90, 8e-5, 80).tolist(),
        }
        balanced = {key: [0.96 * x for x in values] for key, values in learned.items()}
        step = 0.16 + 0.003 * i + 0.02 * moment + 0.001 * rng.random(5)
        found[run] = {"train_step_seconds": step.tolist(), "learned": learned, "balanced": balanced}
    head = {"settings": LatencyConfig().model_dump(), "threads": 1}
    body = {"runs": found, "expert_parallel": expert_parallel_record()}
    return stamp("moe-latency/1", device="Example CPU, 2 cores", **head) | body


def expert_parallel_record():
    """A machine that follows the model but for some noise."""
    rng = np.random.default_rng(3)
    layers = []
    for tokens in (128, 512, 2048):
        for pattern, share in (("balanced", 0.5), ("skew 1.0", 0.7), ("all to one process", 1.0)):
            near, far = (int(part * tokens * 2 / 8) for part in (share, 1 - share))
            seconds = 8e-4 + 6e-7 * tokens + 1.6e-5 * near + 16 * near * 512 / 2e9
            layer = {"pattern": pattern, "tokens": tokens, "counts": 2 * [8 * [near] + 8 * [far]]}
            layers.append(layer | {"seconds": float(seconds * np.exp(0.1 * rng.normal()))})
    size = {"experts": 16, "top_k": 2, "hidden_size": 128, "expert_size": 128, "value_bytes": 4}
    lines = {"transfer": (1e-4, 1 / 2e9), "product": (4e-4, 1e-6), "sort": (1e-4, 3e-7)}
    parts = {name: {str(x): start + slope * x for x in (200, 2_000_000)} for name, (start, slope) in lines.items()}
    return size | parts | {"layers": layers}


def estimators_record(run, seed, *, passes=(2, 4, 8, 16, 32), timed=(1, 2, 8, 32), overhead=0.02):
    """Errors that fall over the steps and rise with the passes; `overhead`: the share that exact adds at two passes."""
    rng = np.random.default_rng(5)
    gradients = []
    for step in range(30, 451, 60):
        errors = {("pass", p): 0.35 * (p - 1) ** 0.5 for p in passes}
        errors |= {("prefix", p): 0.12 * (p - 1) ** 0.3 for p in passes}
        errors |= {("previous", None): 0.5, ("ema 4", None): 0.26, ("ema 16", None): 0.31, ("ema 64", None): 0.75}
        for (estimator, p), size in errors.items():
            for layer in range(LAYERS):
                error = size * (1.3 - 0.1 * layer) * (1 + 2 * np.exp(-step / 60)) * np.exp(0.15 * rng.normal())
                row = {"step": step, "estimator": estimator, "passes": p, "layer": layer}
                gradients.append(row | {"cosine": float(1 / np.hypot(1, error)), "relative_error": float(error)})
    step_seconds = []
    for p in timed:
        moment = 0.1 * (1 + 0.02 * p) * (1 + 0.15 * rng.random(12))  # the machine's slow moments meet every estimator
        for estimator in ("exact", "prefix", "previous", "ema 4"):
            counting = overhead * np.log2(2 * p) if estimator == "exact" and p > 1 else 0
            seconds = moment * (1 + counting) * np.exp(0.012 * rng.normal(size=12))
            step_seconds.append({"estimator": estimator, "passes": p, "seconds": seconds.tolist()})
    head = {"run": run, "seed": seed, "config_hash": "0" * 8, "threads": 1, "batch_sequences": 32, "steps": 450}
    body = {"gradients": gradients, "step_seconds": step_seconds}
    return stamp("moe-estimators/1", device="Example CPU, 2 cores", **head) | body


def _curve(folder, rng, gain, focus, terms):
    """Write `train.jsonl` and `speed.jsonl`; returns the last line of the first."""
    lines, speed = [], []
    for step in range(10, 401, 10):
        decay = np.exp(-step / 90)
        line = {
            "step": step,
            "tokens": step * 4096,
            "lm_loss": 3.5 + 3.6 * decay - gain * (1 - decay) + 0.02 * rng.normal(),
            "grad_norm": 1.0,
            "learning_rate": 1e-3,
            "z_loss": 2.0,
            "balance": [[1 + decay + 0.02 * focus + 0.01 * rng.random() for _ in range(LAYERS)] for _ in range(terms)],
            "max_vio_global": [0.15 + decay + 0.05 * rng.random() for _ in range(LAYERS)],
            "max_vio_micro": [0.3 * focus + decay + 0.1 * rng.random() for _ in range(LAYERS)],
            "load_entropy": [0.98] * LAYERS,
            "dead_experts": [0] * LAYERS,
        }
        lines.append(line)
        parts = {"data": 0.002, "forward": 0.05, "sync": 0.001, "backward": 0.09, "optimizer": 0.01}
        speed.append({"step": step, "tokens_per_second": 23_000.0 + step, "seconds": parts})
    for name, content in (("train.jsonl", lines), ("speed.jsonl", speed)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in content))
    return lines[-1]


def _lm_eval(rng):
    results, samples = {}, {}
    for task, level, n in (("hellaswag", 0.26, 300), ("piqa", 0.55, 300), ("heldout_continuation", 0.62, 400)):
        value = level + 0.01 * rng.normal()
        error = float(np.sqrt(value * (1 - value) / n))
        results[task] = {"alias": task, "acc,none": value, "acc_stderr,none": error}
        samples[task] = {"original": n, "effective": n}
    results["lambada_openai"] = {
        "alias": "lambada_openai",
        "acc,none": 0.004,
        "acc_stderr,none": 0.004,
        "perplexity,none": 90_000.0,
        "perplexity_stderr,none": "N/A",
    }
    samples["lambada_openai"] = {"original": 5153, "effective": 300}
    return {"results": results, "n-samples": samples, "configs": {}, "versions": dict.fromkeys(results, 1)}


def _drop(seed, focus, domains):
    """Two experts in turn belong to each domain, the more the sharper the focus."""
    rng = np.random.default_rng([seed, 8])
    increase = 0.02 * rng.random((LAYERS, EXPERTS, len(domains))) ** 3 - 0.001
    for expert in range(EXPERTS):
        increase[:, expert, expert % len(domains)] += 0.05 * focus
    dropped = {"sequences": dict.fromkeys(domains, 16), "nats": increase.round(6).tolist()}
    return {"router_cosine": (0.1 / focus + 0.01 * rng.random(LAYERS)).tolist(), "drop_expert": dropped}


def _routing(path, run, seed, rng, focus, domains):
    shape = np.random.default_rng([seed, 7]).normal(size=(len(domains), LAYERS, EXPERTS))
    shape = shape - shape.mean(axis=0)
    share = np.exp(focus * 0.5 * shape + 0.05 * rng.normal(size=shape.shape))
    share /= share.sum(axis=-1, keepdims=True)
    rows = {"run": [], "domain": [], "layer": [], "expert": [], "tokens": [], "score_sum": [], "top_k_score_sum": []}
    for d, domain in enumerate(domains):
        for layer in range(LAYERS):
            counts = rng.multinomial(TOKENS * TOP_K, share[d, layer])
            for expert, count in enumerate(counts.tolist()):
                values = (
                    run,
                    domain,
                    layer,
                    expert,
                    count,
                    TOKENS / EXPERTS,
                    count * (0.09 + 0.06 * focus + 0.01 * layer),
                )
                for key, value in zip(rows, values, strict=True):
                    rows[key].append(value)
    meta = {"num_experts": EXPERTS, "top_k": TOP_K, "tokens": dict.fromkeys(domains, TOKENS)}
    pq.write_table(pa.table(rows).replace_schema_metadata({"moe": json.dumps(meta)}), path)


def _counts(path, config, focus, domains):
    """Two checkpoints of 32 sequences of 128 tokens, micro-batches of 4; the sharper the focus, the more skewed."""
    rng, experts = np.random.default_rng([config.seed, 9]), config.model.num_experts
    shape = (2, LAYERS, 32)
    share = np.exp(0.3 * focus * rng.normal(size=(*shape, experts)))
    counts = rng.multinomial(128 * config.model.top_k, share / share.sum(axis=-1, keepdims=True))
    step, layer, position = (index.ravel() for index in np.indices(shape))
    columns = {
        "step": pa.array(200 * (1 + step), pa.int32()),
        "layer": pa.array(layer, pa.int32()),
        "position": pa.array(position, pa.int32()),
        "micro_batch": pa.array(position // 4, pa.int32()),
        "domain": pa.array(np.array(domains, dtype=object)[position % len(domains)], pa.string()),
        "counts": pa.FixedSizeListArray.from_arrays(pa.array(counts.ravel(), pa.uint32()), experts),
    }
    pq.write_table(pa.table(columns), path, compression="zstd")
