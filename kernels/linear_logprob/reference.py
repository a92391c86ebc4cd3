"""The specification of `linear_logprob`: all logits at once, in float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kernels import softmax


def linear_logprob(
    hidden: Float[Array, "N D"],
    weight: Float[Array, "V D"],
    labels: Int[Array, " N"],
    temperature: float,
) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
    """log softmax(hidden weight^T / temperature)[label] and the softmax's entropy, in nats."""
    logits = softmax.logits(hidden, weight.astype(hidden.dtype), temperature)
    log_p = jax.nn.log_softmax(logits, axis=1)
    logprobs = jnp.sum(jnp.where(softmax.is_label(log_p, labels), log_p, 0.0), axis=1)
    return logprobs, -jnp.sum(jnp.exp(log_p) * log_p, axis=1)
