"""Strategies for input that is nearly right: valid content with a few places changed."""

import copy
import datetime
from typing import Any

from hypothesis import strategies as st

# Surrogates, which YAML and JSON can spell, control characters, and characters of several bytes.
TEXT = st.text(max_size=12) | st.text(st.characters(categories=["Cs", "Cc", "Cf", "Lo", "Zl"]), max_size=4)
WORDS = st.sampled_from([
    "global", "micro", "1", "-1", "1e3", "1e400", "nan", ".inf", "inf", "0x1F", "1:30", "on", "~", "null", "true", "<<",
    "=", "!!int", "../../x", "a/b", "a\0b", "/", ".", "..", "*", "{}", "$1", "pip", "hub", "files", "kind", "source",
    "name", "data", "seed", "2001-01-01", "kjv", "arc_easy", "lambada", "heldout_last_word", "model.top_k",
    "balance.terms", "", " ", "x" * 300, "9" * 30, "9" * 5000, "a\nb", "\x1b[31m", "<b>",
])  # fmt: skip
NUMBERS = (
    st.integers(-3, 70)
    | st.integers()
    | st.floats()
    | st.sampled_from([2**31, 2**63, 2**64, 10**30, -(10**30), 10**400, 10**4000, 1e308, 5e-324])
)
LEAVES = (
    st.none() | st.booleans() | NUMBERS | WORDS | TEXT | st.sampled_from([datetime.date(2001, 1, 1), b"\xff", b"abc"])
)
JUNK = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | TEXT | NUMBERS, inner, max_size=3),
    max_leaves=6,
) | st.sampled_from([10, 40, 120]).map(lambda depth: _nested(depth))


def _nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def _places(node: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below `node`."""
    items = list(node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ())
    return [place for key, child in items for place in [(node, key), *_places(child)]]


def _near(value: Any) -> st.SearchStrategy[Any]:
    """Other values of the same type."""
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, int):
        return st.sampled_from([0, 1, 2, value + 1, value * 2, value // 2, value * 1000, str(value)])
    if isinstance(value, float):
        return st.sampled_from([0.0, 1.0, value / 2, value * 1e-9, value * 1e9, str(value)])
    if isinstance(value, list):
        return st.permutations(value) | st.just(value[:-1])
    return WORDS | TEXT if isinstance(value, str) else LEAVES


@st.composite
def mutated(draw: st.DrawFn, base: Any, most: int = 3) -> Any:
    """A copy of `base` with some values replaced, deleted, doubled, renamed or added."""
    found = copy.deepcopy(base)
    for _ in range(draw(st.integers(1, most))):
        places = _places(found)
        if not places:
            break
        node, key = places[draw(st.integers(0, len(places) - 1))]
        change = draw(st.sampled_from(["nudge"] * 5 + ["replace", "delete", "add", "double", "rename", "swap"]))
        if change == "nudge":
            node[key] = draw(_near(node[key]))
        elif change == "replace":
            node[key] = draw(JUNK)
        elif change == "swap":  # a value that is right elsewhere
            other, name = places[draw(st.integers(0, len(places) - 1))]
            node[key] = copy.deepcopy(other[name])
        elif change == "double" and isinstance(node, list):
            node.append(copy.deepcopy(node[key]))
        elif isinstance(node, list):
            del node[key]
        else:
            value = node[key] if change in ("add", "double") else node.pop(key)
            if change != "delete":
                node[draw(WORDS | TEXT | NUMBERS)] = draw(JUNK) if change == "add" else value
    return found


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes with some of them overwritten, removed, repeated or put in."""
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.sampled_from([0, 1, 1, 2, 4, 16, 300])))
        piece = draw(
            st.binary(max_size=4) | st.sampled_from([b"\0", b"\n", b'"', b"\\ud800", b"[" * 2000, b"9" * 5000])
        )
        piece = draw(st.sampled_from([piece, b"", content[start:end] * 2]))
        content = content[:start] + piece + content[end:]
    return content
