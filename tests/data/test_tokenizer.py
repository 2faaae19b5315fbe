"""The tokenizer loses nothing, counts bytes exactly and reloads as a stock tokenizer."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from moe.data.tokenizer import END_OF_TEXT, encode, load_tokenizer, sample, token_bytes, train_tokenizer
from moe.settings import ConfigError
from tests.data.corpora import CHINESE, ENGLISH, texts

TRAINING = texts(ENGLISH, 200) + texts(CHINESE, 200, joined="")
TOKENIZER = train_tokenizer(TRAINING, 500)
SIZES = token_bytes(TOKENIZER)
REAL = "Gradients ∂L/∂w ≈ 0 — naïve café, 第一条　为了保护专利权人的合法权益，🙂\r\n\tdef f(x):\n        return x  \n"


@given(st.text() | st.text(alphabet="<|endoftext|> \n第Ġ"))
def test_any_text_round_trips_and_its_tokens_sum_to_its_bytes(text: str) -> None:
    (ids,) = encode(TOKENIZER, [text])
    assert TOKENIZER.decode(ids) == text
    assert SIZES[ids].sum() == len(text.encode("utf-8"))
    assert TOKENIZER.eos_token_id not in ids


def test_real_text_round_trips_through_the_saved_stock_tokenizer(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    for stock in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)):
        ids = stock(REAL)["input_ids"]
        assert [ids] == encode(TOKENIZER, [REAL])
        assert stock.decode(ids) == REAL
        assert SIZES[ids].sum() == len(REAL.encode("utf-8"))


def test_end_of_text_is_token_zero_and_stands_for_no_bytes() -> None:
    special = (TOKENIZER.bos_token_id, TOKENIZER.eos_token_id, TOKENIZER.pad_token_id, TOKENIZER.unk_token_id)
    assert special == (0, 0, 0, 0)
    assert TOKENIZER.convert_ids_to_tokens(0) == END_OF_TEXT
    assert SIZES[0] == 0
    assert SIZES[1:].min() == 1


def test_encoding_documents_leaves_the_tokenizer_as_it_was() -> None:
    encode(TOKENIZER, ["text"])
    assert TOKENIZER(END_OF_TEXT)["input_ids"] == [0]


def test_vocabulary_has_the_asked_size_and_learns_chinese_words() -> None:
    assert len(TOKENIZER) == len(SIZES) == 500
    assert len(encode(TOKENIZER, ["应当"])[0]) == 1


def test_equal_texts_give_an_equal_tokenizer() -> None:
    again = train_tokenizer(TRAINING, 500)
    assert again.backend_tokenizer.to_str() == TOKENIZER.backend_tokenizer.to_str()


def test_sample_takes_whole_characters_up_to_its_bytes() -> None:
    assert list(sample(["ab", "第一"], size=6)) == ["ab", "第"]
    assert list(sample(["ab", "第一", "c"], size=8)) == ["ab", "第一"]
    assert list(sample(["ab"], size=8)) == ["ab"]


def test_bytes_of_a_tokenizer_that_is_not_byte_level_are_refused() -> None:
    sentencepiece = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"▁the": 0}, [])))
    with pytest.raises(ConfigError, match="'▁the' is not of a byte-level tokenizer"):
        token_bytes(sentencepiece)


def test_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match="not a readable tokenizer"):
        load_tokenizer(tmp_path / "tokenizer")
