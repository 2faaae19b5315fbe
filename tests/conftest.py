"""A small packed mix and a small run that the tests of the stages share."""

import random
import signal
from pathlib import Path

import pytest
from hypothesis import settings

from moe.config import DataConfig, RunConfig
from moe.data.packing import prepare
from moe.settings import parse
from tests.data.corpora import CHINESE, ENGLISH, write_jsonl

settings.register_profile("long", max_examples=2000)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--update-golden` rewrites `tests/golden/losses.json`."""
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files with what is found")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no process of the tests works on one when the others are done."""
    folders = [Path(__file__).parent / name for name in ("workflow", "soak")]
    items.sort(key=lambda item: not any(folder in item.path.parents for folder in folders))


@pytest.fixture(autouse=True)
def _heard_signals() -> None:
    """Behind a stage that ended in this process, or in the background, tests would start what ignores signals."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def tiny_config(data: DataConfig, **sections: dict) -> RunConfig:
    """A run of seconds: 2 layers, 8 experts, top-2, batches of 12 sequences of 32 tokens."""
    raw = {
        "model": {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_experts": 8, "top_k": 2, "expert_size": 16},
        "data": data.model_dump(),
        "train": {"steps": 12, "batch_sequences": 12, "micro_sequences": 2, "warmup_steps": 2, "sequences_per_pass": 4},
        "balance": {"terms": [{"window": 12, "weight": 0.05}]},
        "seed": 1,
    }
    for name, fields in sections.items():
        raw[name] = {**raw[name], **fields} if isinstance(raw[name], dict) else fields
    return parse(RunConfig, raw, "tiny")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataConfig, Path]:
    """Two domains of random words, packed: the config and the folder."""
    folder = tmp_path_factory.mktemp("tiny")
    domains = []
    for name, words, joined in (("english", ENGLISH, " "), ("chinese", CHINESE, "")):
        rng = random.Random(name)
        documents = [f"{n} " + joined.join(rng.choices(words, k=40)) for n in range(400)]
        path = write_jsonl(folder / f"{name}.jsonl", documents)
        domains.append({"name": name, "source": {"kind": "files", "paths": [str(path)]}})
    sizes = {"vocab_size": 400, "sequence_length": 32, "train_tokens": 6400, "heldout_tokens": 640}
    config = parse(DataConfig, {"domains": domains, **sizes}, "tiny data")
    prepare(config, folder / "packed")
    return config, folder / "packed"
