"""How settings are read, checked, named and, where they are wrong, refused with one sentence."""

import difflib
import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from moe.plain import MOST_CHARACTERS, Loader, complaint

SENTENCE_CHARACTERS = 1000
"""Longest message of an error; of a longer one the middle is left out."""


class ConfigError(ValueError):
    """A mistake in a configuration that its author can repair; the message is one sentence in one printable line."""

    def __init__(self, sentence: str) -> None:
        line = " ".join(sentence.split())
        # Names come from files: what a terminal would obey is spelled out.
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
        if len(line) > SENTENCE_CHARACTERS:
            line = f"{line[: SENTENCE_CHARACTERS - 305]} ... {line[-300:]}"
        super().__init__(line)


Schema = TypeVar("Schema", bound=BaseModel)


class Settings(BaseModel):
    """Base of every section: frozen, no unknown keys, field docstrings become descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


def canonical_json(settings: BaseModel) -> str:
    """The settings that differ from the schema's defaults, in one fixed spelling: equal settings, equal text."""
    dump = settings.model_dump(mode="json", exclude_defaults=True)
    return json.dumps(dump, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def digest(settings: BaseModel) -> str:
    """Short content hash; a new field with a neutral default leaves it as it is."""
    return hashlib.sha256(canonical_json(settings).encode()).hexdigest()[:8]


def parse(schema: type[Schema], raw: Any, where: str) -> Schema:
    """Validate `raw` as `schema`; raises `ConfigError` with one sentence that names `where`, the key and the remedy."""
    if problem := complaint(raw):
        raise ConfigError(f"{where}: {problem}")
    try:
        settings = schema.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_sentence(schema, error.errors()[0])}") from None
    if problem := complaint(settings.model_dump()):  # a number may have been text before
        raise ConfigError(f"{where}: {problem}")
    return settings


def read_yaml(schema: type[Schema], path: Path) -> Schema:
    """Read one YAML file as `schema`; raises `ConfigError`."""
    content = _content(path, MOST_CHARACTERS)
    try:
        raw = yaml.load(content.decode("utf-8"), Loader)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid YAML ({error})") from None
    return parse(schema, raw, str(path))


def read_json(schema: type[Schema], path: Path) -> Schema:
    """Read one JSON file as `schema`; raises `ConfigError`."""
    content = _content(path, 16 * MOST_CHARACTERS)  # defaults and indents are written out, a character has four bytes
    try:
        raw = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        raise ConfigError(f"{path}: not valid JSON; delete it and run the same command again") from None
    return parse(schema, raw, str(path))


def _content(path: Path, most: int) -> bytes:
    """The file, if it has at most `most` bytes; of an endless one no more is read."""
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    if len(content) > most:
        raise ConfigError(f"{path}: has more than {most:,} bytes, so it is no configuration")
    return content


def _sentence(schema: type[BaseModel], error: Any) -> str:
    """One sentence for pydantic's first error, with the nearest valid key for an unknown one."""
    # After the key of a source pydantic names the kind that it was checked as.
    loc = [part for before, part in zip(("", *error["loc"]), error["loc"], strict=False) if before != "source"]
    key = ".".join(str(part) for part in loc)
    if error["type"] == "extra_forbidden":
        valid = _keys_at(schema, loc[:-1])
        near = difflib.get_close_matches(str(loc[-1]), valid, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"valid keys are {', '.join(valid)}"
        return f"unknown key '{key}'; {hint}"
    if error["type"] == "missing":
        return f"'{key}' is missing"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return (
        f"'{key}': {error['msg']}, got {error['input']!r:.80}" if key else f"{error['msg']}, got {error['input']!r:.80}"
    )


def _keys_at(schema: type[BaseModel], loc: list[str | int]) -> list[str]:
    """Valid keys of the section at `loc`, found in the JSON schema."""
    document = schema.model_json_schema()
    nodes = [document]
    for part in loc:
        nodes = [child for node in nodes for child in _children(document, node, part)]
    return sorted({key for node in nodes for key in _resolve(document, node).get("properties", {})})


def _resolve(document: dict, node: dict) -> dict:
    return document["$defs"][node["$ref"].split("/")[-1]] if "$ref" in node else node


def _children(document: dict, node: dict, part: str | int) -> list[dict]:
    node = _resolve(document, node)
    if isinstance(part, int):
        found = [node["items"]] if "items" in node else []
    elif part in node.get("properties", {}):
        found = [node["properties"][part]]
    else:
        extra = node.get("additionalProperties")
        found = [extra] if isinstance(extra, dict) else []
    return [option for child in found for option in (child.get("anyOf") or child.get("oneOf") or [child])]
