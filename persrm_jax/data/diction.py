"""Words that a text shares with a person's, and how much each tells."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log

COMMON = log(10)
"""Rarity up to which a word tells nothing: that of one in a tenth of all texts."""

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


@dataclass(frozen=True)
class Diction:
    """How many of the texts that it was fitted to have each word."""

    num_texts: int
    counts: Counter[str]
    """By word in lower case, apostrophes straight."""

    def rarity(self, word: str) -> float:
        """The smooth inverse document frequency log((1 + n) / (1 + df))."""
        return log((1 + self.num_texts) / (1 + self.counts[_key(word)]))


def _key(word: str) -> str:
    return word.lower().replace("’", "'")


def words_in(text: str) -> set[str]:
    """The words of a text, as `Diction` has them."""
    return {_key(word) for word in _WORD.findall(text)}


def fit_diction(texts: Iterable[str]) -> Diction:
    counts: Counter[str] = Counter()
    num_texts = 0
    for text in texts:
        counts.update(words_in(text))
        num_texts += 1
    return Diction(num_texts, counts)


def shared_words(diction: Diction, exemplars: Sequence[str], text: str, most: int) -> list[str]:
    """The `most` rarest words of `text` that an exemplar has too.

    Each once, as it is first spelt in `text` and in its order there, so that a reader finds them
    going through the text. Case does not count; common words are left out.
    """
    known = {word for exemplar in exemplars for word in words_in(exemplar)}
    found: dict[str, str] = {}
    for word in _WORD.findall(text):
        if _key(word) in known and diction.rarity(word) > COMMON:
            found.setdefault(_key(word), word)
    telling = sorted(found, key=lambda word: -diction.rarity(word))[:most]
    return [found[w] for w in found if w in telling]
