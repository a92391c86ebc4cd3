"""Who writes negatives and traces: a function from requests to texts, in their order."""

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """One text that is asked for."""

    key: str
    """Its name. What is drawn depends on it, not on what else is asked for, or by how many."""
    messages: tuple[dict[str, str], ...]
    """The chat prompt."""
    attempt: int = 0
    """Counts the tries for one text that was not what was asked for."""
    text: str = ""
    """The text that is to be changed, for a writer that goes by rules."""

    @property
    def seed(self) -> int:
        """31 bits."""
        return zlib.crc32(f"{self.key}#{self.attempt}".encode()) & 0x7FFFFFFF


@dataclass(frozen=True)
class Written:
    """What came of a request."""

    text: str | None
    fault: str = ""
    """Why there is none; its sort first, up to a colon."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    is_lost: bool = False
    """Whether nobody answered, so that the same request may be answered another time."""


Writer = Callable[[Iterable[Request]], Iterator[Written]]
"""Answers come in the order of the requests, which are drawn on as answers are taken."""


@dataclass(frozen=True)
class NamedWriter:
    """A writer, and what records call it: `rules`, `local:MODEL`, `openai:MODEL`."""

    label: str
    write: Writer
    settings: str = ""
    """All that its texts depend on beside the request."""
