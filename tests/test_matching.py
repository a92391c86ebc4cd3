"""Strings are found in tokens, however they are cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persrm_jax.matching import match_table
from persrm_jax.tokenizer import byte_tokenizer, train_tokenizer

LETTERS = st.text("abé", min_size=1, max_size=4)


def first_match(table: np.ndarray, tokens: list[int]) -> int | None:
    state = 0
    for i, token in enumerate(tokens):
        state = table[state, token]
        if state == len(table) - 1:
            return i
    return None


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    strings=st.lists(LETTERS, min_size=1, max_size=3),
    pieces=st.lists(st.text("abé", max_size=3), min_size=1, max_size=4),
    data=st.data(),
)
def test_a_match_is_where_the_text_first_contains_a_string(
    strings: list[str], pieces: list[str], data: st.DataObject
) -> None:
    tokens = data.draw(st.lists(st.integers(0, len(pieces) - 1), max_size=12))
    table = match_table(strings, [piece.encode() for piece in pieces])
    text, want = "", None
    for i, token in enumerate(tokens):
        text += pieces[token]
        if want is None and any(string in text for string in strings):
            want = i
    assert first_match(table, tokens) == want


def test_a_string_is_found_within_a_letter_of_several_bytes() -> None:
    table = match_table(["é"], [b"\xc3", b"\xa9", b"x"])
    assert first_match(table, [0, 2, 0, 1]) == 3


def test_an_empty_string_is_refused() -> None:
    with pytest.raises(ValueError, match="a stop string is empty"):
        match_table(["a", ""], [b"a"])


@pytest.mark.parametrize("vocabulary", ["bytes", "merged"])
def test_tokens_spell_what_they_decode_to(vocabulary: str) -> None:
    text = "She said: naïve </think> 12 ☕, won't she?\n"
    tokenizer = byte_tokenizer() if vocabulary == "bytes" else train_tokenizer([text] * 3, 300)
    spellings = tokenizer.token_bytes()
    assert len(spellings) == tokenizer.vocab_size
    ids = tokenizer.encode(text)
    assert b"".join(spellings[i] for i in ids) == text.encode()
    assert vocabulary == "bytes" or len(ids) < len(text.encode())
    assert all(spellings[i] == b"" for i in (*tokenizer.end_ids, tokenizer.pad_id))
    table = match_table(["</think>"], spellings)
    at = first_match(table, ids)
    assert at is not None
    assert tokenizer.decode(ids[: at + 1]).rstrip().endswith("</think>")
    assert "</think>" not in tokenizer.decode(ids[:at])
