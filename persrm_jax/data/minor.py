"""Minor replacement: 3 or 4 words of a text give way to near synonyms, and nothing else changes
(PersRM-R1, arXiv 2508.14076). Whoever wrote one, a comparison of words proves it."""

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from persrm_jax.data.synonyms import SYNONYMS
from persrm_jax.data.writers import Request, Written

NUM_CHANGES = (3, 4)
_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_TITLES = frozenset("Mr Mrs Ms Dr St No Gen Gov Rev Sen Rep Prof Sir Lt Col Capt".split())
_SENTENCE_END = re.compile(r"[.!?:]['\"”’)\]]*\s+[\"“‘'(\[]*\Z|\n\s*[\"“‘'(\[]*\Z|\A[\"“‘'(\[]*\Z")


def minor_fault(text: str, changed: str) -> str | None:
    """Why `changed` is no minor replacement of `text`; None where it is one."""
    (words, gaps), (others, other_gaps) = _split(text), _split(changed)
    if len(words) != len(others):
        return f"has {len(others)} words, not {len(words)}"
    if gaps != other_gaps:
        return "changes spaces or punctuation"
    places = [i for i, (a, b) in enumerate(zip(words, others, strict=True)) if a != b]
    if len(places) not in NUM_CHANGES:
        return f"changes {len(places)} words, not {NUM_CHANGES[0]} to {NUM_CHANGES[1]}"
    names = _names(words, gaps)
    for i in places:
        old, new = words[i], others[i]
        if any(c.isdigit() for c in old + new):
            return f"changes a number: {old}, {new}"
        if old in names:
            return f"changes a name: {old}, {new}"
        if old.casefold() == new.casefold() or _case(old) != _case(new):
            return f"changes the case of a word: {old}, {new}"
    return None


def replace_words(text: str, rng: np.random.Generator) -> str | None:
    """`text` with 3 or 4 words replaced by the list of synonyms; None where it has too few that
    the list knows. The same generator gives the same text."""
    words, gaps = _split(text)
    names = _names(words, gaps)
    places = [
        i
        for i, word in enumerate(words)
        if word.lower() in SYNONYMS
        and _case(word) != "other"
        and word not in names
        and _choices(words, i)
    ]
    count = int(rng.choice(NUM_CHANGES))
    if len(places) < NUM_CHANGES[0]:
        return None
    for i in rng.permutation(places)[: min(count, len(places))].tolist():
        new = str(rng.choice(_choices(words, i)))
        words[i] = new if _case(words[i]) == "lower" else new.capitalize()
    return "".join(gap + word for gap, word in zip(gaps, [*words, ""], strict=True))


def write_minor(requests: Iterable[Request]) -> Iterator[Written]:
    """A `Writer` of minor replacements that needs no model."""
    for request in requests:
        text = replace_words(request.text, np.random.default_rng(request.seed))
        fault = "" if text else f"few words: the list knows fewer than {NUM_CHANGES[0]} of them"
        yield Written(text, fault)


def _split(text: str) -> tuple[list[str], list[str]]:
    """The words, and what stands before each and after the last."""
    found = list(_WORD.finditer(text))
    ends = [0, *(m.end() for m in found)]
    starts = [*(m.start() for m in found), len(text)]
    return [m[0] for m in found], [text[a:b] for a, b in zip(ends, starts, strict=True)]


def _case(word: str) -> str:
    if word.islower():
        return "lower"
    return "capital" if word[0].isupper() and word[1:].islower() else "other"


def _names(words: Sequence[str], gaps: Sequence[str]) -> set[str]:
    """Words that are capital within a sentence somewhere, and words in capitals."""
    inside = {
        word
        for i, word in enumerate(words)
        if word[0].isupper() and not _starts_sentence(words, gaps, i)
    }
    return inside | {word for word in words if len(word) > 1 and word.isupper()}


def _starts_sentence(words: Sequence[str], gaps: Sequence[str], i: int) -> bool:
    if i == 0:
        return True
    before = words[i - 1]
    is_short = before in _TITLES or (len(before) == 1 and before.isupper())  # Mr. Hill, J. Hill
    return bool(_SENTENCE_END.search(gaps[i])) and not (is_short and gaps[i].startswith("."))


def _choices(words: Sequence[str], i: int) -> tuple[str, ...]:
    """Synonyms that the article before still fits."""
    options = SYNONYMS[words[i].lower()]
    if i and words[i - 1].lower() in ("a", "an"):
        wants_vowel = words[i - 1].lower() == "an"
        return tuple(w for w in options if (w[0] in "aeiou") == wants_vowel)
    return options
