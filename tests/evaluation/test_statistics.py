"""Accuracies by hand, and the bootstrap beside a slow loop and a known spread."""

import dataclasses
import json

import numpy as np
import pytest

from persrm_jax.evaluation.statistics import (
    bootstrap_interval,
    holm,
    judgement_credit,
    paired_difference,
    summarize,
)
from persrm_jax.types import NegativeType, Order, Pair, Prediction, Verdict


def make_pair(
    pair_id: str,
    author: str = "ann",
    rejected_author: str = "bob",
    negative_type: NegativeType = "other_author",
) -> Pair:
    return Pair(
        pair_id=pair_id,
        author=author,
        author_split="test",
        domain="letters",
        prompt="",
        exemplars=("An exemplar.",),
        exemplar_ids=("e",),
        chosen="Chosen.",
        chosen_id="c",
        rejected="Rejected.",
        rejected_id="r",
        rejected_author=rejected_author,
        negative_type=negative_type,
        order="AB",
        writer="human",
        seed=0,
    )


def make_prediction(
    pair_id: str, order: Order, verdict: Verdict | None, *, seed: int = 0, sample: int = 0
) -> Prediction:
    return Prediction(
        pair_id=pair_id,
        order=order,
        condition="4",
        model="judge",
        seed=seed,
        sample=sample,
        score_a=None,
        score_b=None,
        verdict=verdict,
        parsed=verdict is not None,
        tokens=3,
        completion="",
    )


def both_orders(pair_id: str, right: bool) -> list[Prediction]:
    return [
        make_prediction(pair_id, "AB", "A" if right else "B"),
        make_prediction(pair_id, "BA", "B" if right else "A"),
    ]


@pytest.mark.parametrize(
    ("order", "verdict", "credit"),
    [
        ("AB", "A", 1.0),
        ("AB", "B", 0.0),
        ("BA", "B", 1.0),
        ("BA", "A", 0.0),
        ("AB", "tie", 0.5),
        ("BA", None, 0.0),
    ],
)
def test_a_tie_is_half_and_an_unparsed_answer_is_wrong(
    order: Order, verdict: Verdict | None, credit: float
) -> None:
    assert judgement_credit(make_prediction("p", order, verdict)) == credit


def test_summary_equals_the_hand_worked_one() -> None:
    pairs = [make_pair("p1"), make_pair("p2"), make_pair("p3", rejected_author="cy")]
    pairs.append(make_pair("never judged", author="zoe"))
    predictions = [
        *both_orders("p1", right=True),  # credits 1, 1; the same text
        make_prediction("p2", "AB", "A"),  # 1
        make_prediction("p2", "BA", "A"),  # 0: the side, not the text
        make_prediction("p3", "AB", "tie"),  # 0.5
        make_prediction("p3", "BA", None),  # 0
    ]
    accuracy = summarize(predictions, pairs)
    assert accuracy.mean == pytest.approx((1 + 0.5 + 0.25) / 3)
    assert (accuracy.num_pairs, accuracy.num_authors) == (3, 3)
    assert accuracy.parse_rate == pytest.approx(5 / 6)
    assert accuracy.tie_rate == pytest.approx(1 / 6)
    assert accuracy.consistency == pytest.approx(1 / 3)
    assert accuracy.both_right == pytest.approx(1 / 3)
    assert accuracy.low <= accuracy.mean <= accuracy.high
    assert json.loads(json.dumps(dataclasses.asdict(accuracy)))["num_pairs"] == 3


def test_a_judge_wrong_in_both_orders_is_consistent() -> None:
    accuracy = summarize(both_orders("p1", right=False), [make_pair("p1")])
    assert (accuracy.consistency, accuracy.both_right, accuracy.mean) == (1.0, 0.0, 0.0)


def test_every_pair_counts_once_however_many_samples_it_has() -> None:
    predictions = [make_prediction("p1", "AB", "A", sample=s) for s in range(9)]
    predictions += [make_prediction("p2", "AB", "B")]
    accuracy = summarize(predictions, [make_pair("p1"), make_pair("p2")])
    assert accuracy.mean == 0.5
    assert accuracy.consistency is None and accuracy.both_right is None


def test_orders_are_compared_within_one_sample() -> None:
    predictions = [
        make_prediction("p1", "AB", "A", sample=0),
        make_prediction("p1", "BA", "B", sample=0),
        make_prediction("p1", "AB", "B", sample=1),
        make_prediction("p1", "BA", "B", sample=1),
    ]
    accuracy = summarize(predictions, [make_pair("p1")])
    assert (accuracy.consistency, accuracy.both_right) == (0.5, 0.5)


def slow_interval(
    values: list[float], people: list[tuple[str, ...]], num_resamples: int, seed: int
) -> list[float]:
    """The bootstrap as its definition reads: authors drawn, pairs repeated, one list averaged."""
    authors = list(dict.fromkeys(name for names in people for name in names))
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(authors), [1 / len(authors)] * len(authors), num_resamples)
    means = []
    for draw in draws:
        bag = [name for name, count in zip(authors, draw, strict=True) for _ in range(count)]
        repeated = []
        for value, names in zip(values, people, strict=True):
            weight = 1
            for name in names:
                weight *= bag.count(name)
            repeated += [value] * weight
        if repeated:
            means.append(sum(repeated) / len(repeated))
    return np.percentile(means, [2.5, 97.5]).tolist()


def test_interval_equals_a_slow_loop_with_the_same_draws() -> None:
    rng = np.random.default_rng(7)
    names = [f"author {i}" for i in range(12)]
    pairs, values, people = [], [], []
    for i in range(60):
        first, second = (str(name) for name in rng.choice(names, 2, replace=False))
        if i % 5:
            pairs.append(make_pair(f"p{i}", first, second))
            people.append((first, second))
        else:  # A machine wrote the rejected text, so only the author is drawn.
            pairs.append(make_pair(f"p{i}", first, "a language model", "mimic"))
            people.append((first,))
        values.append(float(rng.choice([0.0, 0.5, 1.0])))
    expected = slow_interval(values, people, 300, seed=3)
    interval = bootstrap_interval(np.array(values), pairs, num_resamples=300, seed=3)
    assert interval == pytest.approx(expected, abs=1e-12)


def test_interval_over_lone_authors_has_the_binomial_spread() -> None:
    """With a pair an author, the bootstrap's standard error is sqrt(p (1 - p) / n)."""
    pairs = [make_pair(f"p{i}", f"author {i}", "", "minor") for i in range(400)]
    values = np.array([float(i % 4 != 0) for i in range(400)])
    low, high = bootstrap_interval(values, pairs, num_resamples=4000, seed=0)
    half_width = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert (low, high) == pytest.approx((0.75 - half_width, 0.75 + half_width), abs=0.006)


def test_interval_covers_the_truth_where_both_authors_matter() -> None:
    """Credits that both authors shift: about 95 % of data sets' intervals hold the true mean."""
    rng = np.random.default_rng(0)
    num_authors, num_sets, covered = 30, 120, 0
    for _ in range(num_sets):
        chosen, rejected = rng.normal(scale=0.1, size=(2, num_authors))
        pairs, values = [], []
        for i in range(300):
            a, b = rng.choice(num_authors, 2, replace=False).tolist()
            pairs.append(make_pair(f"p{i}", f"author {a}", f"author {b}"))
            values.append(0.6 + chosen[a] + rejected[b] + rng.normal(scale=0.3))
        low, high = bootstrap_interval(np.array(values), pairs, num_resamples=400, seed=1)
        covered += low <= 0.6 <= high
    assert covered / num_sets >= 0.89


def test_draws_without_any_pair_are_drawn_again() -> None:
    accuracy = summarize(both_orders("p1", right=True), [make_pair("p1")], num_resamples=50)
    assert (accuracy.mean, accuracy.low, accuracy.high) == (1.0, 1.0, 1.0)


def test_paired_difference_is_of_pairs_not_of_means() -> None:
    pairs = [make_pair(f"p{i}", f"author {i}", f"author {(i + 1) % 20}") for i in range(20)]
    first = [row for i in range(20) for row in both_orders(f"p{i}", right=i % 2 == 0)]
    second = [row for i in range(20) for row in both_orders(f"p{i}", right=i % 4 == 0)]
    mean, low, high, p = paired_difference(first, second, pairs)
    assert mean == pytest.approx(0.25)
    assert 0 <= low < mean < high
    assert paired_difference(first, first, pairs) == (0.0, 0.0, 0.0, 1.0)
    assert paired_difference(second, first, pairs)[0] == pytest.approx(-0.25)


def test_seeds_are_averaged_within_a_pair() -> None:
    pairs = [make_pair("p1"), make_pair("p2")]
    first = [make_prediction("p1", "AB", "A", seed=s) for s in (0, 1)]
    first += [make_prediction("p2", "AB", v, seed=s) for s, v in ((0, "A"), (1, "B"))]
    second = [make_prediction(p, "AB", "B") for p in ("p1", "p2")]
    assert paired_difference(first, second, pairs)[0] == pytest.approx(0.75)


def test_bad_input_is_named() -> None:
    pairs = [make_pair("p1"), make_pair("p2")]
    rows = both_orders("p1", right=True)
    with pytest.raises(ValueError, match="no predictions"):
        summarize([], pairs)
    with pytest.raises(ValueError, match="'p9', which is not among the pairs"):
        summarize(both_orders("p9", right=True), pairs)
    with pytest.raises(ValueError, match="given twice"):
        summarize(rows + rows, pairs)
    with pytest.raises(ValueError, match="several conditions: 1, 4"):
        summarize([rows[0], dataclasses.replace(rows[1], condition="1")], pairs)
    with pytest.raises(ValueError, match="2 pairs were judged by only one"):
        paired_difference(rows, both_orders("p2", right=True), pairs)
    with pytest.raises(ValueError, match="num_resamples"):
        summarize(rows, pairs, num_resamples=0)


def test_holm_by_hand() -> None:
    # Sorted .01, .02, .03, .5: 4 x .01, 3 x .02, 2 x .03 and 1 x .5; .03 is not below .02's.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_p_says_on_which_side_of_zero_the_draws_fall() -> None:
    pairs = [make_pair(f"p{i}", f"a{i}", f"b{i}") for i in range(40)]
    right = [row for i in range(40) for row in both_orders(f"p{i}", right=True)]
    half = [row for i in range(40) for row in both_orders(f"p{i}", right=i % 2 == 0)]
    better = paired_difference(right, half, pairs)
    assert better.low > 0 and better.p == pytest.approx(2 / 2001)
    assert paired_difference(half, right, pairs).p == better.p
    other = [row for i in range(40) for row in both_orders(f"p{i}", right=i % 2 == 1)]
    assert paired_difference(other, half, pairs).p > 0.5
