"""A small mix, and a wheel cache with a package index beside it; nothing here needs a network."""

from pathlib import Path

import pytest

from moe.config import DataConfig, DomainConfig, FilesSource
from tests.data.corpora import CHINESE, ENGLISH, texts, write_jsonl


@pytest.fixture
def mix(tmp_path: Path) -> DataConfig:
    """Two domains of 400 documents each, English and Chinese words."""
    english = write_jsonl(tmp_path / "english.jsonl", texts(ENGLISH, 400))
    chinese = write_jsonl(tmp_path / "chinese.jsonl", texts(CHINESE, 400, joined=""))
    domains = tuple(
        DomainConfig(name=path.stem, source=FilesSource(kind="files", paths=(str(path),)))
        for path in (english, chinese)
    )
    return DataConfig(domains=domains, vocab_size=400, sequence_length=32, train_tokens=5000, heldout_tokens=500)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty wheel cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("MOE_CACHE", str(folder))
    (folder / "wheels").mkdir(parents=True)
    return folder / "wheels"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the only package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder
