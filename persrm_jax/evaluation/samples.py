"""Judgements to look at: a few pairs, and what each model said about them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from persrm_jax.evaluation.statistics import judgement_credit
from persrm_jax.types import Order, Pair, Prediction

Outcome = Literal["right", "wrong", "tie", "not parsed"]


@dataclass(frozen=True)
class Sample:
    """One pair in one order, and the models' judgements of it by label."""

    pair: Pair
    order: Order
    why: str
    """What it was chosen for."""
    judgements: Mapping[str, Prediction]


def outcome(prediction: Prediction) -> Outcome:
    """What a judgement is worth, in a word."""
    if prediction.verdict is None:
        return "not parsed"
    if prediction.verdict == "tie":
        return "tie"
    return "right" if judgement_credit(prediction) == 1 else "wrong"


def pick_samples(
    pairs: Sequence[Pair],
    predictions: Mapping[str, Sequence[Prediction]],
    *,
    before: str = "sft",
    after: str = "rft",
    each: int = 2,
    seed: int = 0,
) -> list[Sample]:
    """Pairs that `after` got right and `before` wrong, the reverse, and any others: up to `each` of
    all three, drawn by the seed, no pair twice. Each is shown in its own order.

    Args:
        predictions: by label, of one condition; judges that wrote nothing (baselines) are left out,
            and of several samples or seeds the first counts.
    """
    said = {label: _by_pair(found, pairs) for label, found in predictions.items()}
    said = {
        label: found for label, found in said.items() if any(p.completion for p in found.values())
    }
    shared = [pair for pair in pairs if said and all(pair.pair_id in f for f in said.values())]
    drawn = [shared[i] for i in np.random.default_rng(seed).permutation(len(shared))]

    def came_out(label: str, pair: Pair) -> Outcome | None:
        return outcome(said[label][pair.pair_id]) if label in said else None

    failed = ("wrong", "not parsed")
    gained = [p for p in drawn if came_out(before, p) in failed and came_out(after, p) == "right"]
    lost = [p for p in drawn if came_out(before, p) == "right" and came_out(after, p) in failed]
    samples: dict[str, Sample] = {}
    for why, found in (
        (f"{before} failed, {after} was right", gained),
        (f"{before} was right, {after} failed", lost),
        ("drawn at random", drawn),
    ):
        for pair in [p for p in found if p.pair_id not in samples][:each]:
            judgements = {label: by_pair[pair.pair_id] for label, by_pair in said.items()}
            samples[pair.pair_id] = Sample(pair, pair.order, why, judgements)
    return list(samples.values())


def _by_pair(predictions: Sequence[Prediction], pairs: Sequence[Pair]) -> dict[str, Prediction]:
    """The first judgement of each pair in the pair's own order."""
    orders = {pair.pair_id: pair.order for pair in pairs}
    found: dict[str, Prediction] = {}
    for prediction in predictions:
        if orders.get(prediction.pair_id) == prediction.order:
            found.setdefault(prediction.pair_id, prediction)
    return found
