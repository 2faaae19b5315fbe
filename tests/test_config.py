"""Schema: one spelling per run, no dead keys, mistakes named with their remedy, and a page that does not drift."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from moe.config import RunConfig
from moe.scale import Scale
from moe.schema import SECTIONS, markdown
from moe.settings import ConfigError, Settings, canonical_json, digest, parse, read_yaml

ROOT = Path(__file__).parents[1]
RAW = {"data": {"domains": [{"name": "law", "source": {"corpus": "china-law"}}]}}
# Another valid value where the next number or the other truth value is none.
OTHER: dict[str, Any] = {
    "data.domains.0.name": "other",
    "data.domains.0.source.corpus": "kjv",
    "data.purity": 0.5,
    "data.segments": 4,
    "data.micro_purity": 0.5,
    "data.sequence_length": 256,
    "model.hidden_size": 64,
    "model.num_heads": 2,
    "model.gate": "sigmoid",
    "train.batch_sequences": 64,
    "train.micro_sequences": 2,
    "train.sequences_per_pass": 8,
    "train.beta1": 0.5,
    "train.beta2": 0.5,
    "train.precision": "bf16",
    "balance.terms.0.window": 1,
    "balance.terms.0.estimator": "prefix",
    "balance.terms.0.end_step": 10,
    "balance.bias.window": 1,
    "balance.capacity.window": 1,
}


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, (dict, list)):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from leaves(value, f"{path}{key}.")
    else:
        yield path[:-1], node


BALANCE = {"terms": [{}, {"estimator": "ema", "half_life": 2.0}], "bias": {}, "capacity": {}}
FULL = RunConfig.model_validate(RAW | {"balance": BALANCE}).model_dump(mode="json")


def alone(path: str) -> bool:
    """Whether the field may change alone: `kind` and the estimator `ema` need other keys beside them."""
    second = path.startswith("balance.terms.1.")
    return (
        not path.endswith(".kind")
        and second == (path == "balance.terms.1.half_life")
        and path != "balance.terms.0.half_life"
    )


@pytest.mark.parametrize("path", [path for path, _ in leaves(FULL) if alone(path)])
def test_every_field_of_a_run_changes_its_identity(path: str):
    raw = json.loads(json.dumps(FULL))
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    node = raw
    for part in parents:
        node = node[part]
    if path in OTHER:
        node[last] = OTHER[path]
    else:
        node[last] = not node[last] if isinstance(node[last], bool) else (node[last] or 0) + 1
    assert digest(RunConfig.model_validate(raw)) != digest(RunConfig.model_validate(FULL))


def test_canonical_json_leaves_out_defaults_and_parses_to_the_same_run():
    config = RunConfig.model_validate(RAW | {"train": {"steps": 400}, "seed": 3})
    text = canonical_json(config)
    assert "steps" not in text
    assert RunConfig.model_validate_json(text) == config


def test_neutral_ways_of_routing_and_balancing_rename_no_run():
    neutral = {"forced": False, "similarity_weight": 0, "capacity": None}
    raw = RAW | {"model": {"gate": "softmax"}, "balance": neutral}
    assert digest(RunConfig.model_validate(raw)) == digest(RunConfig.model_validate(RAW))


def test_numbers_that_yaml_reads_as_text_are_parsed():
    raw = yaml.safe_load("{train: {learning_rate: 1e-3}}")
    assert isinstance(raw["train"]["learning_rate"], str)  # YAML 1.1 asks for a point before the exponent
    assert RunConfig.model_validate(RAW | raw).train.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"modle": {}}, "unknown key 'modle'; did you mean 'model'?"),
        ({"model": {"num_expert": 4}}, "unknown key 'model.num_expert'; did you mean 'num_experts'?"),
        ({"balance": {"terms": [{"windw": 1}]}}, "unknown key 'balance.terms.0.windw'; did you mean 'window'?"),
        ({"data": {"domains": [{"name": "a", "source": {"corpsu": "kjv"}}]}}, "'data.domains.0.source.corp"),
        ({"data": {"domains": [{"name": "a", "source": {"kind": "web"}}]}}, "data.domains.0.source"),
        ({"model": {"num_experts": 32_769}}, "num_experts': Input should be less than or equal to 32768, got 32769"),
        ({"model": {"top_k": 32}}, "model.top_k (32) cannot exceed model.num_experts (16)"),
        (
            {"train": {"batch_sequences": 30}},
            "train.batch_sequences (30) must be a multiple of train.micro_sequences (4)",
        ),
        ({"train": {"steps": 10}}, "train.warmup_steps (40) cannot exceed train.steps (10)"),
        ({"balance": {"terms": [{"start_step": 400}]}}, "start_step (400) must be below train.steps (400)"),
        ({"balance": {"terms": [{"window": 5}]}}, "window (5) must divide train.batch_sequences (32)"),
        ({"balance": {"bias": {"window": 5}}}, "balance.bias.window (5) must divide train.batch_sequences (32)"),
        ({"balance": {"capacity": {"window": 64}}}, "balance.capacity.window (64) must be between 1 and"),
        ({"balance": {"capacity": {"factor": 0}}}, "'balance.capacity.factor': Input should be greater than 0"),
        ({"model": {"gate": "sigmod"}}, "'model.gate': Input should be 'softmax' or 'sigmoid'"),
        ({"balance": {"terms": [{"estimator": "previous", "window": 4}]}}, "terms.0.window must be 'global'"),
        ({"balance": {"terms": [{"estimator": "ema"}]}}, "half_life (None) belongs to the estimator 'ema'"),
        (
            {"balance": {"terms": [{"shuffled": True, "estimator": "prefix"}]}},
            "terms.0.estimator 'prefix' has not count",
        ),
        ({"balance": {"terms": [{"half_life": 2}]}}, "half_life (2.0) belongs to the estimator 'ema'"),
        (
            {"train": {"sequences_per_pass": 64}},
            "train.sequences_per_pass (64) cannot exceed train.batch_sequences (32)",
        ),
        ({"train": {"steps": "many"}}, "'train.steps'"),
        ({"data": None}, "'data'"),
        ({"pip": 1}, "unknown key 'pip'; valid keys are"),
        ({"data": {"domains": [{"name": "a", "source": {"kind": "files", "files": 1}}]}}, "source.paths' is missing"),
        ({"a\nb\x1b[31m": 1}, r"holds the character '\x1b': remove it"),
        ({"two\nlines": 1}, "unknown key 'two lines'; valid keys are"),
        ({"seed": "9" * 4000}, "'seed' is too large a number"),
        ({"train": {"learning_rate": "inf"}}, "'train.learning_rate': Input should be a finite number"),
        ({"train": {"learning_rate": 1e400}}, "'train.learning_rate' must be a finite number, got inf"),
        ({"model": {"x" * 5000: 1}}, "num_experts, num_heads"),  # the end of the sentence, which has the remedy
    ],
)
def test_a_mistake_is_one_sentence_that_names_key_and_remedy(change: dict[str, Any], sentence: str):
    with pytest.raises(ConfigError) as error:
        parse(RunConfig, RAW | change, "here")
    assert str(error.value).startswith("here: ")
    assert sentence in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) <= 1000


@pytest.mark.parametrize("text", ["", "[1, 2]", "a: [", "\x00", "description: &a [*a]"])
def test_files_that_are_no_scale_are_refused_with_their_name(text: str, tmp_path: Path):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        read_yaml(Scale, path)


def test_the_page_of_configuration_keys_is_current():
    page = (ROOT / "config" / "README.md").read_text(encoding="utf-8")
    assert page == markdown(), "run: python -m moe schema > config/README.md"


def test_every_section_is_on_the_page():
    shown = set(SECTIONS.values()) | {RunConfig}
    assert {section for section in Settings.__subclasses__() if section.__module__.startswith("moe.")} == shown


def test_every_key_is_described():
    rows = [line.split(" | ") for line in markdown().splitlines() if line.startswith("| `")]
    assert len(rows) > 60
    assert [row[0] for row in rows if row[-1].strip(" |") == ""] == []


def test_both_environment_files_hold_the_same_pins():
    pins = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["dependencies"][-1]["pip"] == pins
    assert all("==" in pin for pin in pins)
