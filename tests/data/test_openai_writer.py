"""The official client against an endpoint of the test's own: real HTTP, and all that goes wrong."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from endpoint import Endpoint, serving

import persrm_jax.data.openai_writer
from persrm_jax.data.openai_writer import KEY, OpenAIConfig, OpenAIWriter
from persrm_jax.data.writers import Request


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv(KEY, "secret")
    with serving() as server:
        yield server


def write(endpoint: Endpoint, contents: list[str], **fields: Any) -> tuple[OpenAIWriter, list[Any]]:
    fields = {"retries": 3, "timeout": 5.0, **fields}
    writer = OpenAIWriter(OpenAIConfig(base_url=endpoint.url, model="m", **fields))
    requests = (
        Request(f"r{i}", ({"role": "user", "content": text},)) for i, text in enumerate(contents)
    )
    return writer, list(writer(requests))


def test_answers_come_in_order_whatever_goes_wrong_on_the_way(endpoint: Endpoint) -> None:
    contents = [
        "slow", "429 2", "plain", "500 1", "503 3", "cut 1", "garbled 2", "slow 1", "shapeless 1",
    ]  # fmt: skip
    writer, found = write(endpoint, contents)
    assert [one.text for one in found] == [f"about {content}" for content in contents]
    tries = [1 + int(content.partition(" ")[2] or 0) for content in contents]
    assert [endpoint.tries[content] for content in contents] == tries
    assert {(one.prompt_tokens, one.completion_tokens) for one in found} == {(7, 3)}
    assert OpenAIConfig(price_in=2.0, price_out=10.0).cost(63, 27) == pytest.approx(396e-6)
    assert endpoint.keys == {"Bearer secret"}
    sent = endpoint.seen[0]
    assert sent["path"] == "/v1/chat/completions"
    assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("m", 0.8, 1024)


def test_what_fails_for_good_is_a_fault_of_its_own(endpoint: Endpoint) -> None:
    contents = ["500 99", "garbled 99", "empty", "nothing", "long", "400 99", "plain"]
    writer, found = write(endpoint, contents, retries=1)
    sorts = [one.fault.partition(":")[0] for one in found]
    assert sorts == [
        "InternalServerError", "garbled", "empty", "empty", "cut off", "BadRequestError", "",
    ]  # fmt: skip
    assert [one.text for one in found] == [None] * 6 + ["about plain"]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_an_endpoint_that_refuses_everybody_ends_it(endpoint: Endpoint, status: int) -> None:
    with pytest.raises(ValueError, match=rf"{endpoint.url}.*--openai.model m.*it is a {status}"):
        write(endpoint, [f"{status} 99"] * 40)
    assert sum(endpoint.tries.values()) < 40


def test_requests_are_drawn_as_answers_are_taken(endpoint: Endpoint) -> None:
    drawn = []

    def requests() -> Iterator[Request]:
        for i in range(100):
            drawn.append(i)
            yield Request(f"r{i}", ({"role": "user", "content": f"x{i}"},))

    cfg = OpenAIConfig(base_url=endpoint.url, model="m", concurrency=3)
    answers = OpenAIWriter(cfg)(requests())
    first = next(answers)
    assert first.text == "about x0" and len(drawn) == 6
    assert len(list(answers)) == 99
    assert endpoint.most <= 3


def test_seeds_go_with_names_and_tries(endpoint: Endpoint) -> None:
    writer = OpenAIWriter(OpenAIConfig(base_url=endpoint.url, model="m", concurrency=1))
    asked = [("a", 0), ("b", 0), ("a", 1), ("a", 0)]
    message = ({"role": "user", "content": "hi"},)
    list(writer(Request(key, message, attempt) for key, attempt in asked))
    seeds = [body["seed"] for body in endpoint.seen]
    assert seeds[0] == seeds[3] and len(set(seeds)) == 3


def test_endpoints_that_do_not_count_tokens(endpoint: Endpoint) -> None:
    writer, found = write(endpoint, ["unmetered", "partly", "plain"])
    assert [one.text for one in found] == ["about unmetered", "about partly", "about plain"]
    assert [(one.prompt_tokens, one.completion_tokens) for one in found] == [(0, 0), (0, 0), (7, 3)]


def test_requests_keep_to_a_rate(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that stands still: each waits for those before it."""
    waits: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: 100.0, sleep=waits.append)
    monkeypatch.setattr(persrm_jax.data.openai_writer, "time", clock)
    write(endpoint, ["plain"] * 5, requests_per_minute=1200.0)
    assert sorted(waits) == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)
    with pytest.raises(ValueError, match=f"set {KEY}, or give --openai.base-url"):
        OpenAIWriter(OpenAIConfig(model="m"))
    with pytest.raises(ValueError, match=r"--openai.model: name the model"):
        OpenAIWriter(OpenAIConfig(base_url="http://127.0.0.1:1/v1"))
    with pytest.raises(ValueError, match=r"--openai.concurrency 0: must be at least 1"):
        OpenAIConfig(concurrency=0)
    with pytest.raises(ValueError, match=r"--openai.timeout 0.0 must be above 0"):
        OpenAIConfig(timeout=0.0)
