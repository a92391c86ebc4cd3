"""Texts -> documents: cleaned, cut to passages, without repeats, each in one of the two pools."""

import logging
import re
import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persrm_jax.jsonl import read_rows
from persrm_jax.types import Document, Pool

_LOG = logging.getLogger(__name__)

# A sentence ends at . ! or ? (and closing quotes) where no lower-case letter follows, unless the
# stop belongs to an initial or a title.
_SENTENCE = re.compile(
    r"""\S.*?(?:(?<!\b[A-Z])(?<!\b(?:Mr|Dr|St|No))(?<!\b(?:Mrs|Gen|Gov|Rev|Sen))"""
    r"""[.!?]["'”’)\]]*(?=\s+[^a-z\s])|\Z)"""
)


@dataclass(frozen=True)
class CorpusConfig:
    """How texts become documents."""

    max_words: int = 128
    """Longest document in words; longer texts are cut at a sentence end."""
    min_words: int = 40
    """Shorter texts are dropped."""
    passages: int = 1
    """Most passages taken from one text (0: all)."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_words <= self.max_words:
            raise ValueError(
                f"min_words is {self.min_words} and max_words {self.max_words};"
                " they must satisfy 1 <= min_words <= max_words"
            )
        if self.passages < 0:
            raise ValueError(f"passages is {self.passages}; it must be 0 (all) or more")


@dataclass(frozen=True)
class _Text:
    """One row of a file; `split` is None where the row has none."""

    line: int
    author: str
    doc_id: str
    domain: str
    split: Pool | None
    text: str
    prompt: str


def clean_text(text: str) -> str:
    """Single spaces inside paragraphs, one blank line between them."""
    paragraphs = (" ".join(p.split()) for p in re.split(r"\n\s*\n", text))
    return "\n\n".join(p for p in paragraphs if p)


def cut_passages(text: str, max_words: int) -> list[str]:
    """All of `text`, cleaned, as passages of whole sentences with at most `max_words` words each.

    A sentence longer than that is cut at a word.
    """
    passages: list[str] = []
    current, num_words = "", 0
    for paragraph in clean_text(text).split("\n\n"):
        gap = "\n\n"
        for sentence in _SENTENCE.findall(paragraph):
            words = sentence.split()
            for start in range(0, len(words), max_words):
                piece = words[start : start + max_words]
                if current and num_words + len(piece) > max_words:
                    passages.append(current)
                    current, num_words = "", 0
                current = current + (gap if current else "") + " ".join(piece)
                num_words += len(piece)
                gap = " "
    return [*passages, current] if current else passages


def long_passages(text: str, cfg: CorpusConfig) -> list[str]:
    """The passages of `text` that have at least `cfg.min_words` words."""
    passages = cut_passages(text, cfg.max_words)
    return [p for p in passages if len(p.split()) >= cfg.min_words]


def drop_repeats(passages: list[str], seen: set[str], max_passages: int | None = None) -> list[str]:
    """The first `max_passages` passages that are not in `seen`, each once; they join `seen`."""
    new = [p for p in dict.fromkeys(passages) if p not in seen][:max_passages]
    seen.update(new)
    return new


def load_documents(path: Path, cfg: CorpusConfig) -> list[Document]:
    """Reads texts from JSON Lines (`.gz` is unpacked) and makes documents in the file's order.

    Rows have `author` and `text`, and may have `doc_id` (default: the author and a running
    number), `domain` (default: the file's stem), `split` (default: an author's remaining texts go
    to `train` and `test` in turn, sorted by `doc_id`) and `prompt`. Further fields are ignored. A
    text's passages share its split; from the second on, the k-th taken is called `doc_id#k`. A
    passage that an earlier text has given is passed over. What is dropped is counted in the log.

    Raises:
        ValueError: a malformed row, no rows, an author with one text, or no author with documents
            in both pools; it names the file, and the line or the author.
    """
    texts = _read_texts(path)
    whole_texts: set[str] = set()
    seen: set[str] = set()
    kept: list[tuple[_Text, list[str]]] = []
    num_short = num_repeats = 0
    for text in texts:
        passages = long_passages(text.text, cfg)
        new = []
        if drop_repeats([clean_text(text.text)], whole_texts):
            new = drop_repeats(passages, seen, cfg.passages or None)
        if new:
            kept.append((text, new))
        elif passages:
            num_repeats += 1
        else:
            num_short += 1
    splits = _splits([text for text, _ in kept])
    documents = [
        Document(
            author=text.author,
            doc_id=text.doc_id if number == 1 else f"{text.doc_id}#{number}",
            domain=text.domain,
            split=splits[text.doc_id],
            text=passage,
            prompt=text.prompt,
        )
        for text, passages in kept
        for number, passage in enumerate(passages, start=1)
    ]
    pools = {pool: {d.author for d in documents if d.split == pool} for pool in ("train", "test")}
    if not pools["train"] & pools["test"]:
        raise ValueError(
            f"{path}: no author has a train and a test document of at least {cfg.min_words} words;"
            " give authors texts of both splits, or lower min_words"
        )
    _LOG.info(
        "%s: dropped %d texts shorter than %d words, %d repeated texts, %d authors",
        path,
        num_short,
        cfg.min_words,
        num_repeats,
        len({text.author for text in texts} - {d.author for d in documents}),
    )
    return documents


def summarize(documents: list[Document]) -> str:
    """One line: numbers of authors and documents, the pools, median length, domains."""
    num_words = [len(document.text.split()) for document in documents]
    num_train = sum(document.split == "train" for document in documents)
    return (
        f"{len({d.author for d in documents}):,} authors, {len(documents):,} documents"
        f" ({num_train:,} exemplar pool, {len(documents) - num_train:,} candidate pool),"
        f" median {statistics.median_low(num_words)} words,"
        f" domains: {', '.join(sorted({d.domain for d in documents}))}"
    )


def _read_texts(path: Path) -> list[_Text]:
    """Reads the rows; checks each, that ids are unique, and that each author has two texts."""
    domain = path.name.removesuffix(".gz").removesuffix(".jsonl")
    num_texts: Counter[str] = Counter()
    texts: dict[str, _Text] = {}
    for line, row in read_rows(path):
        text = _read_text(f"{path}, line {line}", line, row, domain, num_texts)
        if text.doc_id in texts:
            raise ValueError(
                f"{path}, line {line}: doc_id {text.doc_id!r} is taken by line"
                f" {texts[text.doc_id].line}; give each text its own, or leave the field out"
            )
        texts[text.doc_id] = text
    if not texts:
        raise ValueError(f"{path}: holds no documents")
    for author, count in num_texts.items():
        if count == 1:
            raise ValueError(
                f"{path}: author {author!r} has one document; each author needs at least two,"
                " one to serve as exemplar and one as candidate"
            )
    return list(texts.values())


def _read_text(
    place: str, line: int, row: dict[str, Any], domain: str, num_texts: Counter[str]
) -> _Text:
    """Checks one row, fills in what it leaves out, and adds it to the author's `num_texts`."""
    for field in ("author", "text"):
        if not isinstance(row.get(field), str) or not row[field].strip():
            fault = "empty" if isinstance(row.get(field), str) else "bad"
            fault = fault if field in row else "no field"
            raise ValueError(f"{place}: {fault} {field!r}; it must be a string that is not blank")
    for field in ("domain", "prompt"):
        if not isinstance(row.get(field, ""), str):
            raise ValueError(f"{place}: bad {field!r}; it must be a string")
    author = row["author"].strip()
    num_texts[author] += 1
    doc_id = row.get("doc_id", f"{author}-{num_texts[author]}")
    if isinstance(doc_id, bool) or not isinstance(doc_id, str | int) or doc_id == "":
        raise ValueError(
            f"{place}: bad 'doc_id'; it must be a string that is not empty, or a whole number"
        )
    split = row.get("split")
    if split not in (None, "train", "test"):
        raise ValueError(f"{place}: split is {split!r}; it must be 'train' or 'test'")
    return _Text(
        line=line,
        author=author,
        doc_id=str(doc_id),
        domain=row.get("domain", domain),
        split=split,
        text=row["text"],
        prompt=row.get("prompt", ""),
    )


def _splits(texts: list[_Text]) -> dict[str, Pool]:
    """Each text's split by `doc_id`; texts without one alternate within their author."""
    splits: dict[str, Pool] = {text.doc_id: text.split for text in texts if text.split}
    turns: Counter[str] = Counter()
    for text in sorted(texts, key=lambda text: _natural_order(text.doc_id)):
        if text.split is None:
            splits[text.doc_id] = "test" if turns[text.author] % 2 else "train"
            turns[text.author] += 1
    return splits


def _natural_order(doc_id: str) -> list[str | int]:
    """Sorts `a-10` after `a-9`."""
    return [int(p) if i % 2 else p for i, p in enumerate(re.split(r"(\d+)", doc_id))]
