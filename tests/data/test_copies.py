"""Words, their hashes, near copies."""

import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from persrm_jax.data.copies import five_grams, is_near_copy
from persrm_jax.data.words import words_of

WORDS = [a + b + c for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]
_WORD = re.compile(r"(?:[a-z0-9]|[^\x00-\x7f])+")


def _grams(text: str) -> np.ndarray:
    return five_grams(words_of(text))


@given(st.text(alphabet="aB1 .'\nÉж語", max_size=200), st.text(alphabet="aB1 .", max_size=60))
def test_equal_words_have_equal_hashes_and_others_do_not(first: str, second: str) -> None:
    text = f"{first} {second}"
    spelled = _WORD.findall(text.lower())
    words = words_of(text)
    assert words.lengths.tolist() == [len(word.encode()) for word in spelled]
    assert words.initials.tolist() == [word.encode()[0] for word in spelled]
    assert len(set(words.hashes.tolist())) == len(set(spelled))
    by_word = dict(zip(spelled, words.hashes.tolist(), strict=True))
    assert [by_word[word] for word in spelled] == words.hashes.tolist()
    runs = {tuple(spelled[i : i + 5]) for i in range(len(spelled) - 4)}
    assert len(_grams(text)) == len(runs)


def test_hashes_are_the_same_in_every_process() -> None:
    code = (
        "from persrm_jax.data.words import words_of;"
        "print(words_of('One day, ONE déjà-vu').hashes.tolist())"
    )
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == f"{words_of('one day one DÉJÀ vu').hashes.tolist()}\n"


@pytest.mark.parametrize(
    ("shared", "length", "copy"),
    # Texts of `length` words have length - 4 five-grams, and share those of their first words.
    [(9, 14, True), (8, 14, False), (10, 17, True), (9, 17, False), (14, 14, True), (0, 14, False)],
)
def test_near_copies_by_hand(shared: int, length: int, copy: bool) -> None:
    first = " ".join(WORDS[:length])
    second = " ".join([*WORDS[:shared], *WORDS[50 : 50 + length - shared]])
    ours = max(shared - 4, 0)
    assert (ours / (2 * (length - 4) - ours) >= 0.3) == copy
    assert is_near_copy(_grams(first), _grams(second.upper())) == copy
    assert not is_near_copy(_grams("a b c d"), _grams("a b c d"))
