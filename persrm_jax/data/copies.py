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


class CopyFilter:
    """Finds near copies of what it was shown before, in memory that does not grow.

    A text is known by the least of its five-grams' hashes under each of `_SKETCH` orders; two texts
    share each with a chance of their Jaccard similarity (Broder 1997, min-wise hashing). A text
    that shares `_SHARED` of them with some that came before counts as a copy: of those with
    similarity .5 about one in twenty is found, with .8 more than half, with .9 nearly all.
    """

    _SKETCH, _SHARED = 8, 7

    def __init__(self, bits: int = 25) -> None:
        self._table = np.zeros(1 << bits, np.uint32)
        self._places = np.uint64(64 - bits)
        orders = np.arange(1, self._SKETCH + 1, dtype=np.uint64)
        self._orders = mix(orders * _FACTOR)

    def is_copy(self, words: Words) -> bool:
        """Whether a text is a near copy of some that came before, which it joins if not."""
        grams = five_grams(words)
        if not len(grams):
            return False
        sketch = mix(mix(grams[None] ^ self._orders[:, None]).min(axis=1) ^ self._orders)
        places = (sketch >> self._places).astype(np.int64)
        marks = (sketch & np.uint64(0xFFFFFFFF)).astype(np.uint32) | np.uint32(1)
        if np.count_nonzero(self._table[places] == marks) >= self._SHARED:
            return True
        self._table[places] = marks
        return False
