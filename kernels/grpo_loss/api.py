"""GRPO's loss (arXiv 2402.03300, eq. 3) from hidden states: `token_loss` on top of `linear_loss`.

Where a token's ratio is its own, the gradients form while its logits are there (6 T D V
floating-point operations; `linear_loss.xla` has the roofline). `pallas` takes log-probabilities
with a kernel first, then loss and derivatives with another, and forms the logits again for the
gradients (8 T D V).
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kernels.dispatch import Impl
from kernels.linear_logprob import linear_logprob
from kernels.linear_loss import linear_loss
from kernels.token_loss import TokenInputs, TokenRule, TokenSums, token_loss, token_terms


class GrpoLoss(NamedTuple):
    """A loss and what it was made from, the latter as constants."""

    loss: Float[Array, ""]
    sums: TokenSums
    logprobs: Float[Array, " N"]
    """0 for a token without weight, where its ratio is its own."""
    entropy: Float[Array, " N"]
    """Likewise."""


def grpo_loss(
    hidden: Float[Array, "N D"],
    weight: Float[Array, "V D"],
    labels: Int[Array, " N"],
    inputs: TokenInputs,
    rule: TokenRule,
    *,
    temperature: float = 1.0,
    entropy_coef: float = 0.0,
    accumulator: Literal["float32", "bfloat16"] = "float32",
    impl: Impl = "auto",
) -> GrpoLoss:
    """sum of weight * (surrogate + kl_coef * KL - entropy_coef * entropy) over tokens.

    Tokens are flat, so that rows may be packed, and prompts shared by completions.

    Args:
        hidden: states after the final norm; products are taken in their dtype, sums in float32.
        weight: the output projection. Gradients reach `hidden` and `weight`.
        labels: in [0, V).
        temperature: divides the logits.
        accumulator: as `linear_loss` has it.
        impl: as `linear_loss` has it.

    Raises:
        ValueError: `pallas` where it cannot run.
    """
    counts = inputs.weights != 0
    if impl == "pallas":
        logprobs, entropy = linear_logprob(
            hidden, weight, labels, temperature=temperature, impl=impl
        )
        loss, sums = token_loss(logprobs, inputs, rule, impl=impl)
        if entropy_coef:
            loss -= entropy_coef * (inputs.weights * entropy).sum()
        constants = (jnp.where(counts, x, 0.0) for x in (logprobs, entropy))
        return GrpoLoss(loss, sums, *map(jax.lax.stop_gradient, constants))
    loss, logprobs, entropy = linear_loss(
        partial(_terms, rule, entropy_coef),
        hidden,
        weight,
        labels,
        inputs,
        temperature=temperature,
        uses_entropy=entropy_coef != 0,
        accumulator=accumulator,
        impl=impl,
        counts=counts,
    )
    return GrpoLoss(loss, token_loss(logprobs, inputs, rule)[1], logprobs, entropy)


def _terms(
    rule: TokenRule,
    entropy_coef: float,
    logprobs: jax.Array,
    entropy: jax.Array,
    inputs: TokenInputs,
) -> jax.Array:
    terms = token_terms(logprobs, inputs, rule)
    return terms - entropy_coef * inputs.weights * entropy if entropy_coef else terms
