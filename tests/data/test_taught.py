"""Traces from writers: two passes, both orders, nothing that betrays that it was told."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from persrm_jax.data.answers import Answer, Answers
from persrm_jax.data.pairs import make_test_pairs
from persrm_jax.data.personas import PersonaConfig, make_personas
from persrm_jax.data.prompts import (
    Judgement,
    PromptConfig,
    format_response,
    judge_messages,
    parse_judgement,
)
from persrm_jax.data.splits import PairConfig
from persrm_jax.data.taught import find_betrayal, taught_traces
from persrm_jax.data.traces import TeacherConfig
from persrm_jax.data.writers import NamedWriter, Request, Written
from persrm_jax.jsonl import read_records
from persrm_jax.types import Pair, Trace

SCORES = PromptConfig()
A_WINS, B_WINS = Judgement("A", 8.0, 3.0), Judgement("B", 3.0, 8.0)


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    documents = make_personas(PersonaConfig(num_personas=8, texts=8), 0)
    return make_test_pairs(documents, PairConfig(num_exemplars=1, num_test=12), 0)


class Teacher:
    """Answers by a rule from what it is asked: (turns of the chat, attempt) -> response."""

    def __init__(self, rule: Callable[[Request], str | None]) -> None:
        self.rule, self.asked = rule, list[Request]()

    def __call__(self, requests: Iterable[Request]) -> Iterator[Written]:
        for request in requests:
            self.asked.append(request)
            text = self.rule(request)
            yield Written(text, "" if text else "timeout: 3 s", 7, 3)


def teach(
    tmp_path: Path,
    pairs: list[Pair],
    teacher: Teacher,
    prompt: PromptConfig = SCORES,
    **how: object,
) -> list[Trace]:
    answers = Answers(tmp_path / "answers.jsonl")
    try:
        named = NamedWriter("openai:m", teacher)
        return [*taught_traces(pairs, named, answers, prompt, **how)]
    finally:
        answers.close()


def always_a(request: Request, reason: str = "A is like them.") -> str:
    return format_response(reason, A_WINS, SCORES)


def corrected(request: Request) -> str:
    """Says A; told better, what it was told."""
    if len(request.messages) == 1:
        return always_a(request)
    told = "A" if "candidate A fits" in request.messages[-1]["content"] else "B"
    return format_response("Looking closer.", A_WINS if told == "A" else B_WINS, SCORES)


def test_what_is_right_is_kept_and_the_rest_asked_again(tmp_path: Path, pairs: list[Pair]) -> None:
    teacher = Teacher(corrected)
    traces = teach(tmp_path, pairs, teacher)
    assert [(t.pair_id, t.order) for t in traces] == [
        (p.pair_id, order) for p in pairs for order in ("AB", "BA")
    ]
    by_id = {p.pair_id: p for p in pairs}
    for trace in traces:
        judged = parse_judgement(trace.response, SCORES)
        assert judged is not None
        assert judged.verdict == trace.verdict == ("A" if trace.order == "AB" else "B")
        assert trace.messages == judge_messages(by_id[trace.pair_id], trace.order, SCORES)
        assert trace.teacher == "openai:m"
    assert ["closer" in t.response for t in traces] == [False, True] * 12
    second = [r for r in teacher.asked if r.attempt]
    assert len(teacher.asked) == 36 and len(second) == 12
    for request in second:
        assert [m["role"] for m in request.messages] == ["user", "assistant", "user"]
        assert request.messages[1]["content"] == always_a(request)
        assert "candidate B fits" in request.messages[2]["content"]


def test_without_a_second_pass_several_samples_may_be_taken(
    tmp_path: Path, pairs: list[Pair]
) -> None:
    def rule(request: Request) -> str:
        return format_response("So.", B_WINS if request.attempt == 2 else A_WINS, SCORES)

    teacher = Teacher(rule)
    traces = teach(tmp_path, pairs, teacher, samples=4, second_pass=False)
    assert len(traces) == 24
    assert Counter(r.attempt for r in teacher.asked) == {0: 24, 1: 12, 2: 12}
    cfg = TeacherConfig(by="self")
    assert (cfg.writer, cfg.first_pass, cfg.has_second_pass) == ("local", 4, False)


@pytest.mark.parametrize(
    ("second", "fault"),
    [
        (format_response("The correct answer is B.", B_WINS, SCORES), "betrays that it was told"),
        (format_response("My previous attempt was off.", B_WINS, SCORES), "betrays that it was"),
        (always_a(Request("k", ())), "wrong"),
        (format_response("Even.", Judgement("tie", 5.0, 5.0), SCORES), "wrong"),
        ("B fits better.", "unparsed"),
        (None, "timeout"),
    ],
)
def test_what_stays_wrong_or_betrays_itself_is_dropped(
    tmp_path: Path, pairs: list[Pair], second: str | None, fault: str
) -> None:
    teacher = Teacher(lambda request: second if request.attempt else always_a(request))
    traces = teach(tmp_path, pairs, teacher)
    assert [t.order for t in traces] == ["AB"] * 12
    given = read_records(tmp_path / "answers.jsonl", Answer)
    found = Counter(answer.fault.split(":")[0] for answer in given)
    named = next(why for why in found if why.startswith(fault))
    assert found == {"": 12, "wrong": 12, named: 12} if named != "wrong" else {"": 12, "wrong": 24}


def test_a_first_judgement_may_speak_of_answers(tmp_path: Path, pairs: list[Pair]) -> None:
    teacher = Teacher(lambda request: always_a(request, "The right answer is A."))
    assert len(teach(tmp_path, pairs, teacher)) == 12


def test_answers_are_not_asked_for_again(tmp_path: Path, pairs: list[Pair]) -> None:
    first = teach(tmp_path, pairs, Teacher(corrected))
    teacher = Teacher(corrected)
    assert teach(tmp_path, pairs, teacher) == first and not teacher.asked
    other = PromptConfig(answer="verdict")
    teach(tmp_path, pairs, teacher, other)
    assert len(teacher.asked) > 24, "another prompt is another question"


def test_of_texts_shown_alone_both_are_kept_or_none(tmp_path: Path, pairs: list[Pair]) -> None:
    cfg = PromptConfig(answer="score")
    chosen = {p.chosen for p in pairs[:5]}

    def rule(request: Request) -> str:
        text = request.messages[0]["content"].split("[Candidate]\n")[1].split("\n\n")[0]
        return format_response("So.", Judgement(None, 8.0 if text in chosen else 4.0), cfg)

    traces = teach(tmp_path, pairs, Teacher(rule), cfg)
    kept = Counter(t.pair_id for t in traces)
    assert set(kept.values()) == {2}
    right = {p.pair_id for p in pairs if p.chosen in chosen and p.rejected not in chosen}
    assert set(kept) == right and 0 < len(right) < 12


@pytest.mark.parametrize(
    "text",
    [
        "As I was told, B fits.",
        "I've been told B is better.",
        "I’m told it is A.",
        "The correct\nanswer is B.",
        "the answer provided is B",
        "I was given the answer B",
        "Since the correct verdict is A, ...",
        "The ground truth says so.",
        "the user said that B is better",
        "On second thought, A.",
        "In my earlier judgment I erred.",
    ],
)
def test_betrayals(text: str) -> None:
    assert find_betrayal(text) is not None


@pytest.mark.parametrize(
    "text",
    [
        "The person told a story of an earlier answer to a letter.",
        "They write right answers in short sentences; A is told in the past tense.",
        "Candidate B repeats the first person more.",
    ],
)
def test_what_betrays_nothing(text: str) -> None:
    assert find_betrayal(text) is None
