"""Pair -> reasoning trace, kept if its verdict is right.

The teacher is offline. It measures facts of the texts (`facts.py`) and says for each whether the
person is low, medium or high in it and which candidate is nearer; and it quotes the telling words
that each candidate shares with the person (`diction.py`). It scores by what it found. No model, no
network; a stronger teacher's traces have the same record.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from persrm_jax.data.diction import Diction, fit_diction, shared_words
from persrm_jax.data.facts import LEVELS, Yardstick, fit_yardstick, measure
from persrm_jax.data.prompts import (
    BOTH_ORDERS,
    Judgement,
    PromptConfig,
    compare,
    format_response,
    judge_messages,
    questions,
)
from persrm_jax.types import Document, Order, Pair, Trace, Verdict, right_verdict

_SELF_SAMPLES = 4


@dataclass(frozen=True)
class TeacherConfig:
    """Who gives the reasoning traces."""

    by: Literal["stylometric", "local", "openai", "self"] = "stylometric"
    """`stylometric`: offline, by measured facts; `local` and `openai`: a model that writes (as
    --writer), in two passes; `self`: the run's own model, which keeps what it judges rightly
    (rejection sampling), without a second pass."""
    num_facts: int = 8
    """Facts that a stylometric trace weighs: those that best tell the training authors apart."""
    num_words: int = 0
    """Words of each candidate that it quotes: the rarest of those that the person uses, too."""
    both_orders: bool = True
    """Whether each pair is judged in both orders, or in its own; a model judges both."""
    samples: int = 1
    """Judgements that a model may take of a question in the first pass; `self` takes 4."""

    def __post_init__(self) -> None:
        if self.samples < 1 or min(self.num_facts, self.num_words) < 0:
            raise ValueError(
                "--teacher.samples must be at least 1, --teacher.num-facts and "
                "--teacher.num-words at least 0"
            )
        if not self.num_facts + self.num_words:
            raise ValueError("--teacher.num-facts or --teacher.num-words must be above 0")

    @property
    def judges_both_orders(self) -> bool:
        return self.both_orders or self.by != "stylometric"

    @property
    def writer(self) -> str:
        """The writer that a teacher is."""
        return "local" if self.by == "self" else self.by

    @property
    def first_pass(self) -> int:
        return max(self.samples, _SELF_SAMPLES) if self.by == "self" else self.samples

    @property
    def has_second_pass(self) -> bool:
        return self.by != "self"


@dataclass(frozen=True)
class Teacher:
    """What the offline teacher knows of the world."""

    yardstick: Yardstick
    """The facts that it weighs."""
    diction: Diction
    """How rare words are."""
    num_words: int
    """That it quotes of each candidate."""


def fit_teacher(known: Sequence[Document], cfg: TeacherConfig) -> Teacher:
    """Learns levels, the telling facts and how rare words are from exemplars of training
    authors."""
    texts = [d.text for d in known]
    yardstick = fit_yardstick(texts, [d.author for d in known], cfg.num_facts)
    return Teacher(yardstick, fit_diction(texts), cfg.num_words)


_LINES = {
    "full": "{}: the person {}, A {}, B {}; nearer: {}",
    "compact": "{}: {} {} {} {}",
}
_ALONE = {
    "full": "{}: the person {}, the candidate {}",
    "compact": "{}: {} {}",
}
_WORDS = {
    "full": "words shared with the person: A {} ({}); B {} ({}); nearer: {}",
    "compact": "words: {} {} | {} {} | {}",
}
_WORDS_ALONE = {"full": "words shared with the person: {} ({})", "compact": "words: {} {}"}


def judge_two(
    teacher: Teacher, exemplars: Sequence[str], a: str, b: str, cfg: PromptConfig
) -> tuple[str, Judgement]:
    """The teacher's reasoning, a line for the words and one for each fact, and its scores.

    A score is 10 times the share of the evidence that is the candidate's. Of facts: the share in
    which it is nearer to the person; one in which neither is counts half. Of words: its share of
    all that are quoted. Where it has both, their mean.
    """
    shares, lines = [], []
    if teacher.num_words:
        words_a, words_b = (
            shared_words(teacher.diction, exemplars, text, teacher.num_words) for text in (a, b)
        )
        num_a, num_b = len(words_a), len(words_b)
        nearer = "even" if num_a == num_b else "A" if num_a > num_b else "B"
        quotes = _quote(words_a), num_a, _quote(words_b), num_b
        lines.append(_WORDS[cfg.template].format(*quotes, nearer))
        shares.append(0.5 if num_a == num_b else num_a / (num_a + num_b))
    if teacher.yardstick.names:
        facts, share = _weigh_facts(teacher.yardstick, exemplars, a, b, _LINES[cfg.template])
        lines += facts
        shares.append(share)
    score_a = round(10 * float(np.mean(shares)), 1)
    score_b = round(10 - score_a, 1)
    verdict: Verdict = "tie" if score_a == score_b else "A" if score_a > score_b else "B"
    return "\n".join(lines), Judgement(verdict, score_a, score_b)


def _quote(words: Sequence[str]) -> str:
    return ", ".join(words) or "none"


def _weigh_facts(
    yardstick: Yardstick, exemplars: Sequence[str], a: str, b: str, line: str
) -> tuple[list[str], float]:
    """A line for each fact, and A's share of them."""
    person = yardstick.levels(np.mean([measure(text) for text in exemplars], axis=0))
    levels_a, levels_b = yardstick.levels(measure(a)), yardstick.levels(measure(b))
    lines, wins = [], 0.0
    for name, p, level_a, level_b in zip(yardstick.names, person, levels_a, levels_b, strict=True):
        gap = abs(level_a - p) - abs(level_b - p)
        nearer = "even" if gap == 0 else "A" if gap < 0 else "B"
        wins += 0.5 if nearer == "even" else float(nearer == "A")
        lines.append(line.format(name, LEVELS[p], LEVELS[level_a], LEVELS[level_b], nearer))
    return lines, wins / len(lines)


def judge_one(
    teacher: Teacher, exemplars: Sequence[str], text: str, cfg: PromptConfig
) -> tuple[str, Judgement]:
    """The teacher's reasoning about one candidate, and its score: 10 times its agreement.

    In a fact 1 where its level is the person's, 0.5 beside it, 0 beyond; in words how many are
    quoted of those that could be. Where it has both, the mean.
    """
    shares, lines = [], []
    if teacher.num_words:
        words = shared_words(teacher.diction, exemplars, text, teacher.num_words)
        lines.append(_WORDS_ALONE[cfg.template].format(_quote(words), len(words)))
        shares.append(len(words) / teacher.num_words)
    if teacher.yardstick.names:
        yardstick, line = teacher.yardstick, _ALONE[cfg.template]
        person = yardstick.levels(np.mean([measure(text) for text in exemplars], axis=0))
        levels = yardstick.levels(measure(text))
        named = zip(yardstick.names, person, levels, strict=True)
        lines += [line.format(name, LEVELS[p], LEVELS[level]) for name, p, level in named]
        shares.append(float(np.mean(1 - np.abs(levels - person) / 2)))
    return "\n".join(lines), Judgement(None, round(10 * float(np.mean(shares)), 1))


def make_trace(pair: Pair, order: Order, teacher: Teacher, cfg: PromptConfig) -> Trace:
    """The teacher's answer to `pair`, right or wrong. Of a candidate shown alone the verdict is the
    teacher's on the pair."""
    a, b = pair.candidates(order)
    if cfg.answer == "score":
        reasoning, judgement = judge_one(teacher, pair.exemplars, a, cfg)
        other = judge_one(teacher, pair.exemplars, b, cfg)[1]
        whole = compare(judgement, other)
    else:
        reasoning, judgement = judge_two(teacher, pair.exemplars, a, b, cfg)
        whole = judgement
    assert whole is not None and whole.verdict is not None
    return Trace(
        pair_id=pair.pair_id,
        order=order,
        messages=judge_messages(pair, order, cfg),
        response=format_response(reasoning, judgement, cfg),
        teacher="stylometric",
        verdict=whole.verdict,
    )


def make_traces(
    pairs: Iterable[Pair], teacher: Teacher, cfg: PromptConfig, *, both_orders: bool = False
) -> Iterator[Trace]:
    """A trace for each question about each pair, in its own order or in both; those whose verdict
    is wrong or a tie are dropped."""
    for pair in pairs:
        for order in BOTH_ORDERS if both_orders else [o for _, o in questions([pair], cfg)]:
            trace = make_trace(pair, order, teacher, cfg)
            if trace.verdict == right_verdict(order):
                yield trace
