"""The specification of `token_loss`, and its XLA path, which fuses it into one pass over tokens.

For each token, with ratio r = exp(logp - old) and advantage A,

    weight * (surrogate + kl_coef * KL(policy || ref)),

where the surrogate is one of

    clip    -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)      arXiv 2402.03300, eq. 3
    cispo   -min(r, 1 + clip_high) A logp, the ratio a constant    arXiv 2506.13585, eq. 4
    none    -r A                                                   arXiv 2402.14740

and A is multiplied by min(exp(old - sampler), tis_cap) where the sampler's own log-probabilities
are given (truncated importance sampling).

The weight holds the mask and the aggregation: 1 / (length of the row * rows) is GRPO's, 1 / tokens
DAPO's. Where it is 0 nothing counts, whatever stands there.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

KlEstimator = Literal["k1", "k2", "k3"]
Surrogate = Literal["clip", "cispo", "none"]


class TokenRule(NamedTuple):
    """What is the same for all tokens."""

    clip_low: float
    clip_high: float
    kl_coef: float
    kl_estimator: KlEstimator
    surrogate: Surrogate = "clip"
    tis_cap: float = 2.0


class TokenInputs(NamedTuple):
    """What goes with each token's log-probability, all constants."""

    weights: Float[Array, " N"]
    advantages: Float[Array, " N"]
    old: Float[Array, " N"] | None
    """None: the policy's own, so that the ratio is 1 and carries the gradient."""
    ref: Float[Array, " N"] | None
    """None: no KL term."""
    sampler: Float[Array, " N"] | None = None
    """None: the sampler's distribution was the trainer's."""


class TokenSums(NamedTuple):
    """Sums over the tokens that count, save the extremes; divide by `tokens` for means."""

    tokens: Float[Array, ""]
    policy: Float[Array, ""]
    """Of weight * surrogate: with kl_coef * weight * KL, the loss."""
    scale: Float[Array, ""]
    """Of |weight * surrogate|: what a difference between two losses is measured against."""
    kl: Float[Array, ""]
    clipped_low: Float[Array, ""]
    """Tokens with r < 1 - clip_low whose advantage is not positive."""
    clipped_high: Float[Array, ""]
    """Tokens with r > 1 + clip_high whose advantage is positive. (Counted for every surrogate.)"""
    ratio_max: Float[Array, ""]
    ratio_min: Float[Array, ""]


def clipped_surrogate(
    logprobs: Float[Array, "*N"],
    old: Float[Array, "*N"],
    advantages: Float[Array, "*N"],
    *,
    clip_low: float,
    clip_high: float,
) -> Float[Array, "*N"]:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r = exp(logp - old)."""
    ratio = jnp.exp(logprobs - old)
    clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
    return -jnp.minimum(ratio * advantages, clipped * advantages)


def kl_estimate(
    logprobs: Float[Array, "*N"], ref: Float[Array, "*N"], estimator: KlEstimator
) -> Float[Array, "*N"]:
    """KL(policy || reference) of each sampled token (Schulman 2020), d = ref - logp."""
    d = ref - logprobs
    match estimator:
        case "k1":
            return -d
        case "k2":
            return d**2 / 2
        case "k3":
            return jnp.exp(d) - d - 1


def token_terms(
    logprobs: Float[Array, " N"], inputs: TokenInputs, rule: TokenRule
) -> Float[Array, " N"]:
    """What each token adds to the loss; differentiable with respect to `logprobs`."""
    surrogate, kl = _surrogate_and_kl(logprobs, inputs, rule)
    return inputs.weights * (surrogate if kl is None else surrogate + rule.kl_coef * kl)


def _surrogate_and_kl(
    logprobs: jax.Array, inputs: TokenInputs, rule: TokenRule
) -> tuple[jax.Array, jax.Array | None]:
    counts = inputs.weights != 0
    # Before any exp: where nothing counts, an infinity times a zero cotangent would be NaN.
    logprobs = jnp.where(counts, logprobs, 0.0)
    old = jax.lax.stop_gradient(logprobs)
    if inputs.old is not None:
        old = jnp.where(counts, inputs.old, 0.0)
    advantages = jnp.where(counts, inputs.advantages, 0.0)
    if inputs.sampler is not None:
        gap = jax.lax.stop_gradient(old) - jnp.where(counts, inputs.sampler, 0.0)
        advantages *= jnp.minimum(jnp.exp(gap), rule.tis_cap)
    match rule.surrogate:
        case "clip":
            surrogate = clipped_surrogate(
                logprobs, old, advantages, clip_low=rule.clip_low, clip_high=rule.clip_high
            )
        case "cispo":
            ratio = jax.lax.stop_gradient(jnp.exp(logprobs - old))
            surrogate = -jnp.minimum(ratio, 1 + rule.clip_high) * advantages * logprobs
        case "none":
            surrogate = -jnp.exp(logprobs - old) * advantages
    if inputs.ref is None:
        return surrogate, None
    ref = jnp.where(counts, inputs.ref, 0.0)
    return surrogate, kl_estimate(logprobs, ref, rule.kl_estimator)


def token_loss(
    logprobs: Float[Array, " N"], inputs: TokenInputs, rule: TokenRule
) -> tuple[Float[Array, ""], TokenSums]:
    """The sum of `token_terms`, and the metrics."""
    loss = jnp.sum(token_terms(logprobs, inputs, rule))
    return loss, token_sums(jax.lax.stop_gradient(logprobs), inputs, rule)


def token_sums(logprobs: Float[Array, " N"], inputs: TokenInputs, rule: TokenRule) -> TokenSums:
    """The metrics alone."""
    surrogate, kl = _surrogate_and_kl(logprobs, inputs, rule)
    counts = inputs.weights != 0
    ratio = jnp.ones_like(logprobs)
    if inputs.old is not None:
        ratio = jnp.exp(jnp.where(counts, logprobs - inputs.old, 0.0))
    gain = inputs.advantages > 0
    weighted = inputs.weights * surrogate

    def count(where: jax.Array) -> jax.Array:
        return jnp.sum(where & counts, dtype=jnp.float32)

    return TokenSums(
        tokens=count(counts),
        policy=jnp.sum(weighted),
        scale=jnp.sum(jnp.abs(weighted)),
        kl=jnp.zeros(()) if kl is None else jnp.sum(jnp.where(counts, kl, 0.0)),
        clipped_low=count((ratio < 1 - rule.clip_low) & ~gain),
        clipped_high=count((ratio > 1 + rule.clip_high) & gain),
        ratio_max=jnp.max(ratio, where=counts, initial=0.0),
        ratio_min=jnp.min(ratio, where=counts, initial=jnp.inf),
    )
