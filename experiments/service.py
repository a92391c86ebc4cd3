"""The HTTP service's interface: what it takes, what it refuses, what it answers.

Every refusal is one sentence in `detail`. Nothing that a client sends is repeated in it.
"""

import asyncio
import dataclasses
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect

import persrm_jax
from persrm_jax.evaluation import reward_model
from persrm_jax.evaluation.batcher import Batcher, Busy
from persrm_jax.evaluation.reward_model import rank

MOST_DISCARDED = 64_000_000
"""Bytes beyond the limit that are read and thrown away before a client is cut off."""


@dataclass(frozen=True)
class LimitConfig:
    """What a request may ask for."""

    body_bytes: int = 4_000_000
    """Of a request's JSON."""
    exemplars: int = 64
    """Of one person."""
    candidates: int = 64
    """In one request."""
    text_chars: int = 100_000
    """Of one text."""
    n: int = 8
    """Answers to each question."""
    timeout_s: float = 120.0
    """Until a request is given up, its reading included."""

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value <= 0 or (name in ("candidates", "n") and value < 1):
                flag = name.replace("_", "-")
                raise ValueError(f"--limit.{flag} {value}: must be above 0")


class CandidateScore(BaseModel):
    """Of one candidate, in the order of the request."""

    score: float | None = Field(description="Mean over the samples; null if no answer was readable")
    spread: float | None = Field(description="Standard deviation over the samples")
    samples: list[float | None]
    reasoning: list[str] = Field(description="Of every answer about the candidate")
    parsed: int = Field(description="Answers that could be read")
    asked: int = Field(description="Answers")
    tokens: int = Field(description="In the answers")


class ScoreAnswer(BaseModel):
    """Scores of a request's candidates."""

    scores: list[CandidateScore]
    best: int | None = Field(description="The highest score's candidate, from 0; null without any")
    model: str


class Health(BaseModel):
    """Whether the service answers."""

    ready: bool
    model: str
    waiting: int = Field(description="Questions that wait for an answer")


class Refusal(BaseModel):
    """Why a request was not answered."""

    detail: str


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Refusal, "description": description}
    for status, description in {
        401: "The bearer token is missing or wrong",
        408: "The body did not arrive in time",
        413: "The body is too large",
        422: "The request cannot be scored",
        503: "Not ready, or too many requests wait: see Retry-After",
        504: "Not answered in time",
    }.items()
}


def body_type(limit: LimitConfig) -> type[BaseModel]:
    """What a request's body may be."""
    text = Annotated[str, Field(max_length=limit.text_chars)]

    class ScoreRequest(BaseModel):
        """Candidates to score by how well they fit the person who wrote the exemplars."""

        model_config = ConfigDict(extra="forbid", strict=True)
        exemplars: list[text] = Field(max_length=limit.exemplars)
        candidates: list[text] = Field(min_length=1, max_length=limit.candidates)
        prompt: text | None = Field(None, description="What the candidates answer or continue")
        n: int = Field(1, ge=1, le=limit.n, description="Answers to each question")

    return ScoreRequest


def make_app(batcher: Batcher, limit: LimitConfig, *, model: str, token: str | None) -> FastAPI:
    """The service around a running batcher.

    Args:
        model: its name, in answers.
        token: what clients must bear; None: nothing.
    """
    app = FastAPI(
        title="persrm-jax",
        version=persrm_jax.__version__,
        description="Scores of candidate texts by how well they fit one person's writing.",
    )
    body = body_type(limit)
    schema = {"requestBody": {"required": True, "content": _json(body.model_json_schema())}}

    @app.post("/score", response_model=ScoreAnswer, responses=REFUSALS, openapi_extra=schema)
    async def score(_: Annotated[None, Depends(_guard(token))], request: Request) -> dict[str, Any]:
        """Scores candidates."""
        if not batcher.ready:
            raise _refusal(503, "the model is not ready: try again in 5 s", 5)
        try:
            async with asyncio.timeout(limit.timeout_s):
                raw = await _read(request, limit.body_bytes)
        except ClientDisconnect:
            raise _refusal(400, "the body was cut off") from None
        except TimeoutError:
            raise _refusal(408, f"the body did not arrive in {limit.timeout_s:g} s") from None
        try:
            asked: Any = body.model_validate_json(raw)
        except ValidationError as error:
            raise _refusal(422, _sentence(error)) from None
        return await answer(asked)

    async def answer(asked: Any) -> dict[str, Any]:
        texts = tuple(asked.exemplars), tuple(asked.candidates)
        try:
            future = batcher.submit(reward_model.Request(*texts, asked.prompt or "", asked.n))
            # Cancels the future, and so the questions that are not yet asked, when time is up.
            scores = await asyncio.wait_for(asyncio.wrap_future(future), limit.timeout_s)
        except Busy as busy:
            raise _refusal(503, str(busy), busy.seconds) from None
        except TimeoutError:
            raise _refusal(504, f"not answered in {limit.timeout_s:g} s") from None
        except ValueError as error:
            raise _refusal(422, str(error)) from None
        except RuntimeError:  # JAX's errors are some
            raise _refusal(500, "the model failed on this request; the log says how") from None
        best = rank(scores)[0]
        return {
            "scores": [vars(found) for found in scores],
            "best": None if scores[best].score is None else best,
            "model": model,
        }

    @app.get("/health", response_model=Health, responses={503: {"model": Health}})
    async def health(response: Response) -> dict[str, Any]:
        """Whether the service is ready; 503 while it is not."""
        response.status_code = 200 if batcher.ready else 503
        return {"ready": batcher.ready, "model": model, "waiting": batcher.waiting}

    return app


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _refusal(status: int, sentence: str, retry_after: int | None = None) -> HTTPException:
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status == 413:
        headers["Connection"] = "close"  # of what the client still sends nothing more is read
    return HTTPException(status, sentence, headers)


def _guard(token: str | None) -> Callable[[Request], Awaitable[None]]:
    """Refuses requests that do not bear the token, before their bodies are read."""
    wanted = None if token is None else f"Bearer {token}".encode()

    async def guard(request: Request) -> None:
        given = request.headers.get("authorization", "").encode("latin-1")
        if wanted is not None and not hmac.compare_digest(given, wanted):
            raise _refusal(401, "give the service's token: Authorization: Bearer TOKEN")

    return guard


async def _read(request: Request, max_bytes: int) -> bytes:
    """The body; of one that is too large nothing is kept. What follows is still read for a while,
    since a client that is cut off while it sends does not hear why."""
    parts: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes + MOST_DISCARDED:
            break
        if size > max_bytes:
            parts.clear()
        else:
            parts.append(chunk)
    if size > max_bytes:
        raise _refusal(413, f"the body is larger than {max_bytes:,} bytes")
    return b"".join(parts)


def _sentence(error: ValidationError) -> str:
    """The first of pydantic's complaints."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]
