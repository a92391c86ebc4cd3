"""Scorers whose faults are known: the statistics and the table show each for what it is."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from persrm_jax.data.pairs import make_test_pairs, with_wrong_author
from persrm_jax.data.personas import PersonaConfig, make_personas
from persrm_jax.data.prompts import BOTH_ORDERS
from persrm_jax.data.splits import PairConfig
from persrm_jax.evaluation.audit import audit
from persrm_jax.evaluation.baselines import baseline_predictions
from persrm_jax.evaluation.report import COLUMNS, Row, markdown_table
from persrm_jax.evaluation.statistics import Accuracy, Difference, paired_difference, summarize
from persrm_jax.types import Order, Pair, Prediction, Verdict

DOCUMENTS = make_personas(PersonaConfig(num_personas=40, texts=8, clauses=6), 1)
PAIRS = make_test_pairs(
    DOCUMENTS, PairConfig(num_test=400, num_exemplars=2, negatives=("other_author",)), 1
)
OWN, WRONG = "2", "wrong_author"
Scorer = Callable[[Pair, Order], Verdict]


def judged(scorer: Scorer, pairs: Sequence[Pair], condition: str = OWN) -> list[Prediction]:
    return [
        Prediction(
            pair_id=pair.pair_id,
            order=order,
            condition=condition,
            model="planted",
            seed=0,
            sample=0,
            score_a=None,
            score_b=None,
            verdict=scorer(pair, order),
            parsed=True,
            tokens=0,
            completion="",
        )
        for pair in pairs
        for order in BOTH_ORDERS
    ]


def by(number: Callable[[str], float]) -> Scorer:
    """Prefers the text of which a number is larger, whatever the exemplars."""

    def score(pair: Pair, order: Order) -> Verdict:
        a, b = map(number, pair.candidates(order))
        return "tie" if a == b else "A" if a > b else "B"

    return score


def with_control(scorer: Scorer, pairs: Sequence[Pair]) -> tuple[Accuracy, Accuracy, Difference]:
    """Accuracy with the person's exemplars, with a third author's, and their difference."""
    own = judged(scorer, pairs)
    wrong = judged(scorer, with_wrong_author(pairs, 5), WRONG)
    return summarize(own, pairs), summarize(wrong, pairs), paired_difference(own, wrong, pairs)


def shown(accuracy: Accuracy) -> dict[str, str]:
    """The row that a reader of the table sees."""
    _, _, line, *_ = markdown_table([Row("planted", OWN, accuracy)]).splitlines()
    return dict(zip(COLUMNS, line.strip("| ").split(" | "), strict=True))


def covers(interval: tuple[float, float], value: float) -> bool:
    return interval[0] <= value <= interval[1]


def test_a_scorer_that_always_says_a() -> None:
    found = summarize(judged(lambda pair, order: "A", PAIRS), PAIRS)
    assert (found.mean, found.consistency, found.both_right) == (0.5, 0.0, 0.0)
    row = shown(found)
    assert row["accuracy [95 % interval]"] == "0.500 [0.500, 0.500]"
    assert (row["consistency"], row["both orders right"], row["ties"]) == (
        "0.000",
        "0.000",
        "0.000",
    )


def test_a_scorer_that_reads_length() -> None:
    """On pairs whose rejected texts are cut it is nearly always right, with anybody's exemplars;
    the length baseline and the audit say why. On whole texts it is at chance."""
    cut = [
        replace(
            pair, rejected=" ".join(pair.rejected.split()[: 2 * len(pair.rejected.split()) // 3])
        )
        for pair in PAIRS
    ]
    reader = by(lambda text: len(text.split()))
    own, wrong, difference = with_control(reader, cut)
    assert own.mean == wrong.mean > 0.9
    assert difference == (0.0, 0.0, 0.0, 1.0)
    texts = [document.text for document in DOCUMENTS]
    baseline = summarize(baseline_predictions("length", cut, texts, OWN), cut)
    assert baseline.mean > 0.8 and baseline.low > 0.5
    flagged = {f.cheat for f in audit(cut[:120], num_resamples=200) if f.is_flagged}
    assert "length" in flagged
    whole, _, _ = with_control(reader, PAIRS)
    assert covers((whole.low, whole.high), 0.5)
    assert "length" not in {f.cheat for f in audit(PAIRS[:120], num_resamples=200) if f.is_flagged}


def test_a_scorer_that_ignores_the_exemplars() -> None:
    """It likes exclamation marks, and so do most of these people: its accuracy is a fact about
    them, not about judging, and the control shows it."""
    likes = by(lambda text: text.count("!"))
    right = [likes(pair, "AB") == "A" for pair in PAIRS]
    pairs = [p for i, p in enumerate(PAIRS) if right[i] or i % 3 == 0]
    own, wrong, (mean, low, high, _) = with_control(likes, pairs)
    assert own.low > 0.5 and own.mean == wrong.mean
    assert covers((low, high), 0.0) and mean == 0.0
    assert own.consistency == pytest.approx(1 - own.tie_rate)


def knows_the_people() -> Scorer:
    """Who wrote what, and how alike two people are; it takes the candidate by whoever is most like
    the exemplars' author."""
    author_of = {document.text: document.author for document in DOCUMENTS}
    assert len(author_of) == len(DOCUMENTS)
    texts: dict[str, list[str]] = {}
    for document in DOCUMENTS:
        texts.setdefault(document.author, []).append(document.text)
    habits = {
        author: np.mean(
            [[t.count("!"), t.count("?"), t.count("'"), t.count(" and "), len(t)] for t in own], 0
        )
        for author, own in texts.items()
    }
    spread = np.std(list(habits.values()), axis=0)

    def score(pair: Pair, order: Order) -> Verdict:
        person = habits[author_of[pair.exemplars[0]]]
        far = [
            float(np.linalg.norm((habits[author_of[text]] - person) / spread))
            for text in pair.candidates(order)
        ]
        return "A" if far[0] < far[1] else "B"

    return score


def test_a_perfect_scorer_is_at_chance_with_a_wrong_authors_exemplars() -> None:
    own, wrong, (mean, low, _, _) = with_control(knows_the_people(), PAIRS)
    assert (own.mean, own.low, own.high) == (1.0, 1.0, 1.0)
    assert (own.consistency, own.both_right) == (1.0, 1.0)
    assert shown(own)["accuracy [95 % interval]"] == "1.000 [1.000, 1.000]"
    assert covers((wrong.low, wrong.high), 0.5)
    assert wrong.consistency == 1.0, "not random: it answers another question"
    assert mean == pytest.approx(1 - wrong.mean) and low > 0.3


def test_a_random_scorer() -> None:
    rng = np.random.default_rng(7)
    sides: tuple[Verdict, Verdict] = ("A", "B")
    own, wrong, (_, low, high, _) = with_control(lambda pair, order: sides[rng.integers(2)], PAIRS)
    for found in (own, wrong):
        assert covers((found.low, found.high), 0.5)
        assert found.consistency == pytest.approx(0.5, abs=0.1)
        assert found.both_right == pytest.approx(0.25, abs=0.1)
    assert covers((low, high), 0.0)
