"""Pair -> reasoning trace, kept if its verdict is right.

The teacher is offline: it measures facts of the texts (`facts.py`), says for each whether the
person is low, medium or high in it and which candidate is nearer, and scores by the count. No
model, no network; a stronger teacher's traces have the same record.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

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
    both_orders: bool = True
    """Whether each pair is judged in both orders, or in its own; a model judges both."""
    samples: int = 1
    """Judgements that a model may take of a question in the first pass; `self` takes 4."""

    def __post_init__(self) -> None:
        if self.samples < 1 or self.num_facts < 1:
            raise ValueError("--teacher.samples and --teacher.num-facts must be at least 1")

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


def fit_teacher(known: Sequence[Document], cfg: TeacherConfig) -> Yardstick:
    """Learns levels and the telling facts from exemplars of training authors."""
    return fit_yardstick([d.text for d in known], [d.author for d in known], cfg.num_facts)


_LINES = {
    "full": "{}: the person {}, A {}, B {}; nearer: {}",
    "compact": "{}: {} {} {} {}",
}
_ALONE = {
    "full": "{}: the person {}, the candidate {}",
    "compact": "{}: {} {}",
}


def judge_by_facts(
    yardstick: Yardstick, exemplars: Sequence[str], a: str, b: str, cfg: PromptConfig
) -> tuple[str, Judgement]:
    """The teacher's reasoning, one line a fact, and its scores.

    A score is 10 times the share of facts in which the candidate is nearer to the person; a fact
    in which neither is counts half.
    """
    line = _LINES[cfg.template]
    person = yardstick.levels(np.mean([measure(text) for text in exemplars], axis=0))
    levels_a, levels_b = yardstick.levels(measure(a)), yardstick.levels(measure(b))
    lines, wins = [], {"A": 0.0, "B": 0.0}
    for name, p, level_a, level_b in zip(yardstick.names, person, levels_a, levels_b, strict=True):
        gap = abs(level_a - p) - abs(level_b - p)
        nearer = "even" if gap == 0 else "A" if gap < 0 else "B"
        for side in wins:
            wins[side] += 0.5 if nearer == "even" else float(nearer == side)
        lines.append(line.format(name, LEVELS[p], LEVELS[level_a], LEVELS[level_b], nearer))
    score_a, score_b = (round(10 * wins[side] / len(lines), 1) for side in ("A", "B"))
    verdict: Verdict = "tie" if score_a == score_b else "A" if score_a > score_b else "B"
    return "\n".join(lines), Judgement(verdict, score_a, score_b)


def score_by_facts(
    yardstick: Yardstick, exemplars: Sequence[str], text: str, cfg: PromptConfig
) -> tuple[str, Judgement]:
    """The teacher's reasoning about one candidate, and its score: 10 times the mean agreement, 1
    where the level is the person's, 0.5 beside it, 0 beyond."""
    line = _ALONE[cfg.template]
    person = yardstick.levels(np.mean([measure(text) for text in exemplars], axis=0))
    levels = yardstick.levels(measure(text))
    named = zip(yardstick.names, person, levels, strict=True)
    lines = [line.format(name, LEVELS[p], LEVELS[level]) for name, p, level in named]
    score = round(10 * float(np.mean(1 - np.abs(levels - person) / 2)), 1)
    return "\n".join(lines), Judgement(None, score)


def make_trace(pair: Pair, order: Order, yardstick: Yardstick, cfg: PromptConfig) -> Trace:
    """The teacher's answer to `pair`, right or wrong. Of a candidate shown alone the verdict is the
    teacher's on the pair."""
    a, b = pair.candidates(order)
    if cfg.answer == "score":
        reasoning, judgement = score_by_facts(yardstick, pair.exemplars, a, cfg)
        other = score_by_facts(yardstick, pair.exemplars, b, cfg)[1]
        whole = compare(judgement, other)
    else:
        reasoning, judgement = judge_by_facts(yardstick, pair.exemplars, a, b, cfg)
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
    pairs: Iterable[Pair], yardstick: Yardstick, cfg: PromptConfig, *, both_orders: bool = False
) -> Iterator[Trace]:
    """A trace for each question about each pair, in its own order or in both; those whose verdict
    is wrong or a tie are dropped."""
    for pair in pairs:
        for order in BOTH_ORDERS if both_orders else [o for _, o in questions([pair], cfg)]:
            trace = make_trace(pair, order, yardstick, cfg)
            if trace.verdict == right_verdict(order):
                yield trace
