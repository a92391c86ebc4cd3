"""A judge behind real HTTP: the same questions, the same parser, and nothing paid for twice."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from endpoint import Endpoint, serving

from persrm_jax.data.answers import Answers
from persrm_jax.data.openai_writer import KEY, OpenAIConfig
from persrm_jax.data.prompts import PromptConfig, judge_messages
from persrm_jax.evaluation.remote_judge import ENDPOINT, make_remote_judge
from persrm_jax.evaluation.statistics import summarize
from persrm_jax.types import Pair, Prediction

PROMPT = PromptConfig()
PAIRS = [
    Pair(
        pair_id=f"p{i}",
        author=f"author-{i % 3}",
        author_split="test",
        domain="letters",
        prompt="",
        exemplars=("Oh, the sea!",),
        exemplar_ids=("e",),
        chosen=f"Oh, wave {i}!",
        chosen_id=f"c{i}",
        rejected=f"A wave, number {i}.",
        rejected_id=f"r{i}",
        rejected_author=f"author-{(i + 1) % 3}",
        negative_type="other_author",
        order="AB",
        writer="human",
        seed=0,
    )
    for i in range(6)
]


def likes_exclamations(content: str) -> str:
    """A judge that knows this person."""
    scores = {
        name: 2 + 6 * content.split(f"[Candidate {name}]\n")[1].split("\n")[0].count("!")
        for name in "AB"
    }
    return f'<think>\nOh!\n</think>\n<answer>{{"A": {scores["A"]}, "B": {scores["B"]}}}</answer>'


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv(KEY, "secret")
    with serving() as server:
        server.write = likes_exclamations
        yield server


def ask(
    endpoint: Endpoint,
    kept: Path,
    pairs: list[Pair] = PAIRS,
    prompt: PromptConfig = PROMPT,
    **fields: Any,
) -> list[Prediction]:
    fields = {"base_url": endpoint.url, "model": "m", "timeout": 5.0, **fields}
    answers = Answers(kept)
    try:
        judge = make_remote_judge(dataclasses.replace(ENDPOINT, **fields), answers, prompt=prompt)
        return judge(pairs, "1", "openai")
    finally:
        answers.close()


def test_it_reads_our_prompt_in_both_orders_greedily(endpoint: Endpoint, tmp_path: Path) -> None:
    rows = ask(endpoint, tmp_path / "answers.jsonl")
    assert [(r.pair_id, r.order) for r in rows] == [
        (p.pair_id, o) for p in PAIRS for o in ("AB", "BA")
    ]
    assert [(r.verdict, r.score_a, r.score_b) for r in rows] == [
        ("A", 8.0, 2.0),
        ("B", 2.0, 8.0),
    ] * 6
    assert {(r.model, r.condition, r.parsed, r.tokens) for r in rows} == {("openai", "1", True, 3)}
    assert rows[0].completion.startswith("<think>\nOh!")
    found = summarize(rows, PAIRS)
    assert (found.mean, found.consistency, found.parse_rate) == (1.0, 1.0, 1.0)
    asked = {body["messages"][0]["content"] for body in endpoint.seen}
    assert asked == {
        judge_messages(p, o, PROMPT)[0]["content"] for p in PAIRS for o in ("AB", "BA")
    }
    assert {(body["temperature"], body["max_tokens"]) for body in endpoint.seen} == {(0.0, 4096)}


def test_answers_are_asked_for_once(endpoint: Endpoint, tmp_path: Path) -> None:
    """A run that was cut off in a line goes on there; other settings ask anew."""
    kept = tmp_path / "answers.jsonl"
    ask(endpoint, kept, PAIRS[:2])
    first = sum(endpoint.tries.values())
    kept.write_bytes(kept.read_bytes()[:-9])
    rows = ask(endpoint, kept)
    new = sum(endpoint.tries.values()) - first
    assert new >= 9 and len(endpoint.tries) == 12 and len(kept.read_text().splitlines()) == 12
    before = sum(endpoint.tries.values())
    assert ask(endpoint, kept) == rows
    assert sum(endpoint.tries.values()) == before
    ask(endpoint, kept, PAIRS[:1], temperature=0.5)
    assert sum(endpoint.tries.values()) > before


def test_what_does_not_parse_is_wrong(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.write = lambda content: "A is better."
    found = summarize(ask(endpoint, tmp_path / "answers.jsonl"), PAIRS)
    assert (found.mean, found.parse_rate) == (0.0, 0.0)


def test_one_text_at_a_time_is_compared(endpoint: Endpoint, tmp_path: Path) -> None:
    def score(content: str) -> str:
        return f'<answer>{{"score": {5 + content.split("[Candidate]")[1].count("!")}}}</answer>'

    endpoint.write = score
    prompt = PromptConfig(answer="score", think=False)
    rows = ask(endpoint, tmp_path / "answers.jsonl", prompt=prompt)
    assert [(r.verdict, r.score_a, r.score_b) for r in rows] == [
        ("A", 6.0, 5.0),
        ("B", 5.0, 6.0),
    ] * 6


def test_an_outage_is_no_verdict(endpoint: Endpoint, tmp_path: Path) -> None:
    """Questions that nobody answers end it with what was answered kept, and are asked again."""
    kept, lost = tmp_path / "answers.jsonl", judge_messages(PAIRS[3], "AB", PROMPT)

    def fails(content: str) -> str:
        if content == lost[0]["content"]:
            raise ConnectionError  # hangs up
        return likes_exclamations(content)

    endpoint.write = fails
    with pytest.raises(ValueError, match=r"1 of 12 judgements were not answered \(APIConn.*kept"):
        ask(endpoint, kept, retries=1)
    assert len(kept.read_text().splitlines()) == 11
    endpoint.write = likes_exclamations
    assert len(ask(endpoint, kept)) == 12
    assert len(kept.read_text().splitlines()) == 12


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)
    answers = Answers(tmp_path / "answers.jsonl")
    with pytest.raises(ValueError, match=f"^--openai: set {KEY}, or give --openai.base-url"):
        make_remote_judge(OpenAIConfig(model="m"), answers, prompt=PROMPT)
    with pytest.raises(ValueError, match=r"--openai.model: name the model"):
        make_remote_judge(ENDPOINT, answers, prompt=PROMPT)
