"""What a configuration may be made of: text, finite numbers, true, false, null, lists and sections, and not many.

YAML can say far more than that in a few lines. Whatever passes `complaint` can be copied, printed, hashed, written as
JSON and shown in a report.
"""

import math
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError
from yaml.reader import Reader

MOST_CHARACTERS = 1 << 18
"""Largest configuration, in bytes of its YAML, and in characters and values once the aliases are written out."""
DEEPEST = 32
"""Most sections and lists inside each other."""


class Loader(yaml.SafeLoader):
    """YAML without tags, and without merge keys: a few lines of them fill the memory before anything can be counted."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise ComposerError(None, None, f"the tag '{event.tag}' is not supported", event.start_mark)
        return super().compose_node(parent, index)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise ConstructorError(None, None, "merge keys are not supported", key.start_mark)


def complaint(raw: Any) -> str:
    """Why `raw` is not plain data of a sensible size; empty if it is.

    YAML's aliases let a short file stand for billions of values, so this comes before all that copies or prints them.
    """
    size = 1
    stack: list[tuple[tuple[Any, ...], Any]] = [((), raw)]
    while stack:
        path, value = stack.pop()
        children = list(value.items() if isinstance(value, dict) else enumerate(value) if _is_list(value) else ())
        keys = list(value) if isinstance(value, dict) else []
        size += len(children) + sum(len(text) for text in (value, *keys) if isinstance(text, str))
        if size > MOST_CHARACTERS:
            return f"stands for more than {MOST_CHARACTERS:,} characters and values: shorten it"
        problem = "is nested too deeply" if len(path) > DEEPEST else _problem(value, keys)
        if problem:
            return f"'{'.'.join(map(str, path))}' {problem}" if path else problem
        stack += [((*path, key), child) for key, child in children]
    return ""


def _problem(value: Any, keys: list[Any]) -> str:
    """What makes one value something else than text, a number, true, false, null, a list, or a section with `keys`."""
    for key in keys:
        if not isinstance(key, str):
            return f"has a key that is of type {type(key).__name__}: put the key in quotes"
    for text in (value, *keys):
        if isinstance(text, str) and (odd := Reader.NON_PRINTABLE.search(text)):
            return f"holds the character {odd[0]!r}: remove it"
    if isinstance(value, int) and abs(value) >= 1 << 63:
        return "is too large a number"
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be a finite number, got {value}"
    if not (value is None or isinstance(value, (str, int, float, dict)) or _is_list(value)):
        return f"is of type {type(value).__name__}: put the value in quotes"
    return ""


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))
