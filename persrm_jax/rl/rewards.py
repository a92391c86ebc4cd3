"""Rewards of parsed completions."""

from dataclasses import dataclass

from persrm_jax.data.prompts import Judgement
from persrm_jax.types import Order, right_verdict


@dataclass(frozen=True)
class RewardConfig:
    """R = correct * w_correct + format * w_format."""

    correct: float = 1.0
    """Weight of the verdict: +1 right, 0 tie, -1 wrong or unparsed."""
    format: float = 0.0
    """Weight of the format: 1 parsed, 0 not."""


def verdict_reward(judgement: Judgement | None, order: Order) -> float:
    """+1 for the chosen text's side, 0 for a tie, -1 for the other side or no verdict."""
    if judgement is None:
        return -1.0
    if judgement.verdict == "tie":
        return 0.0
    return 1.0 if judgement.verdict == right_verdict(order) else -1.0


def format_reward(judgement: Judgement | None) -> float:
    """1 where the completion keeps the output grammar."""
    return float(judgement is not None)


def reward(judgement: Judgement | None, order: Order, cfg: RewardConfig) -> float:
    """The weighted sum that the policy is trained on."""
    return cfg.correct * verdict_reward(judgement, order) + cfg.format * format_reward(judgement)
