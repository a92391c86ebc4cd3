"""Rewards of parsed completions."""

from dataclasses import dataclass

from persrm_jax.data.prompts import Judgement
from persrm_jax.types import Order, right_verdict


@dataclass(frozen=True)
class RewardConfig:
    """R is the sum of the components below, each times its weight."""

    correct: float = 1.0
    """Weight of the verdict: +1 right, 0 tie, -1 wrong or unparsed."""
    format: float = 0.0
    """Weight of the format: 1 parsed, 0 not."""
    margin: float = 0.0
    """Weight of the scores: (the chosen text's - the rejected text's) / 10, -1 unparsed."""


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


def margin_reward(judgement: Judgement | None, order: Order) -> float:
    """How far the scores favour the chosen text, in [-1, 1]; -1 without scores."""
    if judgement is None or judgement.score_a is None or judgement.score_b is None:
        return -1.0
    margin = (judgement.score_a - judgement.score_b) / 10
    return margin if order == "AB" else -margin


def reward(judgement: Judgement | None, order: Order, cfg: RewardConfig) -> float:
    """The weighted sum that the policy is trained on."""
    return (
        cfg.correct * verdict_reward(judgement, order)
        + cfg.format * format_reward(judgement)
        + cfg.margin * margin_reward(judgement, order)
    )
