"""Three or four words give way to synonyms; whatever else changes is found."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persrm_jax.data.minor import minor_fault, replace_words
from persrm_jax.data.synonyms import SYNONYMS

TEXT = (
    "The company said it expected a big rise in profits.\n\n"
    "Many people were afraid, but Mr. Strong's workers began at once: 'It is a strange story,' "
    "said Strong. In 1996 the firm bought 1,200 shops."
)
WORDS = st.sampled_from(
    [*sorted(SYNONYMS)[::7], "the", "a", "an", "I", "NATO", "Paris", "12", "it"]
)
GAPS = st.sampled_from([" ", " ", " ", ", ", ". ", "! ", "\n\n", ' "', "; ", " - "])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(words=st.lists(st.tuples(WORDS, st.booleans(), GAPS), max_size=40), seed=st.integers(0, 99))
def test_what_the_list_replaces_is_proved(words: list[tuple[str, bool, str]], seed: int) -> None:
    text = "".join((w.capitalize() if up else w) + gap for w, up, gap in words)
    changed = replace_words(text, np.random.default_rng(seed))
    assert changed == replace_words(text, np.random.default_rng(seed))
    if changed is not None:
        assert minor_fault(text, changed) is None
    else:
        # Small words that the list knows are never names; an article before may forbid some.
        before = ["", *(w for w, _, _ in words)]
        known = [
            w
            for (w, up, _), article in zip(words, before, strict=False)
            if w in SYNONYMS and not up and article not in ("a", "an")
        ]
        assert len(known) < 3


def test_a_text_by_hand() -> None:
    found = {replace_words(TEXT, np.random.default_rng(seed)) for seed in range(200)}
    assert len(found) > 50
    seen = set()
    for changed in found:
        assert changed is not None
        assert "Mr. Strong's" in changed
        assert "said Strong" in changed or "stated Strong" in changed
        assert "1996" in changed and "1,200" in changed
        olds, news = TEXT.split(), changed.split()
        differing = [(a, b) for a, b in zip(olds, news, strict=True) if a != b]
        assert len(differing) in (3, 4)
        seen.update(differing)
    assert ("Many", "Numerous") in seen and ("company", "firm") in seen
    # "a big rise": an article keeps its vowel, as in "a strange story" -> "a odd story".
    assert not {b for _, b in seen} & {"odd", "enormous"}


@pytest.mark.parametrize("name", ["Mr. Hill", "J. Hill", "St. Stone", "in Battle", "NATO"])
def test_names_stay(name: str) -> None:
    text = f"A company said {name} bought several shops and many stones."
    for seed in range(60):
        changed = replace_words(text, np.random.default_rng(seed))
        assert changed is not None and name in changed
    assert "changes a name" in str(
        minor_fault(
            text,
            text.replace(name, name[:-4] + "Slop")
            .replace("company", "firm")
            .replace("said", "stated"),
        )
    )


def test_too_few_words_that_are_known() -> None:
    assert replace_words("The company said nothing of it.", np.random.default_rng(0)) is None
    assert replace_words("", np.random.default_rng(0)) is None


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("", "", "changes 0 words"),
        ("said it expected", "stated it awaited", "changes 2 words, not 3 to 4"),
        ("said it expected a big rise", "stated he awaited one large climb", "changes 6 words"),
        ("people were", "folk", "words, not"),
        ("profits.", "profits!", "changes spaces or punctuation"),
        (".\n\nMany", ". Many", "changes spaces or punctuation"),
        ("said it expected a big", "said it awaited 1 large", "changes a number: a, 1"),
        ("1996 the firm bought", "1997 the company purchased", "changes a number: 1996, 1997"),
        ("said Strong. In 1996 the firm", "stated Weak. In 1996 the company", "changes a name"),
        ("said it expected a big", "Stated it awaited a large", "changes the case of a word"),
        ("said it expected a big", "SAID it awaited a large", "changes the case of a word"),
    ],
)
def test_faults_by_hand(old: str, new: str, fault: str) -> None:
    found = minor_fault(TEXT, TEXT.replace(old, new, 1) if old else TEXT)
    assert found is not None and fault in found


def test_the_list_is_sound() -> None:
    """No word in two groups, none that its capital would change, all of one word."""
    assert len(SYNONYMS) > 600
    for word, others in SYNONYMS.items():
        assert word.isalpha() and word.islower() and others and word not in others
        assert all(word in SYNONYMS[other] for other in others)
