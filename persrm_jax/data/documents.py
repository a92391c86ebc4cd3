"""Texts -> documents: cleaned, cut to passages, without repeats, each in one of the two pools."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from persrm_jax.data.cleaning import clean_text, cut_passages, english_share, strip_boilerplate
from persrm_jax.data.copies import CopyFilter
from persrm_jax.data.sources import Text
from persrm_jax.data.words import words_of
from persrm_jax.types import Document, Pool

_ENGLISH = 0.2
"""Share of common English words from which on a text is taken for English."""


@dataclass(frozen=True)
class CorpusConfig:
    """How texts become documents."""

    max_words: int = 128
    """Longest document in words; longer texts are cut at a sentence end."""
    min_words: int = 40
    """Shorter texts are dropped."""
    passages: int = 1
    """Most passages taken from one text (0: all)."""
    prompt_words: int = 32
    """Words before a passage that become its prompt, so that to continue them is a task (0: none);
    a text's own prompt stays its first passage's."""
    language: Literal["any", "en"] = "any"
    """`en` drops texts that do not look English."""
    boilerplate: bool = True
    """Whether to strip mail headers, quoted replies, legal notices and signatures."""
    near_copies: bool = True
    """Whether to drop passages that are almost one that came before."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_words <= self.max_words:
            raise ValueError(
                f"min_words is {self.min_words} and max_words {self.max_words};"
                " they must satisfy 1 <= min_words <= max_words"
            )
        for name in ("passages", "prompt_words"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")


@dataclass
class Counts:
    """What became of the texts."""

    texts: int = 0
    characters: int = 0
    documents: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Texts of which nothing was kept, by why."""
    near_copies: int = 0
    """Passages."""
    licenses: Counter[str] = field(default_factory=Counter)
    """Of the texts that say theirs."""


def make_documents(texts: Iterable[Text], cfg: CorpusConfig, counts: Counts) -> Iterator[Document]:
    """Documents in the order of the texts, which are taken one at a time.

    A text's passages share its split; a text without one goes to `train` and `test` in turn with
    its author's others. From the second on, the k-th passage taken is called `doc_id#k`. What is
    dropped is counted.
    """
    whole_texts: set[int] = set()
    seen: set[int] = set()
    copies = CopyFilter()
    turns: Counter[str] = Counter()
    for text in texts:
        counts.texts += 1
        counts.characters += len(text.text)
        found, why = _passages(text, cfg, whole_texts)
        new: list[tuple[str, str]] = []
        for prompt, passage in found:
            if cfg.passages and len(new) == cfg.passages:
                break
            if _is_new(passage, seen):
                if cfg.near_copies and copies.is_copy(words_of(passage)):
                    counts.near_copies += 1
                else:
                    new.append((prompt, passage))
        if not new:
            counts.dropped[why or "repeated"] += 1
            continue
        split: Pool = text.split or ("test" if turns[text.author] % 2 else "train")
        turns[text.author] += text.split is None
        if text.license:
            counts.licenses[text.license] += 1
        for number, (prompt, passage) in enumerate(new, start=1):
            counts.documents += 1
            yield Document(
                author=text.author,
                doc_id=text.doc_id if number == 1 else f"{text.doc_id}#{number}",
                domain=text.domain,
                split=split,
                text=passage,
                prompt=prompt,
            )


def _passages(
    text: Text, cfg: CorpusConfig, whole_texts: set[int]
) -> tuple[list[tuple[str, str]], str]:
    """(prompt, passage) of each passage that is long enough, and why there are none."""
    raw = strip_boilerplate(text.text) if cfg.boilerplate else text.text
    clean = clean_text(raw)
    found = long_passages(clean, clean_text(text.prompt), cfg)
    if not found:
        return [], "too short"
    if cfg.language == "en" and english_share(clean) < _ENGLISH:
        return [], "not English"
    return (found, "") if _is_new(clean, whole_texts) else ([], "repeated")


def _is_new(text: str, seen: set[int]) -> bool:
    """Whether a text is not in `seen`, which it joins."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "big")
    if number in seen:
        return False
    seen.add(number)
    return True


def long_passages(text: str, prompt: str, cfg: CorpusConfig) -> list[tuple[str, str]]:
    """(prompt, passage) of the passages of `text` that have at least `cfg.min_words` words. The
    first has the text's own prompt; so have the others if they are to have none of their own."""
    found = []
    for passage in cut_passages(text, cfg.max_words):
        words = passage.split()
        if len(words) >= cfg.min_words:
            found.append((prompt, passage))
        if cfg.prompt_words:
            prompt = " ".join(words[-cfg.prompt_words :])
    return found
