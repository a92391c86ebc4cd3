"""What writers gave, kept as it comes: what was paid for once is not asked for again."""

import os
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

from persrm_jax.jsonl import parse_record, parse_row, record_line

_OUTAGE = 10
"""Requests in a row that nobody answers, after which a run ends."""


@dataclass(frozen=True)
class Answer:
    """To one request: a text, or what is wrong with it, or both."""

    key: str
    attempt: int
    kind: str
    writer: str
    text: str
    fault: str
    """Its sort first, up to a colon; empty where the text is as it should be."""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Answers:
    """A file of answers; its texts stay there."""

    def __init__(self, path: Path) -> None:
        """Goes on with the file if there is one; a last line that was cut off is dropped.

        Raises:
            ValueError: a line that is no answer.
        """
        self._path, self._places = path, dict[tuple[str, int], int]()
        self._counts: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
        self._tokens: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
        self._used: set[str] = set()
        self._lost_in_a_row = 0
        self._end = 0
        if path.exists():
            with path.open("rb") as file:
                for number, raw in enumerate(file, start=1):
                    if not raw.endswith(b"\n"):
                        break
                    self._note(self._parse(number, raw), self._end)
                    self._end += len(raw)
            os.truncate(path, self._end)

    @cached_property
    def _file(self) -> IO[bytes]:
        """Appended to, and read anywhere; there is none before it is needed."""
        return self._path.open("a+b")

    def _parse(self, number: int, raw: bytes) -> Answer:
        place = f"{self._path}, line {number}"
        return parse_record(place, parse_row(place, raw) or {}, Answer)

    def _note(self, answer: Answer, place: int) -> None:
        self._places[answer.key, answer.attempt] = place
        under = answer.key.split("|")[0]
        self._counts[under][answer.kind, answer.fault.split(":")[0]] += 1
        self._tokens[under][answer.writer, "prompt"] += answer.prompt_tokens
        self._tokens[under][answer.writer, "completion"] += answer.completion_tokens

    def settings(self, *values: object) -> str:
        """The first part of keys, which says what answers depend on beside the question, so that
        other settings ask anew. What is asked under it counts from now on."""
        under = f"{zlib.crc32(repr(values).encode()):08x}"
        self._used.add(under)
        return under

    @property
    def counts(self) -> Counter[tuple[str, str]]:
        """Answers under the settings in use by kind and sort of fault."""
        return sum((self._counts[under] for under in sorted(self._used)), Counter())

    @property
    def tokens(self) -> Counter[tuple[str, str]]:
        """Under the settings in use by writer, `prompt` and `completion`."""
        return sum((self._tokens[under] for under in sorted(self._used)), Counter())

    def find(self, key: str, attempt: int) -> Answer | None:
        place = self._places.get((key, attempt))
        if place is None:
            return None
        self._file.seek(place)
        return self._parse(0, self._file.readline())

    def add(self, answer: Answer) -> None:
        line = record_line(answer).encode()
        self._file.seek(0, os.SEEK_END)
        self._file.write(line)
        self._file.flush()
        self._note(answer, self._end)
        self._end += len(line)
        self._lost_in_a_row = 0

    def lose(self, fault: str) -> None:
        """Notes that nobody answered, which is not kept.

        Raises:
            ValueError: nobody has for many requests in a row.
        """
        self._lost_in_a_row += 1
        if self._lost_in_a_row == _OUTAGE:
            raise ValueError(
                f"{_OUTAGE} requests in a row were not answered ({fault}): what was answered is in "
                f"{self._path}, and the same command goes on from there"
            )

    def close(self) -> None:
        if "_file" in self.__dict__:
            self._file.close()
