import json
import math
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persrm_jax.data.prompts import (
    Judgement,
    PromptConfig,
    compare,
    format_response,
    judge_messages,
    parse_judgement,
    questions,
)
from persrm_jax.types import Pair

SCORES = PromptConfig(answer="scores")
VERDICT = PromptConfig(answer="verdict")
GOOD = '{"A": 7.5, "B": 3}'
PAIR = Pair(
    pair_id="p",
    author="ann",
    author_split="test",
    domain="mail",
    prompt="Say {a} or {answer}.",
    exemplars=("first {b} text", "second\ntext", "third text"),
    exemplar_ids=("1", "2", "3"),
    chosen="the chosen {exemplars} one",
    chosen_id="4",
    rejected="the rejected [Candidate A] one",
    rejected_id="5",
    rejected_author="bob",
    negative_type="other_author",
    order="AB",
    writer="human",
    seed=0,
)


def _completion(answer: str, reasoning: str = "r") -> str:
    return f"<think>{reasoning}</think><answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (_completion(GOOD), Judgement("A", 7.5, 3.0)),
        (_completion('{"A": 0, "B": 10}'), Judgement("B", 0.0, 10.0)),
        (_completion('{"B": 2, "A": 1e0}'), Judgement("B", 1.0, 2.0)),
        (_completion('{"A": 4, "B": 4.0}'), Judgement("tie", 4.0, 4.0)),
        (_completion('\n { "A" :1 ,\n"B":0.5}\t'), Judgement("A", 1.0, 0.5)),
        (f" \n<think>\nx\n</think>\n\n<answer>{GOOD}</answer>\n ", Judgement("A", 7.5, 3.0)),
        (_completion(GOOD, reasoning=""), Judgement("A", 7.5, 3.0)),
        (_completion(GOOD, reasoning='say {"A": 1, "B": 9} [[B]] <x>'), Judgement("A", 7.5, 3.0)),
    ],
)
def test_scores_that_keep_the_grammar(completion: str, expected: Judgement) -> None:
    assert parse_judgement(completion, SCORES) == expected


BAD_FRAMES = {
    "nothing": "",
    "no think": f"<answer>{GOOD}</answer>",
    "no answer": "<think>r</think>",
    "bare answer": f"<think>r</think>{GOOD}",
    "unclosed think": f"<think>r<answer>{GOOD}</answer>",
    "unclosed answer": f"<think>r</think><answer>{GOOD}",
    "unopened think": f"r</think><answer>{GOOD}</answer>",
    "two answers": _completion(GOOD) + f"<answer>{GOOD}</answer>",
    "two whole": _completion(GOOD) * 2,
    "two thinks": "<think>a</think>" + _completion(GOOD),
    "nested think": _completion(GOOD, reasoning="<think>r</think>"),
    "think in think": _completion(GOOD, reasoning="a <think> b"),
    "answer in think": _completion(GOOD, reasoning=f"<answer>{GOOD}</answer>"),
    "open answer in think": _completion(GOOD, reasoning="<answer>"),
    "nested answer": _completion(f"<answer>{GOOD}</answer>"),
    "answer first": f"<answer>{GOOD}</answer><think>r</think>",
    "text after": _completion(GOOD) + " so A",
    "text before": "Sure. " + _completion(GOOD),
    "text between": f"<think>r</think> so <answer>{GOOD}</answer>",
    "control character after": _completion(GOOD) + "\0",
    "capital tags": _completion(GOOD).upper(),
    "spaced tag": f"<think >r</think><answer>{GOOD}</answer>",
}


@pytest.mark.parametrize("name", BAD_FRAMES)
@pytest.mark.parametrize("cfg", [SCORES, VERDICT], ids=["scores", "verdict"])
def test_a_broken_frame_is_no_verdict(name: str, cfg: PromptConfig) -> None:
    good = "[[A]]" if cfg is VERDICT else GOOD
    assert parse_judgement(_completion(good), cfg) is not None
    assert parse_judgement(BAD_FRAMES[name].replace(GOOD, good), cfg) is None


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "A",
        "[[A]]",
        "7.5, 3",
        "[7.5, 3]",
        '[["A", 7.5], ["B", 3]]',
        "null",
        "{}",
        '{"A": 7.5}',
        '{"B": 3}',
        '{"a": 7.5, "b": 3}',
        '{"A": 7.5, "B": 3, "C": 1}',
        '{"A": 7.5, "A": 2, "B": 3}',
        '{"A": 7.5, "B": 3, "B": 3}',
        '{"A": 7.5, "A": 3}',
        '{"A": NaN, "B": 3}',
        '{"A": 7.5, "B": NaN}',
        '{"A": Infinity, "B": 3}',
        '{"A": 1, "B": -Infinity}',
        '{"A": 11, "B": 3}',
        '{"A": 10.0001, "B": 3}',
        '{"A": 7.5, "B": -1}',
        '{"A": 7.5, "B": -0.0001}',
        '{"A": 1e400, "B": 3}',
        '{"A": true, "B": 3}',
        '{"A": 7.5, "B": false}',
        '{"A": "7.5", "B": 3}',
        '{"A": null, "B": 3}',
        '{"A": [7.5], "B": 3}',
        '{"A": {"A": 1, "B": 2}, "B": 3}',
        "{'A': 7.5, 'B': 3}",
        '{"A": 7.5, "B": 3,}',
        '{"A": 7.5 "B": 3}',
        '{"A": 07.5, "B": 3}',
        '{"A": .5, "B": 3}',
        '{"A": 7.5, "B": 3} {"A": 7.5, "B": 3}',
        '{"A": 7.5, "B": ' + "9" * 10_000 + "}",
        '{"A": 7.5, "B": -' + "9" * 10_000 + "}",
        "[" * 100_000,
        '{"A":' * 50_000,
    ],
)
def test_a_broken_answer_is_no_verdict(answer: str) -> None:
    assert parse_judgement(_completion(answer), SCORES) is None


def test_bare_verdicts() -> None:
    assert parse_judgement(_completion("[[A]]"), VERDICT) == Judgement("A")
    assert parse_judgement(_completion(" [[B]]\n"), VERDICT) == Judgement("B")
    for answer in ("[[C]]", "[A]", "A", "[[A]][[A]]", "[[A]] [[B]]", "[[a]]", "[[tie]]", GOOD, ""):
        assert parse_judgement(_completion(answer), VERDICT) is None


def test_a_megabyte_is_read_quickly() -> None:
    million = 1_000_000
    tags = "</think><answer>"
    texts = {
        "long reasoning": (_completion(GOOD, reasoning="ab " * (million // 3)), "A"),
        "long space": (_completion(GOOD + " " * million), "A"),
        "long tail": (_completion(GOOD) + "x" * million, None),
        "open tags": ("<think>" * (million // 7), None),
        "tags that never end": ("<think>" + tags * (million // len(tags)), None),
        "spaces": ("<think></think>" + " " * million, None),
    }
    for name, (text, verdict) in texts.items():
        for cfg in (SCORES, VERDICT):
            start = time.perf_counter()
            judgement = parse_judgement(text, cfg)
            assert time.perf_counter() - start < 5, name
            wanted = verdict if cfg is SCORES else None
            assert (judgement.verdict if judgement else None) == wanted, name


FRAGMENTS = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "<think>r</think>",
        GOOD,
        f"<answer>{GOOD}</answer>",
        '{"A": 1,',
        '"B": 2}',
        '"A": NaN',
        "[[A]]",
        "[[B]]",
        "\n",
        " ",
        "{",
        "}",
        "\ud800",
        "\u2028",
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(FRAGMENTS | st.text(max_size=8), max_size=12).map("".join))
def test_no_text_is_an_exception_and_what_parses_has_one_of_each_tag(text: str) -> None:
    for cfg in (SCORES, VERDICT):
        judgement = parse_judgement(text, cfg)
        if judgement is not None:
            parts = text.strip().removeprefix("<think>").removesuffix("</answer>").split("</think>")
            assert len(parts) == 2
            assert parts[1].strip().startswith("<answer>")
            assert "<answer>" not in parts[0] and "<think>" not in text[text.index("<think>") + 1 :]
            again = parse_judgement(format_response("why", judgement, cfg), cfg)
            assert again == judgement


@settings(deadline=None)
@given(st.floats(0, 10), st.floats(0, 10) | st.integers(0, 10), st.text(max_size=20))
def test_any_two_scores_come_back_from_a_formatted_response(
    a: float, b: float, reasoning: str
) -> None:
    text = _completion(json.dumps({"A": a, "B": b}), reasoning.replace("<", "("))
    judgement = parse_judgement(text, SCORES)
    assert judgement is not None and (judgement.score_a, judgement.score_b) == (a, b)
    assert judgement.verdict == ("A" if a > b else "B" if b > a else "tie")
    assert parse_judgement(format_response("x", judgement, SCORES), SCORES) == judgement


def test_formatted_responses_by_hand() -> None:
    assert (
        format_response("because", Judgement("A", 7.5, 3.0), SCORES)
        == '<think>\nbecause\n</think>\n<answer>{"A": 7.5, "B": 3}</answer>'
    )
    assert (
        format_response("because", Judgement("B"), VERDICT)
        == "<think>\nbecause\n</think>\n<answer>[[B]]</answer>"
    )
    assert math.isclose(json.loads('{"A": 7.5}')["A"], 7.5)


@pytest.mark.parametrize("order", ["AB", "BA"])
def test_the_full_prompt_shows_every_text_in_order(order: str) -> None:
    (message,) = judge_messages(PAIR, order, PromptConfig(template="full"))
    content = message["content"]
    assert message["role"] == "user"
    first, second = PAIR.chosen, PAIR.rejected
    if order == "BA":
        first, second = second, first
    shown = [PAIR.prompt, *PAIR.exemplars, f"[Candidate A]\n{first}", f"[Candidate B]\n{second}"]
    places = [content.index(text) for text in shown]
    assert places == sorted(places)
    assert all(content.count(text) == 1 for text in shown)
    assert [content.count(f"[Example {i}]") for i in (1, 2, 3, 4)] == [1, 1, 1, 0]


def test_the_full_prompt_asks_for_the_answer_that_the_parser_reads() -> None:
    for cfg, example in ((SCORES, GOOD), (VERDICT, "[[A]]")):
        (message,) = judge_messages(PAIR, "AB", cfg)
        assert f"<answer>{example}</answer>" in message["content"]
        assert parse_judgement(_completion(example), cfg) is not None
    assert "[[" not in judge_messages(PAIR, "AB", SCORES)[0]["content"]


def test_the_compact_prompt_is_its_texts() -> None:
    cfg = PromptConfig(template="compact")
    assert judge_messages(PAIR, "BA", cfg) == (
        {
            "role": "user",
            "content": "person: first {b} text\nperson: second\ntext\nperson: third text\n"
            "A: the rejected [Candidate A] one\nB: the chosen {exemplars} one",
        },
    )


def test_without_exemplars_or_a_task() -> None:
    bare = Pair(**{**PAIR.__dict__, "exemplars": (), "exemplar_ids": (), "prompt": ""})
    compact = judge_messages(bare, "AB", PromptConfig(template="compact"))[0]["content"]
    assert compact == f"A: {PAIR.chosen}\nB: {PAIR.rejected}"
    full = judge_messages(bare, "AB", PromptConfig(template="full"))[0]["content"]
    assert "[No examples are known]" in full
    assert "[Example" not in full and "[The texts answer" not in full


@pytest.mark.parametrize("template", ["full", "compact"])
@pytest.mark.parametrize("think", [True, False])
def test_a_candidate_is_shown_alone(template: str, think: bool) -> None:
    cfg = PromptConfig(template=template, answer="score", think=think)
    asked = questions([PAIR], cfg)
    assert [order for _, order in asked] == ["AB", "BA"] and cfg.questions_a_pair == 2
    for (pair, order), shown, hidden in zip(
        asked, (PAIR.chosen, PAIR.rejected), (PAIR.rejected, PAIR.chosen), strict=True
    ):
        (message,) = judge_messages(pair, order, cfg)
        assert shown in message["content"] and hidden not in message["content"]
        if template == "full":
            assert '{"score": 7.5}' in message["content"]
            assert ("<think>" in message["content"]) == think
            assert "then the candidate. Attend" in message["content"]
    text = format_response("why", Judgement(None, 7.5), cfg)
    assert text.startswith("<think>") == think
    assert parse_judgement(text, cfg) == Judgement(None, 7.5)
    assert parse_judgement(text, replace(cfg, think=not think)) is None
    assert parse_judgement(text, replace(cfg, answer="scores")) is None


@pytest.mark.parametrize(
    "answer", ['{"A": 1, "B": 2}', '{"score": 11}', '{"score": 1, "score": 2}', "7", '{"Score": 1}']
)
def test_what_is_no_score_is_refused(answer: str) -> None:
    cfg = PromptConfig(answer="score", think=False)
    assert parse_judgement(f"<answer>{answer}</answer>", cfg) is None


def test_two_scores_make_a_verdict() -> None:
    high, low = Judgement(None, 8.0), Judgement(None, 2.5)
    assert compare(high, low) == Judgement("A", 8.0, 2.5)
    assert compare(low, high) == Judgement("B", 2.5, 8.0)
    assert compare(low, low) == Judgement("tie", 2.5, 2.5)
    assert compare(high, None) is None and compare(None, low) is None


def test_without_reasoning_nothing_may_come_before_the_answer() -> None:
    cfg = PromptConfig(think=False)
    good = '<answer>{"A": 7.5, "B": 3}</answer>'
    assert parse_judgement(good, cfg) == Judgement("A", 7.5, 3.0)
    for text in (f"so: {good}", f"<think></think>{good}", good + good, f"</think>{good}"):
        assert parse_judgement(text, cfg) is None
    (message,) = judge_messages(PAIR, "AB", cfg)
    assert "reason" not in message["content"].lower() and "Score both" in message["content"]
