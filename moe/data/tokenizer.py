"""The byte-level BPE of a mix: trained on equal bytes of every domain, saved as a plain transformers tokenizer.

Its base alphabet is the 256 bytes, so every text of every language is encoded and decoded without loss.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from moe.settings import ConfigError

END_OF_TEXT = "<|endoftext|>"
"""Token 0: stands between documents, and serves as beginning, end, padding and unknown token."""

SAMPLE_BYTES = 1_500_000
"""Bytes of each domain that the tokenizer is trained on, if it has them: more moves few merges and takes longer."""

TOKEN_BYTES = 16
"""Longest token: without a bound, rules of dashes and stock phrases of statutes become tokens."""


def sample(texts: Iterable[str], size: int = SAMPLE_BYTES) -> Iterator[str]:
    """The first `size` UTF-8 bytes of the texts; a character that the end would split is left out."""
    for text in texts:
        content = text.encode("utf-8")
        yield text if len(content) <= size else content[:size].decode("utf-8", errors="ignore")
        size -= len(content)
        if size <= 0:
            return


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with at most `vocab_size` tokens; equal texts give an equal tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=TOKEN_BYTES,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer saved in `folder`; raises `ConfigError` if it is missing or damaged."""
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise bare exceptions for damaged files
        raise ConfigError(f"{folder}: not a readable tokenizer; delete {folder.parent} and run again") from error


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Token ids of each text; the name of a special token counts as text there, so that no text can forge an end."""
    backend = tokenizer.backend_tokenizer
    before, backend.encode_special_tokens = backend.encode_special_tokens, True
    try:
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
    finally:
        backend.encode_special_tokens = before


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """int64 [vocabulary]: UTF-8 bytes that each token stands for, 0 for special tokens.

    The sum over a text's tokens is the text's length in bytes, the denominator of bits per byte. Raises
    `ConfigError` for a tokenizer that is not byte-level, where the sum would not hold.
    """
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    sizes = np.zeros(len(tokenizer), dtype=np.int64)
    for index, added in tokenizer.added_tokens_decoder.items():
        sizes[index] = 0 if added.special else len(added.content.encode("utf-8"))
    for token, index in tokenizer.get_vocab().items():
        if index not in tokenizer.added_tokens_decoder:
            if not alphabet.issuperset(token):
                raise ConfigError(f"token {token!r} is not of a byte-level tokenizer: bits per byte cannot be counted")
            sizes[index] = len(token)
    return sizes
