"""Which documents are used, and on which side, depends on their content alone."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from moe.config import FilesSource
from moe.data.distinct import HELDOUT_SHARE, DistinctDocuments, document_key, split_of
from tests.data.corpora import ENGLISH, texts, write_jsonl


def distinct(path: Path, documents: list[str]) -> DistinctDocuments:
    return DistinctDocuments(FilesSource(kind="files", paths=(str(write_jsonl(path, documents)),)))


@given(st.lists(st.text(alphabet="ab第", min_size=1), min_size=1), st.sampled_from([" ", "\n", "\t\t", " \r\n "]))
def test_key_does_not_see_how_words_are_spaced(words: list[str], space: str) -> None:
    assert document_key(" ".join(words)) == document_key(f" {space.join(words)}\n")


def test_key_sees_words_and_their_borders() -> None:
    assert len({document_key(text) for text in ("a b", "ab", "b a", "A b")}) == 4


def test_repeated_and_empty_documents_are_dropped_and_counted(tmp_path: Path) -> None:
    found = distinct(tmp_path / "a.jsonl", ["a b", "", " \n", "a  b\n", "c", "a b"])
    assert sorted(text for _, text in found) == ["a b", "c"]
    assert (found.documents, found.duplicates, found.bytes) == (2, 2, 4)


def test_second_pass_gives_the_same_documents_and_counts(tmp_path: Path) -> None:
    found = distinct(tmp_path / "a.jsonl", texts(ENGLISH, 50))
    first = list(found), found.documents, found.bytes
    assert (list(found), found.documents, found.bytes) == first


def test_added_documents_move_none(tmp_path: Path) -> None:
    documents = texts(ENGLISH, 300)
    before = list(distinct(tmp_path / "a.jsonl", documents[:200]))
    after = list(distinct(tmp_path / "b.jsonl", documents))
    old = set(before)
    assert [pair for pair in after if pair in old] == before


def test_order_of_the_source_does_not_matter(tmp_path: Path) -> None:
    documents = texts(ENGLISH, 200)
    shuffled = list(distinct(tmp_path / "a.jsonl", documents))
    assert shuffled == list(distinct(tmp_path / "b.jsonl", documents[::-1]))
    assert [text for _, text in shuffled] != documents


def test_held_out_share_is_near_its_target() -> None:
    held = sum(split_of(document_key(str(n))) == "heldout" for n in range(16_000))
    # Binomial: 1000 expected, standard deviation 31; five of them.
    assert abs(held - 16_000 / HELDOUT_SHARE) < 155
