"""What writers gave, kept as it comes: what was paid for once is not asked for again."""

import os
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

from persrm_jax.jsonl import parse_record, parse_row, record_line


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
        self.counts: Counter[tuple[str, str]] = Counter()
        """By kind and sort of fault."""
        self.tokens: dict[str, Counter[str]] = defaultdict(Counter)
        """Read and written by each writer: `prompt`, `completion`."""
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
        self.counts[answer.kind, answer.fault.split(":")[0]] += 1
        spent = {"prompt": answer.prompt_tokens, "completion": answer.completion_tokens}
        self.tokens[answer.writer].update(spent)

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

    def close(self) -> None:
        if "_file" in self.__dict__:
            self._file.close()
