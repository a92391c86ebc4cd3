"""The specification of `group_advantage`, and its XLA path: the operation is too small to gain."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def group_advantage(
    rewards: Float[Array, " B"], group_ids: Int[Array, " B"], *, scale_by_std: bool, eps: float
) -> Float[Array, " B"]:
    """(r - mean of its group) / (std of its group + eps), std with ddof 1 (arXiv 2402.03300, 4.1).

    Without `scale_by_std`, r - mean alone (Dr. GRPO, arXiv 2503.20783). Members are found by equal
    ids, so groups may be ragged. A group of one, or of equal rewards, gets exactly 0.
    """
    same = (group_ids[:, None] == group_ids[None, :]).astype(jnp.float32)
    size = same.sum(axis=1)
    # Deviations are summed from pairwise differences: equal rewards then cancel exactly.
    differences = rewards[:, None] - rewards[None, :]
    centered = (same * differences).sum(axis=1) / size
    if not scale_by_std:
        return centered
    variance = (same * jnp.square(centered)[None, :]).sum(axis=1) / jnp.maximum(size - 1, 1)
    return centered / (jnp.sqrt(variance) + eps)
