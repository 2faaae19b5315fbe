"""Two lm-eval tasks from held-out text: which continuation is the true one, and what is the last word?

Both are made of passages: pieces of at most `PASSAGE_BYTES` of held-out documents, which begin and end between words,
or next to Chinese or Japanese punctuation. Domains take turns and have equally many documents, so the first n
documents of a task are spread evenly over the domains. Equal held-out files give equal tasks.
"""

import json
import random
import re
from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe.settings import ConfigError

if TYPE_CHECKING:  # a plan checks the names of tasks, and must answer at once
    from transformers import PreTrainedTokenizerBase

PASSAGE_BYTES = 256
"""Longest passage: with a context of three quarters, it fits the 128 tokens of the smallest models."""
CONTEXT_BYTES = 192
"""Longest context of a continuation."""
ANSWER_BYTES = 24
"""Shortest continuation: a word or two would often fit several contexts."""
DISTRACTORS = 3
"""Wrong continuations beside the true one."""
CANDIDATES = 48
"""Continuations that the wrong ones are chosen from, by length."""
DOMAIN_DOCUMENTS = 200
"""Most documents that a task takes from one domain."""

TASKS = ("heldout_continuation", "heldout_last_word")

_PAUSE = "，。；：、！？"
_NO_SPACES = "\u3040-\u30ff\u3400-\u9fff"  # kana and Chinese characters
_BOUNDARY = re.compile(rf"(?<=\S)(?=\s)|(?<=[{_PAUSE}])(?=\w)")
_LAST_WORD = re.compile(
    rf"(?<=\S) (?:(?![{_NO_SPACES}])[^\W\d_]){{2,}}(?=[\s.,;:!?)]|$)|(?<=[{_NO_SPACES}])[{_NO_SPACES}](?=[{_PAUSE}])"
)


def heldout_task(
    name: str, data_folder: Path, domains: list[str], tokenizer: "PreTrainedTokenizerBase"
) -> dict[str, Any]:
    """The task `name` of `TASKS`, as lm-eval's `evaluate` takes it.

    Raises `ConfigError` if a held-out file is missing or damaged, or holds too little text for the task.
    """
    import datasets
    from lm_eval.api.task import ConfigurableTask

    documents = {domain: _read(data_folder / f"{domain}.heldout.jsonl") for domain in domains}
    rows = continuation_rows(documents) if name == "heldout_continuation" else last_word_rows(documents, tokenizer)
    config = _CONTINUATION if name == "heldout_continuation" else _LAST_WORD_TASK
    dataset = {"heldout": datasets.Dataset.from_list(rows)}
    task = ConfigurableTask(config={"task": name, **_COMMON, **config, "custom_dataset": lambda **_: dataset})
    return {"tasks": {name: task}, "groups": {}, "group_map": {}}


def continuation_rows(documents: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Documents {domain, context, choices, gold}: the true continuation stands at `gold` among `DISTRACTORS` others.

    The others continue passages of other documents of the same domain (or of the same document, if it is the only one),
    have about the length of the true one, and begin like it: with the same white space, or with none. Raises
    `ConfigError` for a domain with too little text.
    """
    rows = {}
    for domain, texts in documents.items():
        pairs = [(source, *_split(passage)) for source, passage in _passages(texts)]
        pairs = [pair for pair in pairs if pair[1] and len(pair[2].encode()) >= ANSWER_BYTES]
        rows[domain] = list(_choices(domain, pairs))
    return _in_turn(rows, "heldout_continuation")


def _choices(domain: str, pairs: list[tuple[int, str, str]]) -> Iterator[dict[str, Any]]:
    """The row of each (source, context, truth), but for those that too few other continuations fit."""
    alone = len({source for source, _, _ in pairs}) == 1
    for number, (source, context, truth) in enumerate(pairs):
        rng = random.Random(f"{domain} {number}")
        others = rng.sample(pairs, min(len(pairs), CANDIDATES))
        fitting = {
            other
            for other_source, _, other in others
            if (alone or other_source != source) and other != truth and _start(other) == _start(truth)
        }
        # Of like length, or the sum of log-probabilities is mostly a count of tokens.
        wrong = sorted(fitting, key=lambda other: (abs(len(other) - len(truth)), other))[:DISTRACTORS]
        if len(wrong) == DISTRACTORS:
            gold = rng.randrange(DISTRACTORS + 1)
            yield {"domain": domain, "context": context, "choices": [*wrong[:gold], truth, *wrong[gold:]], "gold": gold}


def last_word_rows(documents: dict[str, list[str]], tokenizer: "PreTrainedTokenizerBase") -> list[dict[str, Any]]:
    """Documents {domain, context, target}, as LAMBADA: the target is the last word of a passage, with the space before.

    In text without spaces it is the last character before a punctuation mark. Only targets that keep their tokens when
    context and target are encoded together are taken: no model can predict half a token. Raises `ConfigError` for a
    domain without such a passage.
    """
    rows = {}
    for domain, texts in documents.items():
        passages = [passage for _, passage in _passages(texts)]
        found = [(passage, matches[-1]) for passage in passages if (matches := list(_LAST_WORD.finditer(passage)))]
        pairs = [(p[: match.start()], match[0]) for p, match in found if match.start() >= len(p) // 2]
        whole, contexts, targets = (
            tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
            for texts in ([c + t for c, t in pairs], [c for c, _ in pairs], [t for _, t in pairs])
        )
        rows[domain] = [
            {"domain": domain, "context": context, "target": target}
            for (context, target), joint, first, second in zip(pairs, whole, contexts, targets, strict=True)
            if joint == [*first, *second]
        ]
    return _in_turn(rows, "heldout_last_word")


def continuation_metrics(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
    """acc: the true continuation has the highest log-probability; acc_norm: the highest per character, as lm-eval's;
    margin: its log-probability per character minus the best wrong one's, in nats (above 0 where acc_norm is 1)."""
    nats = [log_probability for log_probability, _ in results]
    per_character = [nat / len(choice) for nat, choice in zip(nats, doc["choices"], strict=True)]
    gold = doc["gold"]
    margin = per_character[gold] - max(nat for i, nat in enumerate(per_character) if i != gold)
    return {"acc": float(nats.index(max(nats)) == gold), "acc_norm": float(margin > 0), "margin": margin}


def _metric(name: str, *, aggregation: str = "mean", higher_is_better: bool = True) -> dict[str, Any]:
    return {"metric": name, "aggregation": aggregation, "higher_is_better": higher_is_better}


_COMMON = {
    "test_split": "heldout",
    "dataset_path": "held-out documents of the run",
    "doc_to_text": "context",
    "target_delimiter": "",
    "num_fewshot": 0,
    "fewshot_config": {"samples": []},
    "metadata": {"version": 1.0},
}
_CONTINUATION = {
    "output_type": "multiple_choice",
    "doc_to_choice": "choices",
    "doc_to_target": "gold",
    "process_results": continuation_metrics,
    "metric_list": [_metric("acc"), _metric("acc_norm"), _metric("margin")],
}
_LAST_WORD_TASK = {
    "output_type": "loglikelihood",
    "doc_to_target": "target",
    "metric_list": [_metric("acc"), _metric("perplexity", aggregation="perplexity", higher_is_better=False)],
}


def _read(path: Path) -> list[str]:
    try:
        return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{path}: missing or damaged; delete the folder {path.parent} and run again") from None


def _cut(text: str, size: int) -> str:
    """The longest beginning of at most `size` UTF-8 bytes that ends at a boundary; empty if there is none."""
    beginning = text[:size].encode()[:size].decode(errors="ignore")
    ends = [match.start() for match in _BOUNDARY.finditer(beginning)]
    return beginning[: ends[-1]] if ends else ""


def _start(text: str) -> str:
    return text[0] if text[0].isspace() else ""


def _split(passage: str) -> tuple[str, str]:
    context = _cut(passage, CONTEXT_BYTES)
    return context, passage[len(context) :]


def _passages(texts: list[str]) -> list[tuple[int, str]]:
    """Passages and the number of their document: the first of every document, then the second of every document ..."""

    def of_document(number: int) -> Iterator[tuple[int, str]]:
        start = 0
        while len(rest := texts[number][start : start + PASSAGE_BYTES + 1].encode()) > PASSAGE_BYTES:
            passage = _cut(rest.decode(), PASSAGE_BYTES)
            if passage.strip():
                yield number, passage.lstrip()
            # A rule of dashes or a long formula has no boundary: step over it.
            start += len(passage) or PASSAGE_BYTES

    rounds = zip_longest(*(of_document(number) for number in range(len(texts))))
    return _first((passage for passage in chain.from_iterable(rounds) if passage), DOMAIN_DOCUMENTS)


def _first(items: Iterator[Any], number: int) -> list[Any]:
    return [item for item, _ in zip(items, range(number), strict=False)]


def _in_turn(rows: dict[str, list[dict[str, Any]]], task: str) -> list[dict[str, Any]]:
    """One row of each domain, then the next of each, until a domain has no more."""
    for domain, found in rows.items():
        if not found:
            raise ConfigError(
                f"evaluation.tasks: domain '{domain}' has too little held-out text for {task}: raise "
                "data.heldout_tokens or remove the task"
            )
    return list(chain.from_iterable(zip(*rows.values(), strict=False)))
