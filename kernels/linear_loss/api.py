"""The public function: it picks the implementation."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kernels.dispatch import Impl
from kernels.linear_logprob import linear_logprob
from kernels.linear_loss import xla

TokenFn = Callable[[jax.Array, jax.Array, Any], jax.Array]
"""(log-probabilities [n], entropies [n], inputs) -> terms [n], which add up to the loss. A token's
term depends on no other token."""


def linear_loss(
    token_fn: TokenFn,
    hidden: Float[Array, "N D"],
    weight: Float[Array, "V D"],
    labels: Int[Array, " N"],
    inputs: Any,
    *,
    temperature: float = 1.0,
    uses_entropy: bool = False,
    accumulator: Literal["float32", "bfloat16"] = "float32",
    impl: Impl = "auto",
    counts: Bool[Array, " N"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, " N"], Float[Array, " N"]]:
    """sum of token_fn(log p, H, inputs) over tokens, without logits in memory.

    Gradients reach `hidden` and `weight`, through the loss alone.

    Args:
        hidden: states after the final norm; products are taken in their dtype, sums in float32.
        weight: the output projection.
        labels: in [0, V).
        inputs: a pytree of arrays [N], such as masks and advantages, taken as constants.
        uses_entropy: whether the terms' gradient goes through the entropy too.
        accumulator: what the weight's gradient is summed in; `bfloat16` halves it, at an error of
            1e-2.
        impl: `xla` forms the gradients with the logits, a chunk of tokens at a time; `pallas` takes
            log-probabilities with a kernel first; `reference` holds all logits.
        counts: tokens whose terms may differ from 0; the others need no logits.

    Returns:
        The loss, and each token's log-probability and entropy in nats, float32, as constants; 0 for
        a token that does not count.

    Raises:
        ValueError: `pallas` where it cannot run.
    """
    if impl in ("auto", "xla"):
        return xla.linear_loss(
            token_fn, temperature, uses_entropy, accumulator, hidden, weight, labels, inputs, counts
        )
    logprobs, entropy = linear_logprob(hidden, weight, labels, temperature=temperature, impl=impl)
    terms = token_fn(logprobs, entropy, inputs)
    if counts is not None:
        terms, logprobs, entropy = (jnp.where(counts, x, 0.0) for x in (terms, logprobs, entropy))
    loss = jnp.sum(terms)
    return loss, jax.lax.stop_gradient(logprobs), jax.lax.stop_gradient(entropy)
