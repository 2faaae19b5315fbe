"""Documents to token files: distinct documents, divided and shuffled by their hash, tokenised and packed per domain.

`prepare` writes the folder of one mix:
    tokenizer/                 the mix's byte-level BPE
    <domain>.train.bin         token ids, little-endian, whole sequences, <|endoftext|> after every document
    <domain>.heldout.bin       the same from documents that are never trained on
    <domain>.heldout.jsonl     {"text": ...}, the documents of the held-out file, which may end within the last
    manifest.json              what each file holds, and its sha256
`read_packed` gives a file back as an array, after checking it against the manifest. Equal configs and sources give
equal folders, byte for byte.
"""

import json
import os
from collections.abc import Iterable, Iterator
from itertools import chain, tee
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from moe.config import DataConfig
from moe.data.distinct import DistinctDocuments
from moe.data.sources import licence
from moe.data.tokenizer import encode, sample, token_bytes, train_tokenizer
from moe.provenance import code_fingerprint, complete_folder, package_versions, sha256_of, write_json
from moe.settings import ConfigError

SCHEMA = "moe-data/1"

BATCH_BYTES = 256 << 10
"""UTF-8 bytes of documents that are tokenised together."""


class TokenFile:
    """One packed file while it is written: takes documents until it holds `tokens` tokens."""

    def __init__(self, path: Path, tokens: int, tokenizer: PreTrainedTokenizerFast, keep_texts: bool) -> None:
        self.path, self.left, self.documents, self.bytes = path, tokens, 0, 0
        self._tokens, self._tokenizer, self._sizes = tokens, tokenizer, token_bytes(tokenizer)
        self._texts = path.with_suffix(".jsonl") if keep_texts else None
        self._batch: list[str] = []
        self._batch_bytes = 0

    def add(self, text: str) -> None:
        """Take the document, unless the file is full."""
        if not self.left:
            return
        self._batch.append(text)
        self._batch_bytes += len(text.encode("utf-8"))
        # About four bytes make a token: small files need not tokenise a whole batch.
        if self._batch_bytes >= min(BATCH_BYTES, 4 * self.left):
            self.flush()

    def flush(self) -> None:
        """Tokenise and write what was added."""
        ids, count, lines = [], 0, []
        for text, found in zip(self._batch, encode(self._tokenizer, self._batch), strict=True):
            if count >= self.left:
                break
            ids.append([*found, self._tokenizer.eos_token_id])
            count += len(ids[-1])
            if self._texts:
                lines.append(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        tokens = np.fromiter(chain.from_iterable(ids), dtype=_dtype(len(self._sizes)), count=min(count, self.left))
        self.left -= len(tokens)
        self.documents += len(ids)
        self.bytes += int(self._sizes[tokens].sum())
        with self.path.open("ab") as file:
            file.write(tokens.tobytes())
        if self._texts:
            with self._texts.open("a", encoding="utf-8", newline="\n") as file:
                file.writelines(lines)
        self._batch, self._batch_bytes = [], 0

    def entry(self) -> dict[str, Any]:
        """The file in the manifest."""
        entry = {"file": self.path.name, "tokens": self._tokens - self.left, "bytes": self.bytes}
        return entry | {"documents": self.documents, "sha256": sha256_of(self.path)}


def prepare(config: DataConfig, out: Path) -> None:
    """Write the folder of the mix to `out`, complete or not at all.

    Raises `ConfigError` for a source that cannot be read and for a corpus with fewer tokens than asked.
    """
    if config.train_tokens < config.sequence_length:
        raise ConfigError(
            f"data.train_tokens ({config.train_tokens}) must hold one sequence: at least data.sequence_length "
            f"({config.sequence_length})"
        )
    # Said here, or tokenizers warns and turns slow once the process has started another one, as a download does.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    with complete_folder(out) as folder:
        reads = [DistinctDocuments(domain.source) for domain in config.domains]
        # Every source is read once: tee keeps what the tokenizer was trained on for the packing.
        samples, rests = zip(*(tee(read) for read in reads), strict=True)
        tokenizer = train_tokenizer(_training_texts(samples), config.vocab_size)
        del samples
        tokenizer.save_pretrained(folder / "tokenizer")
        domains = {}
        for domain, read, rest in zip(config.domains, reads, rests, strict=True):
            entries = _pack(domain.name, rest, config, tokenizer, folder)
            counts = {"documents": read.documents, "duplicates": read.duplicates, "bytes": read.bytes}
            source = {"source": domain.source.model_dump(mode="json"), "licence": licence(domain.source)}
            domains[domain.name] = source | counts | entries
        write_json(
            folder / "manifest.json",
            {
                "schema": SCHEMA,
                "config": config.model_dump(mode="json"),
                "domains": domains,
                "vocab_size": len(tokenizer),
                "tokenizer_sha256": sha256_of(folder / "tokenizer" / "tokenizer.json"),
                "dtype": _dtype(len(tokenizer)).name,
                "code": code_fingerprint(),
                "versions": package_versions(),
            },
        )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a packed folder; raises `ConfigError` if it is missing or damaged."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["schema"] != SCHEMA or not isinstance(manifest["domains"], dict):
            raise KeyError
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise _damaged(path, folder) from None
    return manifest


def read_packed(folder: Path, domain: str, split: str) -> np.ndarray:
    """Memory-mapped tokens [sequences, sequence length] of the domain's `train` or `heldout` file.

    Raises `ConfigError` if size or sha256 are not those of the manifest.
    """
    manifest = read_manifest(folder)
    if domain not in manifest["domains"]:
        raise ConfigError(f"{folder}: has no domain '{domain}', only {', '.join(manifest['domains'])}")
    try:
        entry = manifest["domains"][domain][split]
        dtype = np.dtype({"uint16": "<u2", "uint32": "<u4"}[manifest["dtype"]])
        path = folder / entry["file"]
        intact = path.is_file() and path.stat().st_size == entry["tokens"] * dtype.itemsize
        if not intact or sha256_of(path) != entry["sha256"]:
            raise _damaged(path, folder)
        return np.memmap(path, dtype=dtype, mode="r").reshape(-1, manifest["config"]["sequence_length"])
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        raise _damaged(folder / "manifest.json", folder) from None


def _training_texts(reads: Iterable[Iterator[tuple[str, str]]]) -> Iterator[str]:
    for read in reads:
        yield from sample(text for split, text in read if split == "train")


def _pack(
    name: str,
    documents: Iterator[tuple[str, str]],
    config: DataConfig,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
) -> dict[str, dict[str, Any]]:
    """Write the files of the domain from as many documents as they need; their entries in the manifest."""
    length, asked = config.sequence_length, {"train": config.train_tokens, "heldout": config.heldout_tokens}
    files = {}
    for split, tokens in asked.items():
        path = folder / f"{name}.{split}.bin"
        files[split] = TokenFile(path, tokens // length * length, tokenizer, keep_texts=split == "heldout")
    for split, text in documents:
        files[split].add(text)
        if not any(file.left for file in files.values()):
            break
    for file in files.values():
        file.flush()
    entries = {split: file.entry() for split, file in files.items()}
    for split, tokens in asked.items():
        if files[split].left:
            raise ConfigError(_too_small(name, split, tokens, entries[split], length))
    return entries


def _too_small(name: str, split: str, asked: int, entry: dict[str, Any], length: int) -> str:
    possible = entry["tokens"] // length * length
    lower = f"lower data.{split}_tokens to {possible} or give the domain more text" if possible else "give it more text"
    return (
        f"data.domains: '{name}' has {entry['tokens']} {split} tokens in {entry['documents']} documents, and {asked} "
        f"are asked for: {lower}"
    )


def _dtype(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def _damaged(path: Path, folder: Path) -> ConfigError:
    return ConfigError(f"{path}: missing or damaged; delete the folder {folder} and run the same command again")
