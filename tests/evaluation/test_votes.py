"""Votes and mean scores by hand."""

from dataclasses import replace

import pytest

from persrm_jax.evaluation.votes import mean_score, vote
from persrm_jax.types import Order, Prediction, Verdict

NOTHING = Prediction("p1", "AB", "1", "rft", 0, 0, None, None, None, False, 5, "text")


def sample(number: int, a: float | None, b: float | None, order: Order = "AB") -> Prediction:
    if a is None or b is None:
        return replace(NOTHING, sample=number, order=order)
    verdict: Verdict = "tie" if a == b else "A" if a > b else "B"
    return replace(
        NOTHING, sample=number, order=order, score_a=a, score_b=b, verdict=verdict, parsed=True
    )


SAMPLES = [sample(0, 6.0, 5.0), sample(1, 2.0, 9.0), sample(2, 7.0, 5.0), sample(3, None, None)]


def verdicts(found: list[Prediction]) -> list[Verdict | None]:
    return [p.verdict for p in found]


def test_the_majority_and_the_mean_may_disagree() -> None:
    assert verdicts(vote(SAMPLES, 4)) == ["A"]
    # Means 5 and 19/3.
    (averaged,) = mean_score(SAMPLES, 4)
    assert averaged.verdict == "B"
    assert (averaged.score_a, averaged.score_b) == (5.0, pytest.approx(19 / 3))
    assert averaged.tokens == 20


def test_turns_take_the_samples_in_order_and_leave_the_rest() -> None:
    assert verdicts(vote(SAMPLES[::-1], 2)) == ["tie", "A"]
    assert [p.sample for p in vote(SAMPLES, 2)] == [0, 1]
    assert verdicts(vote(SAMPLES, 3)) == ["A"]
    assert verdicts(vote(SAMPLES, 1)) == [p.verdict for p in SAMPLES]
    assert verdicts(mean_score(SAMPLES, 2)) == ["B", "A"]


def test_orders_are_judgements_of_their_own() -> None:
    other = [replace(p, order="BA") for p in SAMPLES]
    assert [(p.order, p.verdict) for p in vote([*SAMPLES, *other], 4)] == [("AB", "A"), ("BA", "A")]


def test_what_never_parses_has_no_verdict() -> None:
    blank = [sample(i, None, None) for i in range(3)]
    for combined in (vote(blank, 3), mean_score(blank, 3)):
        assert verdicts(combined) == [None] and not combined[0].parsed


def test_too_few_samples_and_no_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="pair p1, order AB: 4 samples, not 5"):
        vote(SAMPLES, 5)
    named = [replace(SAMPLES[0], score_a=None, score_b=None)]
    assert verdicts(vote(named, 1)) == ["A"]
    with pytest.raises(ValueError, match="answers have none"):
        mean_score(named, 1)
