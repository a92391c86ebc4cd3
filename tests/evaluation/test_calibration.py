"""Calibration by hand, and beside scikit-learn."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from persrm_jax.evaluation.calibration import Calibration, calibrate
from persrm_jax.types import Prediction

JUDGED = Prediction("p", "AB", "1", "rft", 0, 0, 10.0, 0.0, "A", True, 5, "")


def test_by_hand() -> None:
    # Probabilities of A: 1, 1, .5, .5; A is right in the first, third and fourth.
    rows = [
        JUDGED,
        replace(JUDGED, order="BA"),
        replace(JUDGED, score_a=4.0, score_b=4.0),
        replace(JUDGED, score_a=4.0, score_b=4.0),
    ]
    # Bins: |1/2 - 1| and |1 - 1/2|, half of the judgements each.
    assert calibrate(rows) == Calibration(
        ece=0.5, brier=(0 + 1 + 0.25 + 0.25) / 4, num_judgements=4
    )


def test_against_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(0, 10, (500, 2))
    right = rng.random(500) < 0.5 + (scores[:, 0] - scores[:, 1]) / 20
    rows = [
        replace(JUDGED, score_a=float(a), score_b=float(b), order="AB" if is_a else "BA")
        for (a, b), is_a in zip(scores, right, strict=True)
    ]
    found = calibrate(rows)
    assert found is not None
    probability = 0.5 + (scores[:, 0] - scores[:, 1]) / 20
    assert found.brier == pytest.approx(brier_score_loss(right, probability))
    true, predicted = calibration_curve(right, probability, n_bins=10)
    sizes = np.histogram(probability, bins=10, range=(0, 1))[0]
    expected = np.sum(sizes[sizes > 0] * np.abs(true - predicted)) / 500
    assert found.ece == pytest.approx(expected)
    assert found.ece < 0.1, "these scores are calibrated by construction"


def test_what_has_no_scores_says_nothing() -> None:
    unparsed = replace(JUDGED, score_a=None, score_b=None, verdict=None, parsed=False)
    assert calibrate([unparsed]) is None
    found = calibrate([JUDGED, unparsed])
    assert found is not None and found.num_judgements == 1
