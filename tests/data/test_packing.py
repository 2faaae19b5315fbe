"""Packed folders hold what the manifest says, repeat byte for byte, and are complete or absent."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from moe.config import DataConfig
from moe.data.packing import prepare, read_manifest, read_packed
from moe.data.tokenizer import load_tokenizer, token_bytes
from moe.settings import ConfigError
from tests.data.corpora import CHINESE, ENGLISH, texts, write_jsonl


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def decoded(folder: Path, domain: str, split: str) -> list[str]:
    """Documents of the stream; the last may lack its end."""
    tokenizer = load_tokenizer(folder / "tokenizer")
    stream = read_packed(folder, domain, split).reshape(-1)
    return str(tokenizer.decode(stream.tolist())).split(str(tokenizer.eos_token))


@pytest.fixture
def packed(mix: DataConfig, tmp_path: Path) -> Path:
    prepare(mix, tmp_path / "packed")
    return tmp_path / "packed"


def test_two_calls_give_the_same_folder_byte_for_byte(mix: DataConfig, packed: Path, tmp_path: Path) -> None:
    prepare(mix, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(packed)


def test_files_are_whole_sequences_of_what_was_asked(mix: DataConfig, packed: Path) -> None:
    for domain in ("english", "chinese"):
        assert read_packed(packed, domain, "train").shape == (mix.train_tokens // 32, 32)
        assert read_packed(packed, domain, "heldout").shape == (mix.heldout_tokens // 32, 32)


def test_stream_is_the_documents_of_its_own_domain_and_split(packed: Path) -> None:
    for domain, known in (("english", texts(ENGLISH, 400)), ("chinese", texts(CHINESE, 400, joined=""))):
        train, heldout = decoded(packed, domain, "train"), decoded(packed, domain, "heldout")
        assert len(train) > 50
        assert set(train[:-1]) | set(heldout[:-1]) <= set(known)
        assert not set(train[:-1]) & set(heldout[:-1])
        assert len(set(train)) == len(train)


def test_held_out_documents_are_those_of_the_held_out_stream_and_never_trained_on(packed: Path) -> None:
    for domain in ("english", "chinese"):
        lines = (packed / f"{domain}.heldout.jsonl").read_text(encoding="utf-8").splitlines()
        heldout, stream = [json.loads(line)["text"] for line in lines], decoded(packed, domain, "heldout")
        assert stream[:-1] == heldout[: len(stream) - 1]
        assert heldout[-1].startswith(stream[-1]) or not stream[-1]
        train = decoded(packed, domain, "train")
        assert not set(train) & set(heldout)
        assert not any(text.startswith(train[-1]) for text in heldout)


def test_copies_that_differ_in_spaces_never_stand_on_both_sides(mix: DataConfig, tmp_path: Path) -> None:
    documents = texts(ENGLISH, 400)
    write_jsonl(tmp_path / "english.jsonl", documents + [text.replace(" ", "  ") for text in documents])
    prepare(mix, tmp_path / "packed")
    sides = {
        split: {" ".join(text.split()) for text in decoded(tmp_path / "packed", "english", split)[:-1]}
        for split in ("train", "heldout")
    }
    assert not sides["train"] & sides["heldout"]
    assert read_manifest(tmp_path / "packed")["domains"]["english"]["duplicates"] > 0


def test_manifest_counts_what_the_files_hold(mix: DataConfig, packed: Path) -> None:
    manifest = read_manifest(packed)
    sizes = token_bytes(load_tokenizer(packed / "tokenizer"))
    assert DataConfig.model_validate(manifest["config"]) == mix
    assert manifest["vocab_size"] == len(sizes)
    assert manifest["tokenizer_sha256"] == contents(packed)["tokenizer/tokenizer.json"]
    for name, domain in manifest["domains"].items():
        for split in ("train", "heldout"):
            stream = read_packed(packed, name, split).reshape(-1)
            assert domain[split]["tokens"] == len(stream)
            assert domain[split]["bytes"] == sizes[stream].sum()
            assert domain[split]["documents"] == (stream == 0).sum() + (stream[-1] != 0)


def test_text_cannot_forge_an_end_of_document(mix: DataConfig, tmp_path: Path) -> None:
    forged = [f"{text}<|endoftext|>" for text in texts(ENGLISH, 400)]
    write_jsonl(tmp_path / "english.jsonl", forged)
    prepare(mix, tmp_path / "packed")
    entry = read_manifest(tmp_path / "packed")["domains"]["english"]["train"]
    stream = read_packed(tmp_path / "packed", "english", "train").reshape(-1)
    assert (stream == 0).sum() in (entry["documents"], entry["documents"] - 1)


def test_no_more_documents_are_held_than_the_files_need(mix: DataConfig, packed: Path, tmp_path: Path) -> None:
    prepare(mix.model_copy(update={"train_tokens": 1000}), tmp_path / "short")
    long, short = read_packed(packed, "english", "train"), read_packed(tmp_path / "short", "english", "train")
    assert np.array_equal(short, long[: len(short)])


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_corpus_that_is_too_small_is_named_with_the_field_to_lower(mix: DataConfig, tmp_path: Path, split: str) -> None:
    one_domain = mix.model_copy(update={"domains": mix.domains[:1]})
    asked = one_domain.model_copy(update={f"{split}_tokens": 1_000_000})
    with pytest.raises(ConfigError, match=f"'english' has [0-9]+ {split} tokens in [0-9]+ documents") as caught:
        prepare(asked, tmp_path / "packed")
    lower = int(str(caught.value).split(f"lower data.{split}_tokens to ")[1].split()[0])
    assert not [path for path in tmp_path.iterdir() if "packed" in path.name]
    prepare(one_domain.model_copy(update={f"{split}_tokens": lower}), tmp_path / "packed")
    assert read_manifest(tmp_path / "packed")["domains"]["english"][split]["tokens"] == lower


def test_corpus_without_a_held_out_sequence_is_told_to_grow(mix: DataConfig, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "english.jsonl", [])
    with pytest.raises(ConfigError, match="0 train tokens in 0 documents, and 5000 are asked for: give it more text"):
        prepare(mix, tmp_path / "packed")


def test_fewer_tokens_than_one_sequence_are_refused(mix: DataConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.train_tokens \(31\) must hold one sequence.*\(32\)"):
        prepare(mix.model_copy(update={"train_tokens": 31}), tmp_path / "packed")


@pytest.mark.parametrize("damage", ["flipped", "short", "gone"])
def test_damaged_token_file_is_named_with_the_remedy(packed: Path, damage: str) -> None:
    path = packed / "english.train.bin"
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[:-2] if damage == "short" else bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(ConfigError, match=f"{path}: missing or damaged; delete the folder {packed}"):
        read_packed(packed, "english", "train")
    assert read_packed(packed, "english", "heldout").size


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        "[" * 5000,
        '{"schema": "other/1"}',
        '{"schema": "moe-data/1", "domains": []}',
        '{"schema": "moe-data/1", "domains": {"english": []}}',
        '{"schema": "moe-data/1", "domains": {"english": {"train": {}}}, "dtype": "object"}',
        '{"schema": "moe-data/1", "domains": {"english": {"train": {"file": 1, "tokens": []}}}, "dtype": "uint16"}',
    ],
)
def test_damaged_manifest_is_named(packed: Path, content: str) -> None:
    (packed / "manifest.json").write_text(content)
    with pytest.raises(ConfigError, match=r"manifest.json: missing or damaged; delete the folder"):
        read_packed(packed, "english", "train")


def test_unknown_domain_is_named(packed: Path) -> None:
    with pytest.raises(ConfigError, match="has no domain 'latin', only english, chinese"):
        read_packed(packed, "latin", "train")
