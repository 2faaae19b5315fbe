"""Which documents there are: empty and repeated ones dropped, each one train or held-out text by its own hash."""

import hashlib
from collections.abc import Iterator

from moe.config import Source
from moe.data.sources import documents

HELDOUT_SHARE = 16
"""One in this many documents is held out."""

BLOCK_BYTES = 32 << 20
"""UTF-8 bytes of documents that are shuffled together; it bounds the memory for a source of any size."""


def document_key(text: str) -> int:
    """64-bit hash of the text that does not see how it is spaced: equal keys mean the same document."""
    return int.from_bytes(hashlib.blake2b(" ".join(text.split()).encode("utf-8"), digest_size=8).digest(), "big")


def split_of(key: int) -> str:
    """`train` or `heldout`, by the document's content alone: adding documents to a source moves none."""
    return "train" if key % HELDOUT_SHARE else "heldout"


class DistinctDocuments:
    """Pairs of split and text of a source, without empty and repeated documents, in the order of their keys.

    The order is that of a shuffle: neighbours in the source part. It holds within blocks of `BLOCK_BYTES`.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        # Of the latest pass, so far: distinct documents read, repeated ones dropped, UTF-8 bytes of the distinct ones.
        self.documents = self.duplicates = self.bytes = 0

    def __iter__(self) -> Iterator[tuple[str, str]]:
        self.documents = self.duplicates = self.bytes = 0
        seen: set[int] = set()
        block: list[tuple[int, str]] = []
        end = BLOCK_BYTES
        for text in documents(self.source):
            if not text or text.isspace():
                continue
            key = document_key(text)
            if key in seen:
                self.duplicates += 1
                continue
            seen.add(key)
            block.append((key, text))
            self.documents += 1
            self.bytes += len(text.encode("utf-8"))
            if self.bytes >= end:
                yield from _shuffled(block)
                block, end = [], self.bytes + BLOCK_BYTES
        yield from _shuffled(block)


def _shuffled(block: list[tuple[int, str]]) -> Iterator[tuple[str, str]]:
    return ((split_of(key), text) for key, text in sorted(block))
