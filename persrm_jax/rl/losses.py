"""The clipped surrogate, KL estimators and their aggregation into GRPO's loss."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from persrm_jax.models.logprobs import masked_mean
from persrm_jax.types import Totals

KlEstimator = Literal["k1", "k2", "k3"]
Metrics = dict[str, jax.Array]


@dataclass(frozen=True)
class LossConfig:
    """GRPO's loss (arXiv 2402.03300, eq. 3)."""

    clip_low: float = 0.2
    """The ratio is clipped at 1 - clip_low."""
    clip_high: float = 0.2
    """The ratio is clipped at 1 + clip_high."""
    kl_coef: float = 1e-3
    """Weight of the KL divergence to the reference; 0 loads no reference."""
    kl_estimator: KlEstimator = "k3"
    """k3 = exp(ref - logp) - (ref - logp) - 1; k2 = (ref - logp)^2 / 2; k1 = logp - ref."""

    def __post_init__(self) -> None:
        if not 0 <= self.clip_low < 1 or self.clip_high < 0:
            raise ValueError(
                f"--loss.clip-low {self.clip_low} must be in [0, 1) and "
                f"--loss.clip-high {self.clip_high} at least 0"
            )
        if self.kl_coef < 0:
            raise ValueError(f"--loss.kl-coef {self.kl_coef}: must be 0 or more")


def clipped_surrogate(
    logprobs: Float[Array, "B T"],
    old_logprobs: Float[Array, "B T"],
    advantages: Float[Array, " B"],
    *,
    clip_low: float,
    clip_high: float,
) -> Float[Array, "B T"]:
    """Per-token -min(r A, clip(r, 1-clip_low, 1+clip_high) A), r = exp(logp - old)."""
    ratio = jnp.exp(logprobs - old_logprobs)
    clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
    A = advantages[:, None]
    return -jnp.minimum(ratio * A, clipped * A)


def kl_estimate(
    logprobs: Float[Array, "B T"], ref_logprobs: Float[Array, "B T"], estimator: KlEstimator
) -> Float[Array, "B T"]:
    """KL(policy || reference) of each sampled token (Schulman 2020), d = ref - logp."""
    d = ref_logprobs - logprobs
    match estimator:
        case "k1":
            return -d
        case "k2":
            return d**2 / 2
        case "k3":
            return jnp.exp(d) - d - 1


def sequence_mean(
    x: Float[Array, "B T"], mask: Bool[Array, "B T"], num_rows: Int[Array, ""] | None = None
) -> Float[Array, ""]:
    """Mean over each row's tokens, then over the rows (`num_rows` where these are but a part); an
    empty row counts as 0."""
    per_row = jnp.sum(jnp.where(mask, x, 0.0), axis=1) / jnp.maximum(jnp.sum(mask, axis=1), 1)
    return jnp.sum(per_row) / (x.shape[0] if num_rows is None else num_rows)


def grpo_loss(
    logprobs: Float[Array, "B T"],
    old_logprobs: Float[Array, "B T"],
    ref_logprobs: Float[Array, "B T"] | None,
    advantages: Float[Array, " B"],
    mask: Bool[Array, "B T"],
    cfg: LossConfig,
    totals: Totals | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """sequence_mean(surrogate + kl_coef * KL), and its metrics.

    Args:
        totals: counts of the whole batch, where these rows are but a part of it.
    """
    rows, tokens = totals or (None, None)
    # Before any exp: where masked, an infinity times a zero cotangent would be NaN.
    logprobs = jnp.where(mask, logprobs, 0.0)
    old_logprobs = jnp.where(mask, old_logprobs, 0.0)
    surrogate = clipped_surrogate(
        logprobs, old_logprobs, advantages, clip_low=cfg.clip_low, clip_high=cfg.clip_high
    )
    policy_loss = sequence_mean(surrogate, mask, rows)
    ratio = jnp.exp(jax.lax.stop_gradient(logprobs) - old_logprobs)
    gain = advantages[:, None] > 0
    metrics = {
        "loss/policy": policy_loss,
        # The sum of |terms|: what a difference between two runs' losses is measured against.
        "loss/scale": sequence_mean(jnp.abs(surrogate), mask, rows),
        "ratio/clip_fraction_low": masked_mean((ratio < 1 - cfg.clip_low) & ~gain, mask, tokens),
        "ratio/clip_fraction_high": masked_mean((ratio > 1 + cfg.clip_high) & gain, mask, tokens),
        "ratio/max": jnp.max(jnp.where(mask, ratio, 0.0)),
    }
    loss = policy_loss
    if ref_logprobs is not None:
        kl = kl_estimate(logprobs, jnp.where(mask, ref_logprobs, 0.0), cfg.kl_estimator)
        metrics["kl/mean"] = masked_mean(kl, mask, tokens)
        loss = loss + cfg.kl_coef * sequence_mean(kl, mask, rows)
    metrics["loss/total"] = loss
    return loss, metrics
