"""Near copies: texts that share too many of their sequences of five words."""

import numpy as np

from persrm_jax.data.words import Words, mix

NEAR_COPY = 0.3
"""Jaccard similarity of two texts' five-grams from which on they are near copies."""
_LENGTH = 5
_FACTOR = np.uint64(0xD6E8FEB86659FD93)


def five_grams(words: Words) -> np.ndarray:
    """Hashes of a text's sequences of five words, sorted, each once; [n], uint64."""
    count = max(len(words.hashes) - _LENGTH + 1, 0)
    grams = np.zeros(count, np.uint64)
    for i in range(_LENGTH):
        grams = grams * _FACTOR + words.hashes[i : i + count]  # modulo 2**64
    return np.unique(mix(grams))


def is_near_copy(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether the Jaccard similarity of two texts' `five_grams` reaches `NEAR_COPY`."""
    short, long = sorted((first, second), key=len)
    if not len(short) or len(short) < NEAR_COPY * len(long):
        return False
    found = np.minimum(long.searchsorted(short), len(long) - 1)
    shared = int(np.count_nonzero(long[found] == short))
    return shared >= NEAR_COPY * (len(first) + len(second) - shared)
