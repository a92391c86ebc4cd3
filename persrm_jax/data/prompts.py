"""Every prompt template, and the one parser of verdicts."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from persrm_jax.types import Order, Pair, Verdict

Messages = tuple[dict[str, str], ...]
Answer = Literal["scores", "verdict", "score"]
BOTH_ORDERS: tuple[Order, Order] = ("AB", "BA")


@dataclass(frozen=True)
class PromptConfig:
    """What the judge is shown and how it must answer."""

    template: Literal["full", "compact"] = "full"
    """`full` instructs a pretrained model; `compact` is for models trained from scratch."""
    answer: Answer = "scores"
    """`scores`: {"A": 7.5, "B": 3}, in [0, 10]; `verdict`: [[A]] or [[B]], as RM-R1 has it;
    `score`: one candidate alone, {"score": 7.5} (pointwise)."""
    think: bool = True
    """Whether the judge reasons before it answers."""
    max_tokens: int = 4096
    """Longest prompt, in tokens."""

    @property
    def questions_a_pair(self) -> int:
        """Prompts that a judgement of a pair takes: one for both candidates, or one for each."""
        return 2 if self.answer == "score" else 1

    @property
    def alone(self) -> "PromptConfig":
        """The same template with one candidate and no reasoning: what a scalar reward reads."""
        return replace(self, answer="score", think=False)


@dataclass(frozen=True)
class Judgement:
    """A parsed answer; scores are None in the `verdict` format. Of a candidate shown alone it is
    `score_a`, without a verdict."""

    verdict: Verdict | None
    score_a: float | None = None
    score_b: float | None = None


def compare(a: Judgement | None, b: Judgement | None) -> Judgement | None:
    """The judgement of two candidates that were each shown alone; None without either's."""
    if a is None or b is None:
        return None
    return _of_scores(a.score_a, b.score_a)


def _of_scores(a: float | None, b: float | None) -> Judgement:
    assert a is not None and b is not None
    return Judgement("tie" if a == b else "A" if a > b else "B", a, b)


def questions(pairs: Sequence[Pair], cfg: PromptConfig) -> list[tuple[Pair, Order]]:
    """What a judge is asked to judge pairs once: each in its own order; or of each the chosen
    text, then the rejected one, alone (an order's first candidate)."""
    if cfg.answer == "score":
        return [(pair, order) for pair in pairs for order in BOTH_ORDERS]
    return [(pair, pair.order) for pair in pairs]


_INTRODUCTION = """\
You judge how well {what} fit{s} one person. Below are examples of that person's own writing, then \
{shown}. Attend to how the person writes: diction, syntax, rhythm, structure, tone, punctuation. \
What a text is about does not count. {instruction}

{task}{exemplars}

{candidates}"""
_REASON = """\
First reason between <think> and </think> about the person's habits and about how far {each} \
shares them. Then {answer}"""
_ANSWER = {
    "scores": 'score both from 0 to 10, exactly in this form: <answer>{"A": 7.5, "B": 3}</answer>',
    "verdict": "name the better one, exactly in this form: <answer>[[A]]</answer> or "
    "<answer>[[B]]</answer>",
    "score": 'score it from 0 to 10, exactly in this form: <answer>{"score": 7.5}</answer>',
}
THINK_END = "</think>"
CLOSING = f"\n{THINK_END}\n<answer>"
"""What closes reasoning by force."""


def judge_messages(pair: Pair, order: Order, cfg: PromptConfig) -> Messages:
    """The chat that asks for a judgement of `pair`, its candidates shown in `order`."""
    texts = pair.candidates(order)
    shown = texts[:1] if cfg.answer == "score" else texts
    return question_messages(pair.exemplars, shown, pair.prompt, cfg)


def question_messages(
    exemplars: Sequence[str], texts: Sequence[str], prompt: str, cfg: PromptConfig
) -> Messages:
    """The chat that asks for a judgement of `texts`: two, or one alone with `cfg.answer` score.

    Args:
        prompt: what the texts answer or continue; may be empty.
    """
    alone = cfg.answer == "score"
    named = list(zip(["text"] if alone else ["A", "B"], texts, strict=True))
    if cfg.template == "compact":
        lines = [*(f"person: {t}" for t in exemplars), *(f"{n}: {t}" for n, t in named)]
        return ({"role": "user", "content": "\n".join(lines)},)
    examples = "\n\n".join(f"[Example {i}]\n{t}" for i, t in enumerate(exemplars, start=1))
    answer = _ANSWER[cfg.answer]
    reason = _REASON.format(each="the candidate" if alone else "each candidate", answer=answer)
    content = _INTRODUCTION.format(
        what="a candidate text" if alone else "two candidate texts",
        s="s" if alone else "",
        shown="the candidate" if alone else "candidate A and candidate B",
        task=f"[The texts answer or continue]\n{prompt}\n\n" if prompt else "",
        exemplars=examples or "[No examples are known]",
        candidates="\n\n".join(
            f"[Candidate]\n{text}" if alone else f"[Candidate {name}]\n{text}"
            for name, text in named
        ),
        instruction=reason if cfg.think else f"{answer[0].upper()}{answer[1:]}, and nothing else.",
    )
    return ({"role": "user", "content": content},)


def format_response(reasoning: str, judgement: Judgement, cfg: PromptConfig) -> str:
    """A completion in the output grammar; `parse_judgement` reads it back."""
    match cfg.answer:
        case "scores":
            answer = f'{{"A": {_number(judgement.score_a)}, "B": {_number(judgement.score_b)}}}'
        case "score":
            answer = f'{{"score": {_number(judgement.score_a)}}}'
        case "verdict":
            answer = f"[[{judgement.verdict}]]"
    answer = f"<answer>{answer}</answer>"
    return f"<think>\n{reasoning}\n</think>\n{answer}" if cfg.think else answer


def _number(score: float | None) -> str:
    """`7.5`, `3`: the shortest text that reads back the same."""
    return repr(score).removesuffix(".0")


_ANSWERED = r"\s*<answer>(.*)</answer>\s*"
_GRAMMAR = {
    True: re.compile(r"\s*<think>.*</think>" + _ANSWERED, re.DOTALL),
    False: re.compile(_ANSWERED, re.DOTALL),
}
_THINK_TAGS, _ANSWER_TAGS = ("<think>", THINK_END), ("<answer>", "</answer>")


def parse_judgement(completion: str, cfg: PromptConfig) -> Judgement | None:
    """Reads exactly one answer after exactly one closed reasoning (without `cfg.think`, after
    none); None for anything else."""
    # Counted first: many tags would make the match quadratic.
    if any(completion.count(tag) != 1 for tag in _ANSWER_TAGS):
        return None
    if any(completion.count(tag) != cfg.think for tag in _THINK_TAGS):
        return None
    if (match := _GRAMMAR[cfg.think].fullmatch(completion)) is None:
        return None
    answer = match.group(1).strip()
    if cfg.answer == "verdict":
        return {"[[A]]": Judgement("A"), "[[B]]": Judgement("B")}.get(answer)
    names = ["score"] if cfg.answer == "score" else ["A", "B"]
    scores = _parse_scores(answer, names)
    if scores is None:
        return None
    return Judgement(None, *scores) if cfg.answer == "score" else _of_scores(*scores)


def _parse_scores(answer: str, names: list[str]) -> list[float] | None:
    """The scores of `names`, and of nothing else."""
    try:
        fields = json.loads(answer, object_pairs_hook=list, parse_int=float)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, list) or not all(isinstance(f, tuple) for f in fields):
        return None
    if sorted(str(name) for name, _ in fields) != names:
        return None
    scores: dict[str, Any] = dict(fields)
    for score in scores.values():
        if not isinstance(score, float) or not math.isfinite(score) or not 0 <= score <= 10:
            return None
    return [scores[name] for name in names]


def reasoning_of(completion: str) -> str:
    """What was said before the answer; all of it where there is no answer."""
    said = completion.partition(THINK_END)[0] if THINK_END in completion else completion
    return said.partition("<answer>")[0].strip().removeprefix("<think>").strip()
