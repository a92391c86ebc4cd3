"""Every prompt template, and the one parser of verdicts."""

import json
import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from persrm_jax.types import Order, Pair, Verdict

Messages = tuple[dict[str, str], ...]


@dataclass(frozen=True)
class PromptConfig:
    """What the judge is shown and how it must answer."""

    template: Literal["full", "compact"] = "full"
    """`full` instructs a pretrained model; `compact` is for models trained from scratch."""
    answer: Literal["scores", "verdict"] = "scores"
    """`scores`: {"A": 7.5, "B": 3}, in [0, 10]; `verdict`: [[A]] or [[B]], as RM-R1 has it."""
    max_tokens: int = 4096
    """Longest prompt, in tokens."""


@dataclass(frozen=True)
class Judgement:
    """A parsed answer; scores are None in the `verdict` format."""

    verdict: Verdict
    score_a: float | None = None
    score_b: float | None = None


_FULL = """\
You judge how well two candidate texts fit one person. Below are examples of that person's own \
writing, then candidate A and candidate B. Attend to how the person writes: diction, syntax, \
rhythm, structure, tone, punctuation. What a text is about does not count.

{task}{exemplars}

[Candidate A]
{a}

[Candidate B]
{b}

First reason between <think> and </think> about the person's habits and about how far each \
candidate shares them. Then {answer}"""
_ANSWER = {
    "scores": 'score both from 0 to 10, exactly in this form: <answer>{"A": 7.5, "B": 3}</answer>',
    "verdict": "name the better one, exactly in this form: <answer>[[A]]</answer> or "
    "<answer>[[B]]</answer>",
}


def judge_messages(pair: Pair, order: Order, cfg: PromptConfig) -> Messages:
    """The chat that asks for a judgement of `pair`, its candidates shown in `order`."""
    a, b = pair.candidates(order)
    if cfg.template == "compact":
        lines = [*(f"person: {text}" for text in pair.exemplars), f"A: {a}", f"B: {b}"]
        return ({"role": "user", "content": "\n".join(lines)},)
    exemplars = "\n\n".join(f"[Example {i}]\n{t}" for i, t in enumerate(pair.exemplars, start=1))
    content = _FULL.format(
        task=f"[The texts answer or continue]\n{pair.prompt}\n\n" if pair.prompt else "",
        exemplars=exemplars or "[No examples are known]",
        a=a,
        b=b,
        answer=_ANSWER[cfg.answer],
    )
    return ({"role": "user", "content": content},)


def format_response(reasoning: str, judgement: Judgement, cfg: PromptConfig) -> str:
    """A completion in the output grammar; `parse_judgement` reads it back."""
    if cfg.answer == "scores":
        answer = f'{{"A": {_number(judgement.score_a)}, "B": {_number(judgement.score_b)}}}'
    else:
        answer = f"[[{judgement.verdict}]]"
    return f"<think>\n{reasoning}\n</think>\n<answer>{answer}</answer>"


def _number(score: float | None) -> str:
    """`7.5`, `3`: the shortest text that reads back the same."""
    return repr(score).removesuffix(".0")


_GRAMMAR = re.compile(r"\s*<think>(.*)</think>\s*<answer>(.*)</answer>\s*", re.DOTALL)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def parse_judgement(completion: str, cfg: PromptConfig) -> Judgement | None:
    """Reads exactly one answer after exactly one closed reasoning; None for anything else."""
    # Counted first: many tags would make the match quadratic.
    if any(completion.count(tag) != 1 for tag in _TAGS):
        return None
    if (match := _GRAMMAR.fullmatch(completion)) is None:
        return None
    answer = match.group(2).strip()
    if cfg.answer == "verdict":
        return {"[[A]]": Judgement("A"), "[[B]]": Judgement("B")}.get(answer)
    scores = _parse_scores(answer)
    if scores is None:
        return None
    a, b = scores
    return Judgement("tie" if a == b else "A" if a > b else "B", a, b)


def _parse_scores(answer: str) -> tuple[float, float] | None:
    try:
        fields = json.loads(answer, object_pairs_hook=list, parse_int=float)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, list) or not all(isinstance(f, tuple) for f in fields):
        return None
    if sorted(str(name) for name, _ in fields) != ["A", "B"]:
        return None
    scores: dict[str, Any] = dict(fields)
    for score in scores.values():
        if not isinstance(score, float) or not math.isfinite(score) or not 0 <= score <= 10:
            return None
    return scores["A"], scores["B"]
