"""Measured facts of a text, and how a person's compare with everybody's."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

LEVELS = ("low", "medium", "high")

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")
_HEDGES = frozenset(
    "maybe perhaps possibly probably guess think seem seems seemed appears apparently likely "
    "somewhat rather might may could".split()
)
_STRESS = frozenset(
    "really very totally absolutely completely extremely quite highly truly indeed".split()
)
_FIRST_PERSON = frozenset(
    "i me my mine myself we us our ours i'm i'll i've i'd we're we'll".split()
)
_CONNECTIVES = frozenset("and but or so because although though while since however".split())
_ARTICLES = frozenset("the a an".split())
_PREPOSITIONS = frozenset("of in to for with on at by from about into over after between".split())
_AUXILIARIES = frozenset("is are was were be been being has have had do does did will".split())


def _words(text: str) -> list[str]:
    return [word.lower().replace("’", "'") for word in _WORD.findall(text)]


def _share(text: str, vocabulary: frozenset[str]) -> float:
    words = _words(text)
    return 100 * sum(word in vocabulary for word in words) / max(len(words), 1)


def _sentences(text: str) -> list[str]:
    return [s for part in _SENTENCE_END.split(text) if (s := part.strip())]


def _per_sentence(text: str, marks: str) -> float:
    return sum(text.count(mark) for mark in marks) / max(len(_sentences(text)), 1)


def _sentence_length(text: str) -> float:
    return len(_words(text)) / max(len(_sentences(text)), 1)


def _capital_starts(text: str) -> float:
    starts = [s[0] for s in _sentences(text)]
    return sum(c.isupper() for c in starts) / max(len(starts), 1)


def _contractions(text: str) -> float:
    words = _words(text)
    return (
        100
        * sum("'" in w and not w.endswith("'s") or w == "it's" for w in words)
        / max(len(words), 1)
    )


def _word_length(text: str) -> float:
    words = _words(text)
    return sum(map(len, words)) / max(len(words), 1)


def _variety(text: str) -> float:
    words = _words(text)[:100]
    return len(set(words)) / max(len(words), 1)


def _digits(text: str) -> float:
    return 100 * sum(c.isdigit() for c in text) / max(len(text), 1)


def _paragraph_length(text: str) -> float:
    paragraphs = [p for p in text.split("\n\n") if p.strip()]
    return len(_words(text)) / max(len(paragraphs), 1)


FACTS: dict[str, Callable[[str], float]] = {
    "sentence length": _sentence_length,
    "exclamation marks": lambda text: _per_sentence(text, "!"),
    "question marks": lambda text: _per_sentence(text, "?"),
    "commas": lambda text: _per_sentence(text, ","),
    "semicolons and dashes": lambda text: _per_sentence(text, ";:—–") + text.count(" - "),
    "quotation marks": lambda text: _per_sentence(text, '"“”'),
    "parentheses": lambda text: _per_sentence(text, "("),
    "capital letters": _capital_starts,
    "contractions": _contractions,
    "hedges": lambda text: _share(text, _HEDGES),
    "emphasis": lambda text: _share(text, _STRESS),
    "first person": lambda text: _share(text, _FIRST_PERSON),
    "connectives": lambda text: _share(text, _CONNECTIVES),
    "articles": lambda text: _share(text, _ARTICLES),
    "prepositions": lambda text: _share(text, _PREPOSITIONS),
    "auxiliary verbs": lambda text: _share(text, _AUXILIARIES),
    "word length": _word_length,
    "word variety": _variety,
    "digits": _digits,
    "paragraph length": _paragraph_length,
}
"""To add a fact: its name in a trace, and a function of one text."""


@lru_cache(maxsize=8192)  # exemplars come again and again
def measure(text: str) -> np.ndarray:
    """Every fact of one text, [len(FACTS)]; not to be written to."""
    found = np.array([fact(text) for fact in FACTS.values()])
    found.flags.writeable = False
    return found


@dataclass(frozen=True)
class Yardstick:
    """The facts that tell people apart, most telling first, and the corpus's terciles of each."""

    names: tuple[str, ...]
    columns: np.ndarray
    terciles: np.ndarray

    def levels(self, facts: np.ndarray) -> np.ndarray:
        """0 (low), 1 or 2 (high) for each of `names`, of the facts that `measure` gave."""
        return (facts[self.columns, None] > self.terciles).sum(axis=1)


def fit_yardstick(texts: Sequence[str], authors: Sequence[str], num_facts: int) -> Yardstick:
    """Takes the `num_facts` facts with the largest F ratio, the variance of people's means over the
    mean variance within a person; terciles are over all texts.

    Raises:
        ValueError: fewer than two authors.
    """
    names = np.array(authors)
    people = sorted(set(authors))
    if len(people) < 2:
        raise ValueError(f"the stylometric teacher needs texts by two authors, got {len(people)}")
    values = np.stack([measure(text) for text in texts])
    groups = [values[names == person] for person in people]
    between = np.var([g.mean(axis=0) for g in groups], axis=0)
    within = np.mean([g.var(axis=0) for g in groups], axis=0)
    ratio = np.where(between > 0, between / np.maximum(within, 1e-12), 0.0)
    columns = np.argsort(-ratio, kind="stable")[:num_facts]
    terciles = np.quantile(values[:, columns], [1 / 3, 2 / 3], axis=0).T
    # A fact that most texts have at its extreme: the middle level would never occur.
    low, high = values[:, columns].min(axis=0), values[:, columns].max(axis=0)
    terciles[:, 1] = np.where(terciles[:, 1] >= high, (terciles[:, 0] + high) / 2, terciles[:, 1])
    terciles[:, 0] = np.where(terciles[:, 0] < low, low, terciles[:, 0])
    return Yardstick(tuple(list(FACTS)[c] for c in columns), columns, terciles)
