"""Several samples of each judgement made one: by vote, or by their mean scores."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from persrm_jax.types import Prediction, Verdict

Combine = Callable[[Sequence[Prediction]], Prediction]


def vote(predictions: Sequence[Prediction], n: int) -> list[Prediction]:
    """vote@n: the verdict that most of n samples give, a tie where two lead; unparsed samples do
    not vote, and where none is parsed there is no verdict."""
    return _combined(predictions, n, _voted)


def mean_score(predictions: Sequence[Prediction], n: int) -> list[Prediction]:
    """mean-score@n: the candidate whose scores are higher on the mean of the parsed among n
    samples; without any there is no verdict.

    Raises:
        ValueError: the judge names the better text without scores.
    """
    if any(p.parsed and p.score_a is None for p in predictions):
        raise ValueError("mean-score needs scores, and this judge's answers have none")
    return _combined(predictions, n, _averaged)


def _combined(predictions: Sequence[Prediction], n: int, combine: Combine) -> list[Prediction]:
    """Each judgement's samples in turns of n, in their order; what is left over is left out.

    Raises:
        ValueError: a judgement with fewer than n samples.
    """
    judgements: dict[tuple[str, str, str, int], list[Prediction]] = defaultdict(list)
    for p in predictions:
        judgements[p.pair_id, p.order, p.model, p.seed].append(p)
    combined = []
    for (pair_id, order, *_), samples in judgements.items():
        if len(samples) < n:
            raise ValueError(f"pair {pair_id}, order {order}: {len(samples)} samples, not {n}")
        samples.sort(key=lambda p: p.sample)
        for turn in range(len(samples) // n):
            some = samples[turn * n : (turn + 1) * n]
            tokens = sum(p.tokens for p in some)
            combined.append(replace(combine(some), sample=turn, tokens=tokens, completion=""))
    return combined


def _voted(samples: Sequence[Prediction]) -> Prediction:
    counts = Counter(p.verdict for p in samples if p.verdict is not None)
    leading = [v for v, count in counts.items() if count == max(counts.values())]
    verdict: Verdict | None = None
    if leading:
        verdict = leading[0] if len(leading) == 1 else "tie"
    return _with(samples[0], None, None, verdict)


def _averaged(samples: Sequence[Prediction]) -> Prediction:
    scores = [(p.score_a, p.score_b) for p in samples if p.parsed]
    if not scores:
        return _with(samples[0], None, None, None)
    # Rounded, so that the order of summation decides no tie.
    a, b = np.array(scores, np.float64).mean(axis=0).round(9).tolist()
    return _with(samples[0], a, b, "tie" if a == b else "A" if a > b else "B")


def _with(
    one: Prediction, score_a: float | None, score_b: float | None, verdict: Verdict | None
) -> Prediction:
    return replace(
        one, score_a=score_a, score_b=score_b, verdict=verdict, parsed=verdict is not None
    )
