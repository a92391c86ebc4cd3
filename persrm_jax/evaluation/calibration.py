"""Whether a judge's scores are as sure as they are right."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from persrm_jax.types import Prediction

NUM_BINS = 10


@dataclass(frozen=True)
class Calibration:
    """Of the probability that a judge's scores give to A being the person's: 1/2 + (A - B) / 20,
    so that 10 against 0 is certain and equal scores are even odds."""

    ece: float
    """Expected calibration error: |share that is A's - mean probability| in ten bins of equal
    width, weighted by their judgements (Naeini et al. 2015, "Obtaining well calibrated
    probabilities using Bayesian binning")."""
    brier: float
    """Mean squared error of the probability (Brier 1950); always even odds has .25."""
    num_judgements: int
    """With scores; those that did not parse say nothing."""


def calibrate(predictions: Sequence[Prediction]) -> Calibration | None:
    """Of all judgements with scores; None where there are none."""
    scored = [
        (0.5 + (p.score_a - p.score_b) / 20, p.order == "AB")
        for p in predictions
        if p.score_a is not None and p.score_b is not None
    ]
    if not scored:
        return None
    probability, is_a = np.array(scored, np.float64).T
    bins = np.minimum((probability * NUM_BINS).astype(int), NUM_BINS - 1)
    # In a bin, the number of judgements times the gap of its means is the gap of its sums.
    gaps = np.bincount(bins, weights=is_a - probability, minlength=NUM_BINS)
    return Calibration(
        ece=float(np.abs(gaps).sum() / len(scored)),
        brier=float(np.mean((probability - is_a) ** 2)),
        num_judgements=len(scored),
    )
