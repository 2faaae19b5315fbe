"""How good is a trained model: nats and bits per byte on held-out text per domain, and lm-eval's tasks.

Writes `routing.parquet` (see `moe/probe.py`) and `evaluation.json`:
    heldout   {domain: {nats (per token), perplexity, bits_per_byte, tokens, bytes}}
    average   {nats: mean over domains, perplexity: mean of the domains' perplexities (the paper's Avg PPL),
               bits_per_byte: mean over domains}
    router_cosine   [layer], mean absolute cosine between two rows of the router; not of a single expert
    drop_expert     {sequences: {domain: how many}, nats: [layer][expert][domain], the increase per token where the
                    expert is never chosen (see `moe/drop_expert.py`)}; only with `evaluation.drop_expert_sequences`
    lm_eval   lm-eval's record: results with errors, configs, versions, task hashes, sample counts; no samples
The record holds no time, date or path: equal inputs give equal files.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from moe.config import RunConfig
from moe.data.packing import read_manifest, read_packed
from moe.data.tokenizer import load_tokenizer, token_bytes
from moe.drop_expert import increases
from moe.lm_eval_tasks import official
from moe.lm_eval_tasks.harness import Harness, quiet
from moe.model.build import load_model, routers
from moe.model.products import use_fastest_products
from moe.probe import heldout_pass, write_routing
from moe.provenance import device_name, run_stamp, write_json
from moe.scale import EvaluationConfig
from moe.settings import ConfigError, read_json

SCHEMA = "moe-evaluation/1"

EXPERTS = "grouped_mm"
"""transformers' implementation of the experts: the stock one, so that a number does not hang on our dispatch."""


def evaluate_all(runs: Sequence[tuple[Path, Path, Path]], settings: EvaluationConfig) -> None:
    """Evaluate runs one after the other, each a run folder, a data folder and where its record goes; what is equal for
    all of them is loaded once."""
    harness = Harness(settings)
    for run_folder, data_folder, out in runs:
        print(run_folder.name, flush=True)
        evaluate(run_folder=run_folder, data_folder=data_folder, settings=settings, out=out, harness=harness)


def evaluate(
    *, run_folder: Path, data_folder: Path, settings: EvaluationConfig, out: Path, harness: Harness | None = None
) -> None:
    """Measure the model of `run_folder` on the held-out text of `data_folder` and on `settings.tasks`; write `out` and,
    before it and beside it, `routing.parquet`.

    The model runs on the accelerator if there is one. Prints one line per domain and task. Raises `ConfigError` for an
    unknown task, documents that cannot be read, a damaged checkpoint, and a run that was trained on other data.
    """
    official.check_names(settings.tasks, settings.source)
    use_fastest_products()
    config = read_json(RunConfig, run_folder / "config.json")
    domains = tuple(read_manifest(data_folder)["domains"])
    with quiet():
        model, tokenizer = _load(run_folder / "model", data_folder)
    sequences = {domain: read_packed(data_folder, domain, "heldout") for domain in domains}
    passes = {name: heldout_pass(model, found, batch_size=settings.batch_size) for name, found in sequences.items()}
    device = device_name(model.device)
    write_routing(
        passes,
        {name: found.size for name, found in sequences.items()},
        run=run_folder.name,
        config=config,
        device=device,
        out=out.with_name("routing.parquet"),
    )
    bytes_V = token_bytes(tokenizer)
    losses = {name: heldout_loss(passes[name].nats, found, bytes_V) for name, found in sequences.items()}
    for name, loss in losses.items():
        text = f"{loss['nats']:.4f} nats per token, {loss['bits_per_byte']:.4f} bits per byte"
        print(f"held-out {name}: {text}", flush=True)
    record = run_stamp(SCHEMA, config, run=run_folder.name, device=device)
    record["heldout"] = losses
    averaged = ("nats", "perplexity", "bits_per_byte")
    record["average"] = {key: fmean(loss[key] for loss in losses.values()) for key in averaged}
    several = config.model.num_experts > 1
    if several:
        record["router_cosine"] = [router_cosine(router.weight.detach().float().cpu()) for router in routers(model)]
    if several and settings.drop_expert_sequences:
        first = {name: found[: settings.drop_expert_sequences] for name, found in sequences.items()}
        record["drop_expert"] = dropped(model, first, batch_size=settings.batch_size)
    record["lm_eval"] = {}
    if settings.tasks:
        harness = harness or Harness(settings)
        at = {"data_folder": data_folder, "domains": domains, "window": config.data.sequence_length}
        record["lm_eval"] = harness.record(model, tokenizer, **at)
    write_json(out, record)


def dropped(model: PreTrainedModel, sequences: dict[str, np.ndarray], *, batch_size: int) -> dict[str, Any]:
    """What each domain of `sequences` loses without each expert, per predicted token, in millionths of a nat."""
    tokens_SN = torch.from_numpy(np.concatenate(list(sequences.values())).astype(np.int64)).to(model.device)
    counts = [len(found) for found in sequences.values()]
    by_domain = increases(model, tokens_SN, batch_size=batch_size).split(counts, dim=-1)
    nats_LED = torch.stack([found.mean(dim=-1) for found in by_domain], dim=-1) / (tokens_SN.shape[1] - 1)
    return {"sequences": dict(zip(sequences, counts, strict=True)), "nats": nats_LED.cpu().numpy().round(6).tolist()}


def router_cosine(weight_EH: ArrayLike) -> float:
    """Mean absolute cosine between two distinct rows of a router, whose rows are the experts' directions.

    0 where all rows are orthogonal, 1 where all lie on one line; random rows of H numbers give about sqrt(2 / (pi H)).
    Raises `ValueError` for fewer than two rows, or a row of zeros.
    """
    weight = np.asarray(weight_EH, dtype=np.float64)
    length = np.linalg.norm(weight, axis=1, keepdims=True)
    if len(weight) < 2 or not length.all():
        raise ValueError("a cosine between rows needs two rows that are not zero")
    unit = weight / length
    return float(np.abs(unit @ unit.T)[np.triu_indices(len(unit), k=1)].mean())


def heldout_loss(total_nats: float, sequences_SN: np.ndarray, token_bytes_V: np.ndarray) -> dict[str, float]:
    """Loss of every token but the first of each sequence, from its sum over all of them.

    nats = Σ -ln p(token) / tokens; perplexity = exp(nats); bits_per_byte = Σ -log2 p(token) / bytes, the UTF-8 bytes
    of the predicted tokens. The end-of-text token between documents is predicted, and has no bytes.
    """
    predicted = sequences_SN[:, 1:]
    tokens, size = predicted.size, int(token_bytes_V[predicted].sum())
    nats = total_nats / tokens
    return {
        "nats": nats,
        "perplexity": math.exp(nats),
        "bits_per_byte": total_nats / math.log(2) / size,
        "tokens": tokens,
        "bytes": size,
    }


def _load(folder: Path, data_folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = load_tokenizer(folder)
    if tokenizer.get_vocab() != load_tokenizer(data_folder / "tokenizer").get_vocab():
        raise ConfigError(
            f"{folder}: has another tokenizer than {data_folder}: give the data that the run was trained on"
        )
    model = load_model(folder)
    model.set_experts_implementation(EXPERTS)
    torch.nn.Module.to(model, "cuda" if torch.cuda.is_available() else "cpu")
    return model, tokenizer
