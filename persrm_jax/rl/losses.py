"""GRPO's loss of a rollout: how it is configured, and how tokens weigh in it."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kernels.dispatch import Impl
from kernels.grpo_loss import grpo_loss
from kernels.token_loss import KlEstimator, TokenInputs, TokenRule, TokenSums
from persrm_jax.types import Totals

Metrics = dict[str, jax.Array]


@dataclass(frozen=True)
class LossConfig:
    """GRPO's loss (arXiv 2402.03300, eq. 3), and how losses are computed."""

    clip_low: float = 0.2
    """The ratio is clipped at 1 - clip_low."""
    clip_high: float = 0.2
    """The ratio is clipped at 1 + clip_high."""
    kl_coef: float = 1e-3
    """Weight of the KL divergence to the reference; 0 loads no reference."""
    kl_estimator: KlEstimator = "k3"
    """k3 = exp(ref - logp) - (ref - logp) - 1; k2 = (ref - logp)^2 / 2; k1 = logp - ref."""
    entropy_coef: float = 0.0
    """Weight of the mean entropy, which is added to the objective."""
    impl: Impl = "auto"
    """Who computes log-probabilities and losses, of SFT too: `reference` with all logits in memory,
    `xla` a chunk at a time, `pallas` with kernels (TPUs, Hopper GPUs); `auto` takes what was
    measured as fastest on the chip."""
    accumulator: Literal["float32", "bfloat16"] = "float32"
    """What the gradient of the output projection is summed in; `bfloat16` saves half its memory, at
    an error of 1e-2."""

    def __post_init__(self) -> None:
        if not 0 <= self.clip_low < 1 or self.clip_high < 0:
            raise ValueError(
                f"--loss.clip-low {self.clip_low} must be in [0, 1) and "
                f"--loss.clip-high {self.clip_high} at least 0"
            )
        if self.kl_coef < 0:
            raise ValueError(f"--loss.kl-coef {self.kl_coef}: must be 0 or more")

    @property
    def rule(self) -> TokenRule:
        """What the kernels need of it."""
        return TokenRule(self.clip_low, self.clip_high, self.kl_coef, self.kl_estimator)


DEFAULT = LossConfig()


def sequence_weights(
    mask: Bool[Array, "B T"], num_rows: Int[Array, ""] | None = None
) -> Float[Array, "B T"]:
    """Weights under which a sum over tokens is the mean over each row's tokens, then over the rows
    (`num_rows` where these are but a part); an empty row counts as 0."""
    lengths = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    return mask / (lengths * (mask.shape[0] if num_rows is None else num_rows))


def rollout_loss(
    hidden: Float[Array, "B T D"],
    weight: Float[Array, "V D"],
    labels: Int[Array, "B T"],
    old: Float[Array, "B T"] | None,
    ref: Float[Array, "B T"] | None,
    advantages: Float[Array, " B"],
    mask: Bool[Array, "B T"],
    cfg: LossConfig,
    *,
    temperature: float,
    totals: Totals,
) -> tuple[Float[Array, ""], Metrics, Float[Array, "B T"]]:
    """GRPO's loss of completions, its metrics and their log-probabilities (as constants).

    Args:
        hidden: the state before each label.
        old: log-probabilities at the time of the rollout; None: the policy's own.
        ref: the reference's, where `cfg.kl_coef` is above 0.
        mask: tokens that count.
        totals: of the whole batch, of which these rows may be a part.
    """
    wide = jnp.broadcast_to(advantages[:, None], mask.shape)
    given = TokenInputs(sequence_weights(mask, totals.sequences), wide, old, ref)
    found = grpo_loss(
        hidden.reshape(-1, hidden.shape[2]),
        weight,
        labels.reshape(-1),
        jax.tree.map(jnp.ravel, given),
        cfg.rule,
        temperature=temperature,
        entropy_coef=cfg.entropy_coef,
        accumulator=cfg.accumulator,
        impl=cfg.impl,
    )
    tokens = jnp.maximum(totals.tokens, 1)
    entropy = jnp.sum(jnp.where(mask.reshape(-1), found.entropy, 0.0))
    metrics = {
        "loss/total": found.loss,
        **loss_metrics(found.sums, cfg, tokens),
        "entropy/mean": entropy / tokens,
    }
    return found.loss, metrics, found.logprobs.reshape(mask.shape)


def loss_metrics(sums: TokenSums, cfg: LossConfig, tokens: Int[Array, ""]) -> Metrics:
    """A loss's sums as TensorBoard shows them; `tokens` are the whole batch's."""
    metrics = {
        "loss/policy": sums.policy,
        # The sum of |terms|: what a difference between two runs' losses is measured against.
        "loss/scale": sums.scale,
        "ratio/clip_fraction_low": sums.clipped_low / tokens,
        "ratio/clip_fraction_high": sums.clipped_high / tokens,
        "ratio/max": sums.ratio_max,
        "ratio/min": sums.ratio_min,
    }
    if cfg.kl_coef:
        metrics["kl/mean"] = sums.kl / tokens
    return metrics
