"""Judges without a language model: the candidate closer to the exemplars' centroid wins.

They show what a reader of surface features, topics or lengths reaches on the same pairs.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Float
from scipy import sparse
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer
from sklearn.preprocessing import StandardScaler, normalize

from persrm_jax.types import Order, Pair, Prediction, Verdict

Scores = Float[np.ndarray, "num_pairs 2"]
"""Scores in [0, 10] of each pair's chosen and rejected text."""

FUNCTION_WORDS = tuple(
    """
    a about above across after again against all almost along already also although always am
    among an and another any anyone anything are around as at away back be because been before
    behind being below beside besides between beyond both but by can cannot could despite did do
    does down during each either else enough even ever every everyone everything except few for
    from further had has have he hence her here herself him himself his how however i if in
    indeed instead into is it its itself just least less like many may me might more moreover
    most much must my myself near neither never nevertheless no none nor not nothing now of off
    often on once one only onto or other others otherwise our ours out over own perhaps quite
    rather same several shall she should since so some someone something sometimes soon still
    such than that the their them themselves then there therefore these they this those though
    through throughout thus to together too toward towards under unless until up upon us very
    was we well were what whatever when where whereas whether which while who whom whose why
    will with within without would yet you your
    """.split()
)
PUNCTUATION = ".,;:!?'\"()[]-/%$&*\u2013\u2014\u2018\u2019\u201c\u201d\u2026"
MAX_DEVIATION = 5.0
"""Standard deviations at which a stylometric feature is clipped."""
LONG_WORD = 7
"""Letters from which a word is long."""

_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_TOPIC_WORD = re.compile(r"[^\W\d_]{2,}")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'\u201d\u2019)]*\s+")
_PARAGRAPH_END = re.compile(r"\n\s*\n")
_NOT_TOPICAL = ENGLISH_STOP_WORDS.union(FUNCTION_WORDS)


def char_ngrams(pairs: Sequence[Pair], fit_texts: Sequence[str]) -> Scores:
    """Cosine of TF-IDF vectors of character 3-grams, case and spacing kept."""
    return _tfidf_closeness(pairs, fit_texts, _char_trigrams)


def stylometry(pairs: Sequence[Pair], fit_texts: Sequence[str]) -> Scores:
    """Cosine of `style_features`, z-scored on `fit_texts`, clipped at 5 and normalised."""
    scaler = StandardScaler().fit(_feature_rows(fit_texts))

    def encode(texts: list[str]) -> sparse.csr_array:
        deviations = scaler.transform(_feature_rows(texts))
        return sparse.csr_array(normalize(deviations.clip(-MAX_DEVIATION, MAX_DEVIATION)))

    return _centroid_closeness(pairs, encode)


def topic_words(pairs: Sequence[Pair], fit_texts: Sequence[str]) -> Scores:
    """Cosine of TF-IDF vectors of content words: what the text is about, not how it is written."""
    return _tfidf_closeness(pairs, fit_texts, _content_words)


def length(pairs: Sequence[Pair], fit_texts: Sequence[str]) -> Scores:
    """10 exp(-d), d the distance of log word counts from their mean over the exemplars."""
    del fit_texts  # Nothing to fit.
    scores = np.full((len(pairs), 2), 5.0)
    for row, pair in zip(scores, pairs, strict=True):
        if pair.exemplars:
            centre = np.mean([_log_words(text) for text in pair.exemplars])
            row[:] = [
                10 * np.exp(-abs(_log_words(text) - centre))
                for text in (pair.chosen, pair.rejected)
            ]
    return scores


def longer(pairs: Sequence[Pair], fit_texts: Sequence[str]) -> Scores:
    """10 times a text's share of the words of both."""
    del fit_texts  # Nothing to fit.
    words = [[len(text.split()) for text in (pair.chosen, pair.rejected)] for pair in pairs]
    counts = np.array(words, np.float64).reshape(len(pairs), 2)
    return 10 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def shorter(pairs: Sequence[Pair], fit_texts: Sequence[str]) -> Scores:
    """10 minus `longer`'s."""
    return 10 - longer(pairs, fit_texts)


def chance(pairs: Sequence[Pair], fit_texts: Sequence[str]) -> Scores:
    """Always a tie, which counts one half."""
    del fit_texts  # Nothing to fit.
    return np.full((len(pairs), 2), 5.0)


BASELINES: dict[str, Callable[[Sequence[Pair], Sequence[str]], Scores]] = {
    "char_ngrams": char_ngrams,
    "stylometry": stylometry,
    "topic_words": topic_words,
    "length": length,
    "longer": longer,
    "shorter": shorter,
    "chance": chance,
}
WITHOUT_EXEMPLARS = ("longer", "shorter", "chance")
"""Those that look at the candidates alone: every condition is the same to them."""


def baseline_predictions(
    name: str, pairs: Sequence[Pair], fit_texts: Sequence[str], condition: str
) -> list[Prediction]:
    """Judges every pair in both orders; the verdict is the higher score, which no order can change.

    Args:
        name: a key of `BASELINES`; the predictions' `model`.
        pairs: with the exemplars of `condition`; a pair without exemplars is a tie.
        fit_texts: the documents of the train pool, for vocabularies, IDF weights and z-scores.
        condition: the number of exemplars, or `wrong_author`.

    Raises:
        ValueError: an unknown name, or nothing to fit on.
    """
    if name not in BASELINES:
        raise ValueError(f"unknown baseline {name!r}; there are {', '.join(BASELINES)}")
    if not fit_texts:
        raise ValueError("baselines need at least one text to fit on")
    orders: tuple[Order, Order] = ("AB", "BA")
    # Rounding makes texts with the same features tie whatever the order of summation.
    scores = BASELINES[name](pairs, fit_texts).round(9).tolist()
    return [
        _prediction(name, pair, order, condition, *(row if order == "AB" else row[::-1]))
        for pair, row in zip(pairs, scores, strict=True)
        for order in orders
    ]


def style_features(text: str) -> list[float]:
    """Rates of function words (per word) and punctuation marks (per character), then shape.

    Shape: mean and standard deviation of the letters in a word and of the words in a sentence and a
    paragraph; type-token ratio of the first 200 words; digits and capitals per character;
    all-capital and long words per word. A rate over nothing is 0.
    """
    words = _WORD.findall(text)
    counts = Counter(word.lower() for word in words)
    num_words, num_chars = max(len(words), 1), max(len(text), 1)
    first = [word.lower() for word in words[:200]]
    return [
        *(counts[word] / num_words for word in FUNCTION_WORDS),
        *(text.count(mark) / num_chars for mark in PUNCTUATION),
        *_mean_and_deviation([len(word) for word in words]),
        *_mean_and_deviation(_words_in_each(_SENTENCE_END.split(text))),
        *_mean_and_deviation(_words_in_each(_PARAGRAPH_END.split(text))),
        len(set(first)) / max(len(first), 1),
        sum(char.isdigit() for char in text) / num_chars,
        sum(char.isupper() for char in text) / num_chars,
        sum(len(word) > 1 and word.isupper() for word in words) / num_words,
        sum(len(word) >= LONG_WORD for word in words) / num_words,
    ]


def _feature_rows(texts: Iterable[str]) -> Float[np.ndarray, "num_texts num_features"]:
    return np.array([style_features(text) for text in texts])


def _words_in_each(parts: Iterable[str]) -> list[int]:
    """Word counts of the parts that have words."""
    return [count for part in parts if (count := len(_WORD.findall(part)))]


def _mean_and_deviation(values: Sequence[int]) -> tuple[float, float]:
    return (float(np.mean(values)), float(np.std(values))) if values else (0.0, 0.0)


def _log_words(text: str) -> float:
    return float(np.log(max(len(text.split()), 1)))


def _char_trigrams(text: str) -> list[str]:
    return [text[i : i + 3] for i in range(len(text) - 2)]


def _content_words(text: str) -> list[str]:
    return [word for word in _TOPIC_WORD.findall(text.lower()) if word not in _NOT_TOPICAL]


def _tfidf_closeness(
    pairs: Sequence[Pair], fit_texts: Sequence[str], analyzer: Callable[[str], list[str]]
) -> Scores:
    """Cosine of sublinear TF-IDF vectors.

    The terms are those of at least two fit texts; where there are none, those of any fit text;
    where there are none at all, every pair is a tie.
    """
    num_texts = Counter(term for text in fit_texts for term in set(analyzer(text)))
    terms = [t for t, count in num_texts.items() if count >= 2] or list(num_texts)
    if not terms:
        return chance(pairs, fit_texts)
    vectorizer = TfidfVectorizer(
        analyzer=analyzer, lowercase=False, vocabulary=sorted(terms), sublinear_tf=True
    )
    vectorizer.fit(fit_texts)
    return _centroid_closeness(pairs, lambda texts: sparse.csr_array(vectorizer.transform(texts)))


def _centroid_closeness(
    pairs: Sequence[Pair], encode: Callable[[list[str]], sparse.csr_array]
) -> Scores:
    """5 (1 + cos(v, c)), v a candidate's unit vector and c the mean of the exemplars' unit vectors.

    The cosine with a zero vector is 0.
    """
    shown = (text for pair in pairs for text in (pair.chosen, pair.rejected, *pair.exemplars))
    index = {text: i for i, text in enumerate(dict.fromkeys(shown))}
    if not index:
        return np.empty((0, 2))
    vectors = encode(list(index))
    owners = [row for row, pair in enumerate(pairs) for _ in pair.exemplars]
    members = [index[text] for pair in pairs for text in pair.exemplars]
    membership = sparse.csr_array(
        (np.ones(len(members)), (owners, members)), shape=(len(pairs), len(index))
    )
    centroids = normalize(membership @ vectors)
    chosen = vectors[[index[pair.chosen] for pair in pairs]]
    rejected = vectors[[index[pair.rejected] for pair in pairs]]
    cosines = [candidates.multiply(centroids).sum(axis=1) for candidates in (chosen, rejected)]
    return 5 * (1 + np.stack(cosines, axis=1))


def _prediction(
    name: str, pair: Pair, order: Order, condition: str, score_a: float, score_b: float
) -> Prediction:
    verdict: Verdict = "tie" if score_a == score_b else "A" if score_a > score_b else "B"
    return Prediction(
        pair_id=pair.pair_id,
        order=order,
        condition=condition,
        model=name,
        seed=0,
        sample=0,
        score_a=score_a,
        score_b=score_b,
        verdict=verdict,
        parsed=True,
        tokens=0,
        completion="",
    )
