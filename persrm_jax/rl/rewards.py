"""Rewards of completions: named components, each a plain function of one completion's record."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from persrm_jax.data.prompts import Judgement
from persrm_jax.types import Order, Pair, right_verdict


@dataclass(frozen=True)
class CompletionRecord:
    """One completion, as reward functions see it."""

    pair: Pair
    order: Order
    """`AB` showed the chosen text first, or alone."""
    text: str
    judgement: Judgement | None
    """None where the text does not parse."""
    num_tokens: int
    """Its end token included."""
    max_tokens: int
    """Longest allowed."""
    truncated: bool
    """Whether it has no end token."""
    rivals: tuple[float, ...] = ()
    """Where one text is shown alone: the scores that the pair's other text got."""


@dataclass(frozen=True)
class RewardConfig:
    """R is the sum of the components below, each times its weight."""

    correct: float = 1.0
    """Weight of the verdict: +1 right, 0 tie, -1 wrong or unparsed."""
    format: float = 0.0
    """Weight of the format: 1 parsed, 0 not."""
    margin: float = 0.0
    """Weight of the scores: (the chosen text's - the rejected text's) / 10, -1 unparsed."""
    overlong: float = 0.0
    """Weight of DAPO's soft punishment of length (arXiv 2503.14476, eq. 13): 0 up to the buffer
    before the longest allowed, then falling to -1."""
    overlong_buffer: int = 0
    """Tokens of that buffer; 0: a fifth of the longest allowed, as DAPO has it."""
    kl: float = 0.0
    """Nats that a completion's log-probability lies above the reference's, times this, are
    subtracted (k1 in the reward, RLOO's place for it). Whether a group's rewards are all equal is
    asked before."""
    own: str = ""
    """A function of one's own, FILE.py:NAME or package.module:NAME: from the list of a group's
    `CompletionRecord`s to the list of their rewards."""
    own_weight: float = 1.0
    """Its weight."""
    own_timeout: float = 30.0
    """Seconds that it may take for a group; then each completion is tried alone, for as long."""

    def __post_init__(self) -> None:
        if self.overlong_buffer < 0:
            raise ValueError(
                f"--rft.reward.overlong-buffer {self.overlong_buffer}: must be 0 or more"
            )
        if self.own and ":" not in self.own:
            raise ValueError(
                f"--rft.reward.own {self.own}: must be FILE.py:NAME or package.module:NAME"
            )
        if self.own_timeout <= 0:
            raise ValueError(f"--rft.reward.own-timeout {self.own_timeout}: must be above 0")


def verdict_reward(record: CompletionRecord, cfg: RewardConfig) -> float:
    """+1 for the chosen text's side, 0 for a tie, -1 for the other side or no verdict. A text shown
    alone is compared with each of its rivals, and the results are averaged."""
    judgement = record.judgement
    if judgement is None:
        return -1.0
    if judgement.verdict is None:
        assert judgement.score_a is not None
        signs = [_sign(judgement.score_a - rival) for rival in record.rivals]
        return _side(record) * float(np.mean(signs)) if signs else 0.0
    if judgement.verdict == "tie":
        return 0.0
    return 1.0 if judgement.verdict == right_verdict(record.order) else -1.0


def format_reward(record: CompletionRecord, cfg: RewardConfig) -> float:
    """1 where the completion keeps the output grammar."""
    return float(record.judgement is not None)


def margin_reward(record: CompletionRecord, cfg: RewardConfig) -> float:
    """How far the scores favour the chosen text, in [-1, 1]; -1 without scores."""
    judgement = record.judgement
    if judgement is None or judgement.score_a is None:
        return -1.0
    if judgement.verdict is None:
        other = float(np.mean(record.rivals)) if record.rivals else judgement.score_a
    elif judgement.score_b is None:
        return -1.0
    else:
        other = judgement.score_b
    return _side(record) * (judgement.score_a - other) / 10


def overlong_reward(record: CompletionRecord, cfg: RewardConfig) -> float:
    """0 for what ends before the buffer, then falling by the token to -1."""
    buffer = cfg.overlong_buffer or max(record.max_tokens // 5, 1)
    over = record.num_tokens - (record.max_tokens - buffer)
    return -min(max(over, 0) / buffer, 1.0)


COMPONENTS: dict[str, Callable[[CompletionRecord, RewardConfig], float]] = {
    "correct": verdict_reward,
    "format": format_reward,
    "margin": margin_reward,
    "overlong": overlong_reward,
}
"""To add one: its name, which is also its weight's in `RewardConfig`, and a function."""


def score(
    records: Sequence[CompletionRecord], cfg: RewardConfig, own: Sequence[float] | None = None
) -> tuple[dict[str, Float[np.ndarray, " B"]], Float[np.ndarray, " B"]]:
    """(components that carry weight, their weighted sum).

    Args:
        own: what a function of one's own gave, NaN where it gave nothing; the sum is NaN there.
    """
    found = {
        name: (getattr(cfg, name), [component(record, cfg) for record in records])
        for name, component in COMPONENTS.items()
        if getattr(cfg, name)
    }
    if own is not None:
        found["own"] = (cfg.own_weight, list(own))
    components = {name: np.array(values, np.float32) for name, (_, values) in found.items()}
    total: Any = sum(weight * components[name] for name, (weight, _) in found.items())
    return components, np.broadcast_to(np.float32(total), len(records)).astype(np.float32)


def credit(record: CompletionRecord) -> float:
    """1 for the right verdict, 0.5 for a tie, 0 for a wrong one or none."""
    return 0.0 if record.judgement is None else (verdict_reward(record, RewardConfig()) + 1) / 2


def _side(record: CompletionRecord) -> int:
    """1 where the chosen text was shown first, or alone; -1 where the other was."""
    return 1 if record.order == "AB" else -1


def _sign(x: float) -> float:
    return math.copysign(1.0, x) if x else 0.0
