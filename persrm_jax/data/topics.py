"""What texts are about: TF-IDF of their content words, in a fixed number of hashed columns, so that
no vocabulary has to be kept of a corpus that does not fit in memory."""

from collections.abc import Iterable

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from persrm_jax.data.words import Words, words_of

_BITS = 18
_SHORTEST = 3


def fit_topics(texts: Iterable[Words]) -> np.ndarray:
    """Each column's weight, the smooth inverse document frequency log((1 + n) / (1 + df)) + 1 over
    n texts; [columns], float32. Columns of stop words weigh nothing."""
    df = np.zeros(1 << _BITS, np.int64)
    count = 0
    for words in texts:
        df[np.unique(_columns(words))] += 1
        count += 1
    weights = np.log((1 + count) / (1 + df)) + 1
    weights[_columns(words_of(" ".join(sorted(ENGLISH_STOP_WORDS))))] = 0
    return weights.astype(np.float32)


def topic_vectors(texts: Iterable[Words], weights: np.ndarray) -> sparse.csr_array:
    """[texts, columns]; rows have length 1, or 0 for a text without content words."""
    columns = [_columns(words) for words in texts]
    ends = np.cumsum([0, *map(len, columns)])
    found = np.concatenate([*columns, np.zeros(0, np.int64)])
    vectors = sparse.csr_array((weights[found], found, ends), shape=(len(columns), len(weights)))
    vectors.sum_duplicates()
    vectors.eliminate_zeros()
    lengths = np.sqrt(vectors.multiply(vectors).sum(axis=1))
    vectors.data /= np.repeat(np.maximum(lengths, 1e-12), np.diff(vectors.indptr))
    return vectors


def _columns(words: Words) -> np.ndarray:
    """Those of the words that are long enough and no numbers."""
    is_content = (words.lengths >= _SHORTEST) & (words.initials > ord("9"))
    return (words.hashes[is_content] >> np.uint64(64 - _BITS)).astype(np.int64)
