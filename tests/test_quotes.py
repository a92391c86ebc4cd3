"""benchmarks/quotes.py by hand."""

import pytest

from benchmarks.quotes import measure
from persrm_jax.types import Order, Pair, Prediction, Verdict

PAIR = Pair(
    pair_id="p",
    author="ann",
    author_split="test",
    domain="letters",
    prompt="",
    exemplars=("the heron waits", "a kettle's song"),
    exemplar_ids=("e0", "e1"),
    chosen="Heron and kettle's lid",
    chosen_id="c",
    rejected="the lamp waits",
    rejected_id="r",
    rejected_author="bob",
    negative_type="other_author",
    order="AB",
    writer="human",
    seed=0,
)
TEXTS = ["the heron waits", "a kettle's song", *["the lid and a lamp"] * 18]
"""`the`, `a`, `and`, `lid` and `lamp` are common."""


def said(order: Order, words: str, verdict: Verdict) -> Prediction:
    a, b = (9.0, 1.0) if verdict == "A" else (1.0, 9.0)
    text = f"<think>\nwords shared with the person: {words}\n</think>"
    return Prediction("p", order, "4", "rft", 0, 0, a, b, verdict, True, 9, text)


def test_what_is_quoted_counted_and_concluded() -> None:
    found = measure(
        [PAIR],
        [
            # All true, all found, and it follows; `waits` is in the rejected text too.
            said("AB", "A Heron, kettle's (2); B waits (1); nearer: A", "A"),
            # In the other order: one word is in no exemplar, one in no candidate, one count is
            # wrong, and the verdict follows neither the counts nor its scores.
            said("BA", "A lamp, moon (3); B Heron (1); nearer: B", "A"),
            # Nothing to follow.
            said("AB", "A none (0); B none (0); nearer: A", "A"),
            said("AB", "A none; B none", "A"),
        ],
        TEXTS,
        most=6,
    )
    assert found == {
        "judgements": 3,
        "quotes in the candidate": pytest.approx(5 / 6),
        "quotes in the candidate and the exemplars": pytest.approx(4 / 6),
        "telling words quoted": pytest.approx(4 / 9),
        "counts right": pytest.approx(5 / 6),
        "counts unequal": pytest.approx(2 / 3),
        "verdict follows unequal counts": pytest.approx(1 / 2),
        "scores follow the verdict": pytest.approx(2 / 3),
        "verdict right": 1.0,
        "scores prefer A": 1.0,
    }


def test_judgements_that_quote_nothing() -> None:
    with pytest.raises(ValueError, match="no judgement quotes words"):
        measure([PAIR], [said("AB", "none at all", "A")], TEXTS, most=6)
