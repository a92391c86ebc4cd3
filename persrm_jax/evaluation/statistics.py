"""Accuracy of pairwise judgements, with intervals that respect both authors of a pair."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from persrm_jax.types import Pair, Prediction, right_verdict

INTERVAL = (0.025, 0.975)
"""Quantiles that bound a 95 % interval."""


@dataclass(frozen=True)
class Accuracy:
    """What one judge reaches in one condition."""

    mean: float
    """Mean pair credit: right 1, tie 0.5, wrong or unparsed 0."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    num_pairs: int
    """Pairs judged."""
    num_authors: int
    """Authors drawn by the bootstrap: those of the chosen and of the rejected texts."""
    parse_rate: float
    """Share of judgements with a verdict."""
    tie_rate: float
    """Share of judgements that are ties."""
    consistency: float | None
    """Share of pairs whose verdicts in both orders name the same text (a tie names none); None
    where no pair was judged in both orders."""
    both_right: float | None
    """Share of pairs judged right in both orders; None as above."""


class Difference(NamedTuple):
    """One judge's accuracy minus another's on the same pairs."""

    mean: float
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    p: float
    """Two-sided, from the same draws: twice the smaller share of them on one side of zero, zero
    itself on both."""


def judgement_credit(prediction: Prediction) -> float:
    """1 for the right verdict, 0.5 for a tie, 0 for a wrong or unparsed one."""
    if prediction.verdict == "tie":
        return 0.5
    return float(prediction.verdict == right_verdict(prediction.order))


def summarize(
    predictions: Sequence[Prediction],
    pairs: Sequence[Pair],
    *,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Accuracy:
    """Accuracy over the pairs that `predictions` judge, in one condition.

    A pair's credit is the mean over its rows (orders, samples, seeds); every pair counts once. See
    `bootstrap_interval` for the interval.

    Args:
        predictions: the judgements; all of one condition.
        pairs: at least the pairs judged.
        num_resamples: draws of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: no predictions, more than one condition, a row given twice, an unknown pair.
    """
    credits = _pair_credits(predictions)
    judged = _find_pairs(credits, pairs)
    values = np.array([credits[pair.pair_id] for pair in judged])
    low, high = bootstrap_interval(values, judged, num_resamples=num_resamples, seed=seed)
    consistency, both_right = _order_agreement(predictions)
    return Accuracy(
        mean=float(values.mean()),
        low=low,
        high=high,
        num_pairs=len(judged),
        num_authors=len({author for pair in judged for author in _people(pair)}),
        parse_rate=sum(p.verdict is not None for p in predictions) / len(predictions),
        tie_rate=sum(p.verdict == "tie" for p in predictions) / len(predictions),
        consistency=consistency,
        both_right=both_right,
    )


def paired_difference(
    first: Sequence[Prediction],
    second: Sequence[Prediction],
    pairs: Sequence[Pair],
    *,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Difference:
    """Accuracy of `first` minus that of `second` on the same pairs.

    The bootstrap of `summarize`, on per-pair differences; the judges may differ in condition, and
    in the number of samples and seeds.

    Raises:
        ValueError: as `summarize`, or the two did not judge the same pairs.
    """
    first_credits, second_credits = _pair_credits(first), _pair_credits(second)
    if unshared := len(first_credits.keys() ^ second_credits.keys()):
        raise ValueError(f"cannot compare: {unshared} pairs were judged by only one of the two")
    judged = _find_pairs(first_credits, pairs)
    values = np.array([first_credits[p.pair_id] - second_credits[p.pair_id] for p in judged])
    means = bootstrap_means(values, judged, num_resamples=num_resamples, seed=seed)
    low, high = np.quantile(means, INTERVAL)
    # Counted with the sample itself, so that no finite number of draws makes p zero.
    below, above = (1 + np.sum(means <= 0)), (1 + np.sum(means >= 0))
    p = min(2 * float(min(below, above)) / (num_resamples + 1), 1.0)
    return Difference(float(values.mean()), float(low), float(high), p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p adjusted for being one of several: below .05 where Holm's procedure (1979, "A simple
    sequentially rejective multiple test procedure") rejects at a family-wise error of 5 %.

    The i-th smallest of m, i from 0, becomes the largest of (m - j) p_j over j <= i, at most 1.
    """
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, (len(p_values) - rank) * p_values[i])
        adjusted[i] = min(largest, 1.0)
    return adjusted


def bootstrap_interval(
    values: Float[np.ndarray, " num_pairs"],
    pairs: Sequence[Pair],
    *,
    num_resamples: int,
    seed: int,
) -> tuple[float, float]:
    """95 % interval of the mean of per-pair `values`: quantiles of `bootstrap_means`."""
    means = bootstrap_means(values, pairs, num_resamples=num_resamples, seed=seed)
    low, high = np.quantile(means, INTERVAL)
    return float(low), float(high)


def bootstrap_means(
    values: Float[np.ndarray, " num_pairs"],
    pairs: Sequence[Pair],
    *,
    num_resamples: int,
    seed: int,
) -> Float[np.ndarray, " num_resamples"]:
    """Means of per-pair `values` under resampling of the authors of both texts.

    Two-way pigeonhole bootstrap (Owen 2007, "The pigeonhole bootstrap"), with one set of authors on
    both ways: draw as many authors as there are, with replacement, and let m_a be how often a was
    drawn. Pair i, by author a_i against r_i, then weighs w_i = m_{a_i} m_{r_i}, and the draw's mean
    is sum_i w_i v_i / sum_i w_i. A machine-written rejected text has no second person: w_i =
    m_{a_i}. A draw of zero total weight is drawn again.
    """
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be at least 1, not {num_resamples}")
    index: dict[str, int] = {}
    for pair in pairs:
        for author in _people(pair):
            index.setdefault(author, len(index))
    num_authors = len(index)
    # Sums and counts per author (one person) or per pair of authors (two) are all a draw needs.
    alone = np.zeros((2, num_authors))
    joint = np.zeros((2, num_authors, num_authors))
    for value, pair in zip(values, pairs, strict=True):
        first, *second = (index[person] for person in _people(pair))
        cell = joint[:, first, second[0]] if second else alone[:, first]
        cell += (value, 1.0)

    rng = np.random.default_rng(seed)
    means = np.empty(0)
    while len(means) < num_resamples:
        draws = rng.multinomial(num_authors, np.full(num_authors, 1 / num_authors), num_resamples)
        total, weight = alone @ draws.T + ((draws @ joint) * draws).sum(-1)
        means = np.concatenate([means, total[weight > 0] / weight[weight > 0]])
    return means[:num_resamples]


def _people(pair: Pair) -> tuple[str, ...]:
    """The authors whose drawing decides a pair's weight."""
    if pair.negative_type in ("other_author", "other_author_same_topic"):
        return (pair.author, pair.rejected_author)
    return (pair.author,)


def _pair_credits(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Mean credit by pair_id."""
    if not predictions:
        raise ValueError("no predictions to summarize")
    if len(conditions := {p.condition for p in predictions}) > 1:
        raise ValueError(f"predictions of several conditions: {', '.join(sorted(conditions))}")
    credits: dict[str, list[float]] = defaultdict(list)
    seen = set()
    for p in predictions:
        row = (p.pair_id, p.order, p.model, p.seed, p.sample)
        if row in seen:
            raise ValueError(f"pair {p.pair_id}, order {p.order}: sample {p.sample} given twice")
        seen.add(row)
        credits[p.pair_id].append(judgement_credit(p))
    return {pair_id: float(np.mean(values)) for pair_id, values in credits.items()}


def _find_pairs(pair_ids: Iterable[str], pairs: Sequence[Pair]) -> list[Pair]:
    by_id = {pair.pair_id: pair for pair in pairs}
    judged = []
    for pair_id in pair_ids:
        if pair_id not in by_id:
            raise ValueError(f"prediction for pair {pair_id!r}, which is not among the pairs")
        judged.append(by_id[pair_id])
    return judged


def _order_agreement(predictions: Sequence[Prediction]) -> tuple[float | None, float | None]:
    """(consistency, both_right): the two orders of one sample compared, averaged within a pair."""
    samples: dict[tuple[str, str, int, int], dict[str, Prediction]] = defaultdict(dict)
    for p in predictions:
        samples[p.pair_id, p.model, p.seed, p.sample][p.order] = p
    same: dict[str, list[bool]] = defaultdict(list)
    right: dict[str, list[bool]] = defaultdict(list)
    for (pair_id, *_), orders in samples.items():
        if len(orders) == 2:
            verdicts = (orders["AB"].verdict, orders["BA"].verdict)
            # Swapped sides name the same text.
            same[pair_id].append(verdicts in (("A", "B"), ("B", "A")))
            right[pair_id].append(verdicts == ("A", "B"))
    if not same:
        return None, None
    return _mean_of_means(same), _mean_of_means(right)


def _mean_of_means(groups: dict[str, list[bool]]) -> float:
    return float(np.mean([np.mean(group) for group in groups.values()]))
