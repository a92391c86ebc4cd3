"""Group-relative estimators: rewards [B] of P groups of G -> advantages [B]."""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.group_advantage import Baseline, group_advantage


@dataclass(frozen=True)
class AdvantageConfig:
    """How a completion's reward compares with its group's."""

    baseline: Baseline = "mean"
    """What is subtracted from a reward: the group's `mean`, or that of the others (RLOO)."""
    scale: Literal["std", "none"] = "std"
    """`std` divides by the group's standard deviation (GRPO), `none` does not (Dr. GRPO)."""
    eps: float = 1e-4
    """Added to the standard deviation."""


def group_relative(
    rewards: Float[Array, " B"], group_size: int, cfg: AdvantageConfig
) -> Float[Array, " B"]:
    """Advantages of rows that are grouped by prompt. A reward of NaN, of a row that has none, gives
    0, and its group's others are compared without it."""
    group_ids = jnp.arange(rewards.shape[0]) // group_size
    return group_advantage(
        rewards,
        group_ids,
        ~jnp.isnan(rewards),
        baseline=cfg.baseline,
        scale_by_std=cfg.scale == "std",
        eps=cfg.eps,
    )


VARIANTS = {
    "grpo": AdvantageConfig(),
    "dr_grpo": AdvantageConfig(scale="none"),
    "dapo": AdvantageConfig(),
    "gspo": AdvantageConfig(),
    "cispo": AdvantageConfig(),
    "rloo": AdvantageConfig(baseline="leave_one_out", scale="none"),
}
"""The family's advantages by name (their losses are `rl.losses.VARIANTS`)."""
