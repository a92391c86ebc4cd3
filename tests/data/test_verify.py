"""Written negatives that are not what was asked for are told, and why."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persrm_jax.data.verify import VerifyConfig, find_fault, latin_share, run_overlap

OWN = (
    "I walked down to the harbour this morning, before the boats had gone out, and counted eleven "
    "gulls on the sea wall. Nobody else was about. The wind had turned in the night."
)
LIKE = (
    "We climbed up to the chapel last evening, after the shops had closed, and counted seven crows "
    "on the slate roof. Nobody spoke to us. The rain had stopped by then, more or less."
)
CFG = VerifyConfig()


@pytest.mark.parametrize("kind", ["mimic", "random"])
def test_a_text_of_its_own_is_taken(kind: str) -> None:
    assert find_fault(kind, OWN, LIKE, CFG) is None
    # Words that a refusal or a preamble has too, in the middle of a story.
    for start in (
        "Sure enough, he came. ",
        "I cannot help loving it. ",
        "Here is the church, here the tower. ",
        "This is how it began. ",
        "Sorry sight as it was, we stayed. ",
        "Certainly he knew, she said. ",
    ):
        assert find_fault(kind, OWN, start + LIKE, CFG) is None, start


@pytest.mark.parametrize(
    ("written", "fault"),
    [
        ("", "too short: 0 words"),
        ("Nobody else was.", "too short: 3 words"),
        ("Sure! " + LIKE, "preamble: 'Sure!'"),
        ("Sure, here is a text in that style: " + LIKE, "preamble: "),
        ("Here's a version in the author's style:\n\n" + LIKE, "preamble: "),
        ("**Rewritten:** " + LIKE, "preamble: "),
        ("If you like it formal, here is another one:\n\n" + LIKE, "preamble: "),
        ("Odd words are to be avoided. Here's a revision:\n" + LIKE, "preamble: "),
        ("The above text is an example. " + LIKE, "preamble: "),
        ("I'm sorry, but I can't imitate that person. " + LIKE, "refusal: "),
        ("As an AI language model, I have no harbour. " + LIKE, "refusal: "),
        ("I cannot help with that request. " + LIKE, "refusal: "),
        ("```\n" + LIKE + "\n```", "markup: "),
        ("<think>they like gulls</think> " + LIKE, "markup: "),
        (LIKE + " [Your Name]", "markup: "),
        (LIKE + " " + LIKE, "length: 2.06 of"),
        ("We climbed up to the chapel.", "length: 0.18 of"),
        (OWN, "copy: 100%"),
        (OWN.upper().replace(",", ""), "copy: 100%"),
        (OWN[:90] + LIKE[90:], "copy: "),
        ("Мы поднялись к часовне вчера вечером, когда закрылись лавки, и насчитали семь ворон "
         "на крыше. Никто с нами не говорил. Дождь уже почти перестал, и стало тихо в долине.",
         "script: 0% of"),
    ],
)  # fmt: skip
def test_faults_by_hand(written: str, fault: str) -> None:
    found = find_fault("mimic", OWN, written, CFG)
    assert found is not None and found.startswith(fault), found


def test_a_minor_replacement_is_proved_by_its_words() -> None:
    assert find_fault("minor", OWN, LIKE, CFG) == "not minor: has 34 words, not 33"
    changed = OWN.replace("walked", "strolled").replace("before", "until").replace("night", "dark")
    assert find_fault("minor", OWN, changed, CFG) is None


def test_nobody_writes_another_persons_text() -> None:
    with pytest.raises(ValueError, match="other_author: nobody writes"):
        find_fault("other_author", OWN, LIKE, CFG)


def test_measures_by_hand() -> None:
    assert run_overlap("a b c d e f", "A, b c! d e") == 1
    assert run_overlap("a b c d e f", "x b c d e f y") == pytest.approx(1 / 3)
    assert (
        run_overlap("a b", "b") == 1 and run_overlap("", "a b") == 0 and run_overlap("a", "") == 0
    )
    assert (
        latin_share("né à 12 Paris") == 1 and latin_share("да ok") == 0.5 and latin_share("1!") == 1
    )


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    text=st.text(max_size=200),
    written=st.text(max_size=400),
    kind=st.sampled_from(["mimic", "random", "minor"]),
)
def test_anything_gets_a_verdict(text: str, written: str, kind: str) -> None:
    found = find_fault(kind, text, written, CFG)
    assert found is None or ":" in found


@pytest.mark.parametrize(
    ("fields", "flag"),
    [
        ({"max_overlap": 0.0}, "--written.verify.max-overlap 0.0"),
        ({"max_length_ratio": 0.9}, "ratio 0.9"),
    ],
)
def test_a_bad_config_names_its_flag(fields: dict[str, float], flag: str) -> None:
    with pytest.raises(ValueError, match=flag):
        VerifyConfig(**fields)
