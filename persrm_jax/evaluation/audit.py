"""How far cheats get that never look at the person: a set of pairs that one of them solves does not
ask for a judgement of style."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler

from persrm_jax.data.facts import measure
from persrm_jax.evaluation.statistics import bootstrap_interval
from persrm_jax.types import Pair

SUSPICIOUS = 0.6
"""Accuracy from which on a cheat flags a set, if chance is below its interval."""
_FOLDS = 5
_FEWEST = 20
"""Pairs that a cheat needs to be fitted."""


@dataclass(frozen=True)
class Finding:
    """How often a cheat finds the person's own text among two, ties one half."""

    kind: str
    """Of the rejected texts; `all` for every kind together."""
    cheat: str
    accuracy: float
    low: float
    high: float
    """95 % bootstrap interval over authors."""
    num_pairs: int
    num_authors: int

    @property
    def is_flagged(self) -> bool:
        return self.accuracy >= SUSPICIOUS and self.low > 0.5


Features = Callable[[Sequence[str]], np.ndarray | sparse.spmatrix | sparse.sparray]
"""Of texts, [texts, features]; fitted to those it is given."""


def audit(pairs: Sequence[Pair], *, num_resamples: int = 1000, seed: int = 0) -> list[Finding]:
    """Every cheat on every kind of pairs.

    A cheat is a classifier of a pair's difference, features of A minus features of B, fitted to
    other authors' pairs (5 folds) without exemplars: `length` (words), `char-3-grams` (TF-IDF),
    `machine text` (the measured facts of `data/facts.py`: punctuation, variety, word length and so
    on, which tell written from machine-written texts), `position` (the side on which the chosen
    text is more often). A kind with fewer than 20 pairs, or with one author, is left out.

    Raises:
        ValueError: no pairs, or none of a kind with enough.
    """
    if not pairs:
        raise ValueError("there are no pairs to audit")
    kinds = sorted({pair.negative_type for pair in pairs})
    sets: dict[str, list[Pair]] = {
        kind: [p for p in pairs if p.negative_type == kind] for kind in kinds
    }
    if len(kinds) > 1:
        sets["all"] = list(pairs)
    findings = []
    for kind, some in sets.items():
        if not can_audit(some):
            continue
        for cheat, features in CHEATS.items():
            credits = _credits(some, features)
            low, high = bootstrap_interval(credits, some, num_resamples=num_resamples, seed=seed)
            accuracy = float(credits.mean())
            people = len({pair.author for pair in some})
            findings.append(Finding(kind, cheat, accuracy, low, high, len(some), people))
    if not findings:
        raise ValueError(
            f"{len(pairs)} pairs: too few to audit; a kind needs {_FEWEST}, by two authors"
        )
    return findings


def can_audit(pairs: Sequence[Pair]) -> bool:
    """Whether a cheat can be fitted to them: they are enough, and by two authors."""
    return len(pairs) >= _FEWEST and len({pair.author for pair in pairs}) > 1


def _credits(pairs: Sequence[Pair], features: Features | None) -> np.ndarray:
    """[pairs]: 1 where the cheat, fitted to other authors' pairs, takes the person's text, 0 where
    it takes the other, 0.5 where it can't say."""
    is_a = np.array([pair.order == "AB" for pair in pairs])
    if features is None:  # the side alone
        return _side_credits(is_a)
    shown = [pair.candidates() for pair in pairs]
    values = features([a for a, _ in shown] + [b for _, b in shown])
    difference = values[: len(pairs)] - values[len(pairs) :]
    authors = np.array([pair.author for pair in pairs])
    others = np.array([pair.rejected_author for pair in pairs])
    folds = GroupKFold(min(_FOLDS, len(set(authors.tolist()))))
    credits = np.empty(len(pairs))
    for elsewhere, judged in folds.split(is_a, groups=authors):
        # Nor may the judged authors' texts be fitted to as others' rejected ones.
        fitted = elsewhere[~np.isin(others[elsewhere], np.unique(authors[judged]))]
        if not len(fitted):
            credits[judged] = 0.5
            continue
        # Each pair in both orders, so that no side is preferred.
        both = [difference[fitted], -difference[fitted]]
        stacked = sparse.vstack(both).tocsr() if sparse.issparse(difference) else np.vstack(both)
        truth = np.concatenate([is_a[fitted], ~is_a[fitted]])
        model = LogisticRegression(fit_intercept=False, max_iter=1000).fit(stacked, truth)
        scores = model.decision_function(difference[judged])
        right = np.where(is_a[judged], scores > 0, scores < 0)
        credits[judged] = np.where(np.abs(scores) < 1e-9, 0.5, right)
    return credits


def _side_credits(is_a: np.ndarray) -> np.ndarray:
    """Of taking the side that is the chosen text's among the other pairs more often than chance has
    it (two standard deviations), if there is one."""
    others = is_a.sum() - is_a
    excess = others - (len(is_a) - 1) / 2
    right = np.where(excess > 0, is_a, ~is_a)
    return np.where(np.abs(excess) > np.sqrt(len(is_a)), right, 0.5)


def _lengths(texts: Sequence[str]) -> np.ndarray:
    lengths = np.log1p(np.array([len(text.split()) for text in texts], np.float64))
    return lengths[:, None]


def _char_grams(texts: Sequence[str]) -> sparse.spmatrix | sparse.sparray:
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(3, 3), sublinear_tf=True)
    return 10 * vectorizer.fit_transform(texts)


def _facts(texts: Sequence[str]) -> np.ndarray:
    return StandardScaler().fit_transform(np.stack([measure(text) for text in texts]))


CHEATS: dict[str, Features | None] = {
    "length": _lengths,
    "char-3-grams": _char_grams,
    "machine text": _facts,
    "position": None,
}
