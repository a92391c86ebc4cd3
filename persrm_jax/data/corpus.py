"""Documents by number, whether they are in memory or stay in their file."""

import json
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from persrm_jax.jsonl import parse_record, parse_row
from persrm_jax.types import Document


class Grouped(NamedTuple):
    """Numbers of documents by author: those of author a are texts[starts[a] : starts[a + 1]]."""

    texts: np.ndarray
    starts: np.ndarray

    def of(self, author: int) -> np.ndarray:
        return self.texts[self.starts[author] : self.starts[author + 1]]

    @property
    def counts(self) -> np.ndarray:
        return np.diff(self.starts)


@dataclass(frozen=True)
class Corpus:
    """N documents of `names`, the authors, sorted. For a file of any length: 17 bytes a document
    are kept, and the authors' names."""

    names: list[str]
    author: np.ndarray
    """[N], int32: whose it is."""
    is_exemplar: np.ndarray
    """[N], bool: whether it is in the pool of exemplars, or that of candidates."""
    source: np.ndarray
    """[N], int32: number of the first passage of the text that it is of."""
    documents: Sequence[Document] | None = None
    path: Path | None = None
    offsets: np.ndarray | None = None
    """[N], int64: where its line begins in the file."""

    @staticmethod
    def of(documents: Sequence[Document]) -> "Corpus":
        """Documents in memory."""
        return Corpus(*_index(documents), documents)

    @staticmethod
    def open(path: Path) -> "Corpus":
        """A file of documents, read through once; later each is read as it is asked for.

        Raises:
            ValueError: as `jsonl.read_records`, or an id that two documents have.
        """
        offsets: list[int] = []

        def records() -> Iterable[Document]:
            begin = 0
            ids: dict[int, int] = {}
            with path.open("rb") as file:
                for number, raw in enumerate(file, start=1):
                    place = f"{path}, line {number}"
                    row = parse_row(place, raw)
                    if row is not None:
                        document = parse_record(place, row, Document)
                        first = ids.setdefault(hash(document.doc_id), number)
                        if first != number:
                            raise ValueError(f"{place}: {document.doc_id!r} is line {first}'s id")
                        offsets.append(begin)
                        yield document
                    begin += len(raw)

        if not path.is_file():
            raise ValueError(f"{path}: no such file")
        indexed = _index(records())
        return Corpus(*indexed, path=path, offsets=np.array(offsets, np.int64))

    def __len__(self) -> int:
        return len(self.author)

    def __getitem__(self, number: int) -> Document:
        if self.documents is not None:
            return self.documents[number]
        assert self.path is not None and self.offsets is not None
        with self.path.open("rb") as file:
            file.seek(int(self.offsets[number]))
            return Document(**json.loads(file.readline()))

    def by_author(self, chosen: np.ndarray) -> Grouped:
        """The documents where `chosen`, [N], is true."""
        texts = np.flatnonzero(chosen)
        texts = texts[np.argsort(self.author[texts], kind="stable")]
        counts = np.bincount(self.author[texts], minlength=len(self.names))
        return Grouped(texts, np.concatenate([[0], np.cumsum(counts)]))

    @cached_property
    def exemplars(self) -> Grouped:
        return self.by_author(self.is_exemplar)

    @cached_property
    def candidates(self) -> Grouped:
        return self.by_author(~self.is_exemplar)


def _index(
    documents: Iterable[Document],
) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """The authors' names, sorted; each document's author, whether it is an exemplar, and its text's
    first passage."""
    numbers: dict[str, int] = {}
    author, source, pool = array("l"), array("l"), bytearray()
    last = None
    for number, document in enumerate(documents):
        author.append(numbers.setdefault(document.author, len(numbers)))
        pool.append(document.split == "train")
        text = (document.author, document.doc_id.rpartition("#")[0] or document.doc_id)
        # A text's first passage may have its plain name, the others name#2, name#3.
        source.append(source[-1] if text == last else number)
        last = text
    names = sorted(numbers)
    places = np.zeros(len(names), np.int32)
    places[[numbers[name] for name in names]] = np.arange(len(names), dtype=np.int32)
    return (
        names,
        places[np.array(author, np.int64)],
        np.frombuffer(bytes(pool), np.bool_),
        np.array(source, np.int32),
    )
