"""Words as numbers, fast enough to look at every text of a large corpus: hashes that a text's words
get all at once, the same in every process and on every machine."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
_MIX = np.uint64(0xFF51AFD7ED558CCD)
_SHIFT = np.uint64(33)
_SPACE = ord(" ")
# Letters, digits and all that is not ASCII are of words; all else stands between them.
_IN_WORDS = bytes(b if b >= 0x80 or chr(b).isalnum() else _SPACE for b in range(256))


class Words(NamedTuple):
    """The n words of a text in their order, in lower case."""

    hashes: np.ndarray
    """[n], uint64."""
    lengths: np.ndarray
    """[n], uint8: in bytes, at most 255."""
    initials: np.ndarray
    """[n], uint8: their first bytes."""


def words_of(text: str) -> Words:
    """A word's hash is sum_j byte_j BASE^j modulo 2**64 over its bytes, which is the difference of
    two of the text's running sums, shifted to begin at BASE^0; then its bits are mixed."""
    data = np.frombuffer(
        text.lower().encode("utf-8", "surrogatepass").translate(_IN_WORDS) + b" ", np.uint8
    )
    is_word = data != _SPACE
    edges = np.flatnonzero(np.diff(is_word, prepend=False))
    starts, ends = edges[::2], edges[1::2]
    powers, inverses = _powers(1 << len(data).bit_length())
    sums = np.zeros(len(data) + 1, np.uint64)
    np.cumsum(data * powers[: len(data)], out=sums[1:])
    hashes = (sums[ends] - sums[starts]) * inverses[starts]
    return Words(mix(hashes), np.minimum(ends - starts, 255).astype(np.uint8), data[starts])


def mix(hashes: np.ndarray) -> np.ndarray:
    """Spreads what differs in some bits over all of them."""
    hashes = (hashes ^ (hashes >> _SHIFT)) * _MIX
    return hashes ^ (hashes >> _SHIFT)


@lru_cache(maxsize=8)
def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """BASE^0 to BASE^(count - 1), and their inverses, modulo 2**64."""
    factors = np.full((2, count), np.array([[_BASE], [pow(_BASE, -1, 2**64)]], np.uint64))
    factors[:, 0] = 1
    powers, inverses = np.cumprod(factors, axis=1)
    return powers, inverses
