"""The GRPO family's losses, by composition: advantage x ratio x clipping x aggregation x KL."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kernels.dispatch import Impl
from kernels.grpo_loss import GrpoLoss, grpo_loss
from kernels.linear_logprob import linear_logprob
from kernels.token_loss import (
    KlEstimator,
    Surrogate,
    TokenInputs,
    TokenRule,
    TokenSums,
    kl_estimate,
    token_loss,
)
from persrm_jax.types import Totals

Metrics = dict[str, jax.Array]


Ratio = Literal["token", "sequence", "sequence_sum"]
Aggregate = Literal["sequence_mean", "token_mean", "constant", "sequence_sum"]


@dataclass(frozen=True)
class LossConfig:
    """A loss of the GRPO family, put together of its parts, and how losses are computed."""

    surrogate: Surrogate = "clip"
    """`clip`: PPO's, of GRPO and most others; `cispo`: the ratio is a clipped constant weight on
    log p; `none`: no clipping."""
    ratio: Ratio = "token"
    """Policy over old policy of each token, or of the whole sequence: `sequence` its geometric mean
    over tokens (GSPO), `sequence_sum` its product (RLOO)."""
    clip_low: float = 0.2
    """The ratio is clipped at 1 - clip_low."""
    clip_high: float = 0.2
    """The ratio is clipped at 1 + clip_high."""
    aggregate: Aggregate = "sequence_mean"
    """`sequence_mean`: over a completion's tokens, then over completions (GRPO); `token_mean`: over
    all tokens (DAPO); `constant`: a sum over (completions x longest allowed) (Dr. GRPO);
    `sequence_sum`: a sum over a completion's tokens, a mean over completions (RLOO)."""
    kl_coef: float = 1e-3
    """Weight of the KL divergence to the reference; 0 loads no reference."""
    kl_estimator: KlEstimator = "k3"
    """k3 = exp(ref - logp) - (ref - logp) - 1; k2 = (ref - logp)^2 / 2; k1 = logp - ref."""
    tis_cap: float = 0.0
    """Truncated importance sampling: advantages are multiplied by min(trainer / sampler, cap) of
    each token's probability; 0: not."""
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
        for name in ("kl_coef", "tis_cap"):
            if getattr(self, name) < 0:
                flag = name.replace("_", "-")
                raise ValueError(f"--loss.{flag} {getattr(self, name)}: must be 0 or more")
        if self.surrogate == "cispo" and self.ratio != "token":
            raise ValueError(
                f"--loss.ratio {self.ratio}: cispo weighs each token by a ratio of its own (token)"
            )

    @property
    def rule(self) -> TokenRule:
        """What the kernels need of it."""
        return TokenRule(
            self.clip_low,
            self.clip_high,
            self.kl_coef,
            self.kl_estimator,
            self.surrogate,
            self.tis_cap,
        )


VARIANTS = {
    "grpo": LossConfig(),
    "dr_grpo": LossConfig(aggregate="constant", kl_coef=0.0),
    "dapo": LossConfig(clip_high=0.28, aggregate="token_mean", kl_coef=0.0),
    "gspo": LossConfig(ratio="sequence", clip_low=3e-4, clip_high=4e-4, kl_coef=0.0),
    "cispo": LossConfig(surrogate="cispo", clip_high=1.0, aggregate="token_mean", kl_coef=0.0),
    "rloo": LossConfig(
        surrogate="none", ratio="sequence_sum", aggregate="sequence_sum", kl_coef=0.0
    ),
}
"""The family's losses by name (their advantages are `rl.advantages.VARIANTS`): arXiv 2402.03300,
2503.20783, 2503.14476, 2507.18071, 2506.13585 (with TRL's cap of 2), 2402.14740."""


DEFAULT = LossConfig()


def token_weights(
    mask: Bool[Array, "B T"], aggregate: Aggregate, totals: Totals
) -> Float[Array, "B T"]:
    """Weights under which a sum over tokens is the batch's loss; `totals` are the whole batch's. A
    completion without tokens counts as 0."""
    sequences = jnp.maximum(totals.sequences, 1)
    match aggregate:
        case "sequence_mean":
            per_row = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1) * sequences
        case "token_mean":
            per_row = jnp.maximum(totals.tokens, 1)
        case "constant":
            per_row = sequences * mask.shape[1]
        case "sequence_sum":
            per_row = sequences
    return mask / per_row


def rollout_loss(
    hidden: Float[Array, "B T D"],
    weight: Float[Array, "V D"],
    labels: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    advantages: Float[Array, " B"],
    cfg: LossConfig,
    *,
    old: Float[Array, "B T"] | None = None,
    ref: Float[Array, "B T"] | None = None,
    sampler: Float[Array, "B T"] | None = None,
    temperature: float,
    totals: Totals,
) -> tuple[Float[Array, ""], Metrics, Float[Array, "B T"]]:
    """The loss of completions, its metrics and their log-probabilities (as constants).

    Args:
        hidden: the state before each label.
        mask: tokens that count.
        old: log-probabilities at the time of the rollout; None: the policy's own.
        ref: the reference's, where `cfg.kl_coef` is above 0.
        sampler: the sampler's, where `cfg.tis_cap` is above 0.
        totals: of the whole batch, of which these rows may be a part.
    """
    wide = jnp.broadcast_to(advantages[:, None], mask.shape)
    sampler = sampler if cfg.tis_cap else None
    given = TokenInputs(token_weights(mask, cfg.aggregate, totals), wide, old, ref, sampler)
    flat = (hidden.reshape(-1, hidden.shape[2]), weight, labels.reshape(-1))
    given = jax.tree.map(jnp.ravel, given)
    if cfg.ratio == "token" or old is None:
        # With old = policy a sequence's ratio is 1 like its tokens', and so are its derivatives.
        found = grpo_loss(
            *flat,
            given,
            cfg.rule,
            temperature=temperature,
            entropy_coef=cfg.entropy_coef,
            accumulator=cfg.accumulator,
            impl=cfg.impl,
        )
    else:
        found = sequence_loss(*flat, given, mask, cfg, temperature=temperature)
    tokens = jnp.maximum(totals.tokens, 1)
    entropy = jnp.sum(jnp.where(mask.reshape(-1), found.entropy, 0.0))
    metrics = {
        "loss/total": found.loss,
        **loss_metrics(found.sums, cfg, tokens),
        "entropy/mean": entropy / tokens,
    }
    return found.loss, metrics, found.logprobs.reshape(mask.shape)


def sequence_loss(
    hidden: Float[Array, "N D"],
    weight: Float[Array, "V D"],
    labels: Int[Array, " N"],
    given: TokenInputs,
    mask: Bool[Array, "B T"],
    cfg: LossConfig,
    *,
    temperature: float,
) -> GrpoLoss:
    """The same where each completion has one ratio, off its rollout's policy. It is known only when
    all log-probabilities are, so the logits are formed twice (`linear_logprob`)."""
    logprobs, entropy = linear_logprob(
        hidden, weight, labels, temperature=temperature, impl=cfg.impl
    )
    assert given.old is not None
    change = jnp.where(mask, (logprobs - given.old).reshape(mask.shape), 0.0)
    lengths = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    ratio = jnp.sum(change, axis=1, keepdims=True)
    weights = given.weights
    if cfg.ratio == "sequence":
        ratio /= lengths
    else:  # a product of ratios stands for all of its tokens, and counts once
        weights = (weights.reshape(mask.shape) / lengths).reshape(-1)
    # As the log-probability of a token whose ratio is its sequence's.
    as_tokens = given.old + jnp.broadcast_to(ratio, mask.shape).reshape(-1)
    alone = given._replace(weights=weights, ref=None)
    loss, sums = token_loss(as_tokens, alone, cfg.rule, impl="xla")
    if given.ref is not None:
        counts = given.weights != 0
        policy, ref = (jnp.where(counts, x, 0.0) for x in (logprobs, given.ref))
        kl = kl_estimate(policy, ref, cfg.kl_estimator)
        loss += cfg.kl_coef * jnp.sum(given.weights * kl)
        sums = sums._replace(kl=jnp.sum(jnp.where(counts, kl, 0.0)))
    if cfg.entropy_coef:
        loss -= cfg.entropy_coef * jnp.sum(given.weights * entropy)
    return GrpoLoss(loss, *jax.lax.stop_gradient((sums, logprobs, entropy)))


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
