"""Texts from an OpenAI-compatible endpoint, by the official client."""

import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from persrm_jax.data.cleaning import as_utf8
from persrm_jax.data.writers import Request, Written

KEY = "OPENAI_API_KEY"
_AHEAD = 2
"""Requests under way or answered for each that is taken, in units of the concurrency."""


@dataclass(frozen=True)
class OpenAIConfig:
    """The endpoint, and how it is asked. The key comes from the environment alone."""

    base_url: str = ""
    """Such as http://localhost:8000/v1; OpenAI's own where none is given."""
    model: str = ""
    """The model's name there."""
    temperature: float = 0.8
    max_tokens: int = 1024
    """Longest answer."""
    concurrency: int = 8
    """Requests at a time."""
    requests_per_minute: float = 0.0
    """At most; 0: as many as answers allow."""
    timeout: float = 120.0
    """Seconds that a request may take."""
    retries: int = 5
    """Further tries after a time-out, a cut connection, a 429 or a 5xx, each after a longer wait,
    or the wait that the endpoint asks for."""
    price_in: float = 0.0
    """Of a million prompt tokens, to reckon the cost."""
    price_out: float = 0.0
    """Of a million tokens written."""

    def __post_init__(self) -> None:
        for name, least in (("concurrency", 1), ("retries", 0), ("max_tokens", 1)):
            if getattr(self, name) < least:
                flag = name.replace("_", "-")
                raise ValueError(f"--openai.{flag} {getattr(self, name)}: must be at least {least}")
        if self.timeout <= 0 or self.requests_per_minute < 0:
            raise ValueError(
                f"--openai.timeout {self.timeout} must be above 0 and "
                f"--openai.requests-per-minute {self.requests_per_minute} 0 or more"
            )

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """In the currency of the prices."""
        return (prompt_tokens * self.price_in + completion_tokens * self.price_out) / 1e6


class OpenAIWriter:
    """A `Writer`. A request that fails is a fault of its own; an endpoint that refuses everybody
    ends the run."""

    def __init__(self, cfg: OpenAIConfig, flag: str = "--writer openai") -> None:
        """Connects to nothing yet.

        Args:
            flag: what was given that an endpoint is needed for; errors begin with it.

        Raises:
            ValueError: no model, no key for OpenAI's own endpoint, or no client installed.
        """
        try:
            import openai  # noqa: PLC0415
        except ImportError:
            raise ValueError(f"{flag}: pip install 'persrm-jax[openai]' first") from None
        if not cfg.model:
            raise ValueError("--openai.model: name the model that the endpoint is to ask")
        key = os.environ.get(KEY)
        if not (key or cfg.base_url):
            raise ValueError(f"{flag}: set {KEY}, or give --openai.base-url")
        self.cfg, self._flag = cfg, flag
        self._openai = openai
        self._client = openai.OpenAI(
            base_url=cfg.base_url or None,
            api_key=key or "none",
            timeout=cfg.timeout,
            max_retries=cfg.retries,
        )
        self._lock, self._next = threading.Lock(), 0.0

    def __call__(self, requests: Iterable[Request]) -> Iterator[Written]:
        """Raises:
        ValueError: the endpoint knows no such key, address or model.
        """
        waiting: deque[Future[Written]] = deque()
        with ThreadPoolExecutor(self.cfg.concurrency) as pool:
            try:
                for request in requests:
                    waiting.append(pool.submit(self._ask, request))
                    if len(waiting) >= _AHEAD * self.cfg.concurrency:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _ask(self, request: Request) -> Written:
        fatal = (
            self._openai.AuthenticationError,
            self._openai.PermissionDeniedError,
            self._openai.NotFoundError,
        )
        error: Exception | None = None
        for attempt in range(self.cfg.retries + 1):
            self._pace()
            try:
                return self._read(self._send(request))
            except fatal as refused:
                raise ValueError(
                    f"{self._flag}, {self._client.base_url}, --openai.model {self.cfg.model}: "
                    f"{refused}"
                ) from None
            except self._openai.BadRequestError as failed:  # of this text
                return Written(None, f"{type(failed).__name__}: {failed}")
            except self._openai.APIError as failed:  # the client has tried again by itself
                return Written(None, f"{type(failed).__name__}: {failed}", is_lost=True)
            except (ValueError, AttributeError, TypeError, IndexError) as garbled:
                error = garbled  # no JSON, or of another shape
                time.sleep(min(0.1 * 2**attempt, 8.0))
        return Written(None, f"garbled: {error}", is_lost=True)

    def _send(self, request: Request) -> Any:
        return self._client.chat.completions.create(
            model=self.cfg.model,
            messages=list(request.messages),  # type: ignore[arg-type]
            temperature=self.cfg.temperature,
            max_tokens=self.cfg.max_tokens,
            seed=request.seed,
        )

    @staticmethod
    def _read(answer: Any) -> Written:
        choice = answer.choices[0]
        text = choice.message.content
        spent = answer.usage  # some servers leave it out, or parts of it
        names = ("prompt_tokens", "completion_tokens")
        read, written = (int(getattr(spent, name, None) or 0) for name in names)
        if choice.finish_reason == "length":
            return Written(None, "cut off: longer than --openai.max-tokens", read, written)
        if not isinstance(text, str) or not text.strip():
            return Written(None, "empty: no text", read, written)
        return Written(as_utf8(text.strip()), "", read, written)

    def _pace(self) -> None:
        """Waits for a turn."""
        if not self.cfg.requests_per_minute:
            return
        with self._lock:
            now = time.monotonic()
            mine = max(now, self._next)
            self._next = mine + 60 / self.cfg.requests_per_minute
        time.sleep(mine - now)
