"""Finds strings in a stream of tokens, on the device and however they are cut into tokens.

A table says, for each state (how much of a string the last bytes have spelt) and token, the next
state (Aho and Corasick 1975). Decoding then needs one look-up a token, and no text.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


def match_table(
    strings: Sequence[str], token_bytes: Sequence[bytes]
) -> Int[np.ndarray, "states V"]:
    """The next state by state and token. State 0 is the start; the last, which is never left, says
    that one of `strings` has been spelt.

    Raises:
        ValueError: an empty string.
    """
    patterns = [string.encode() for string in strings]
    if not all(patterns):
        raise ValueError("a stop string is empty")
    prefixes = sorted({p[:n] for p in patterns for n in range(len(p))}, key=lambda p: (len(p), p))
    number = {prefix: state for state, prefix in enumerate(prefixes)}
    found = len(prefixes)

    def after(spelt: bytes) -> int:
        if any(spelt.endswith(pattern) for pattern in patterns):
            return found
        return next(number[rest] for n in range(len(spelt) + 1) if (rest := spelt[n:]) in number)

    by_byte = np.array([[after(p + bytes([b])) for b in range(256)] for p in prefixes])
    by_byte = np.vstack([by_byte, np.full(256, found)])
    table = np.empty((found + 1, len(token_bytes)), np.int32)
    for token, spelling in enumerate(token_bytes):
        states = np.arange(found + 1)
        for byte in spelling:
            states = by_byte[states, byte]
        table[:, token] = states
    return table
