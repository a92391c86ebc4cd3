"""The specification of `group_advantage`, and its XLA path.

Every pair of members is compared, r_i - r_j: equal rewards then cancel exactly, which a difference
from a rounded mean does not. 4,096 rewards are 17 million pairs, some microseconds of a GPU.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def group_advantage(
    rewards: Float[Array, " B"],
    group_ids: Int[Array, " B"],
    mask: Bool[Array, " B"] | None,
    baseline: str,
    scale_by_std: bool,
    eps: float,
) -> Float[Array, " B"]:
    """As `api.group_advantage`."""
    counts = jnp.ones(rewards.shape, bool) if mask is None else mask
    rewards = jnp.where(counts, rewards, 0.0)
    same = (group_ids[:, None] == group_ids[None, :]) & counts[None, :]
    size = jnp.maximum(jnp.sum(same, axis=1, dtype=jnp.float32), 1)
    differences = rewards[:, None] - rewards[None, :]
    centered = jnp.sum(jnp.where(same, differences, 0.0), axis=1) / size
    advantage = centered
    if baseline == "leave_one_out":
        advantage = centered * size / jnp.maximum(size - 1, 1)
    if scale_by_std:
        # r_j - mean, as it looks from i.
        deviations = centered[:, None] - differences
        squares = jnp.sum(jnp.where(same, jnp.square(deviations), 0.0), axis=1)
        advantage /= jnp.sqrt(squares / jnp.maximum(size - 1, 1)) + eps
    return jnp.where(counts, advantage, 0.0)
