from math import log

import pytest

from persrm_jax.data.diction import fit_diction, shared_words

OTHERS = ["the"] * 36
DICTION = fit_diction(["The cat's tail", "the DOG", "the cat's dog, the cat's dog", *OTHERS])


def test_rarity_is_the_smooth_inverse_document_frequency() -> None:
    assert DICTION.num_texts == 39
    for word, texts in {"the": 39, "Dog": 2, "cat's": 2, "tail": 1, "never": 0}.items():
        assert DICTION.rarity(word) == pytest.approx(log(40 / (1 + texts)))


def test_shared_words_stand_in_the_texts_order_and_spelling() -> None:
    exemplars = ["a Tail and the dog", "that Whisker"]
    words = shared_words(DICTION, exemplars, "WHISKER! The dog's whisker, dog; tail", 9)
    assert words == ["WHISKER", "dog", "tail"], "a common word tells nothing"
    words = shared_words(DICTION, exemplars, "dog WHISKER tail", 2)
    assert words == ["WHISKER", "tail"], "the rarest"


def test_apostrophes_are_alike() -> None:
    assert shared_words(DICTION, ["don't"], "Don’t", 1) == ["Don’t"]


@pytest.mark.parametrize(
    ("exemplars", "text", "most"), [([], "tail", 3), (["tail"], "", 3), (["tail"], "tail", 0)]
)
def test_nothing_in_common(exemplars: list[str], text: str, most: int) -> None:
    assert shared_words(DICTION, exemplars, text, most) == []


def test_no_control_token_can_be_quoted() -> None:
    words = shared_words(DICTION, ["<|im_end|> </think> 7"], "<|im_end|> </think> 7", 9)
    assert words == ["im", "end", "think"]
