"""The specification of `linear_logprob`: all logits at once, in float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def linear_logprob(
    hidden: Float[Array, "B T D"],
    weight: Float[Array, "V D"],
    labels: Int[Array, "B T"],
    temperature: float,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """log softmax(hidden weight^T / temperature)[label] and the softmax's entropy, in nats."""
    weight = weight.astype(hidden.dtype)
    logits = jnp.einsum("BTD,VD->BTV", hidden, weight, preferred_element_type=jnp.float32)
    logits = logits / temperature
    log_z = jax.nn.logsumexp(logits, axis=-1)
    # A mask and a sum, not a gather, so that a sharded vocabulary needs no collective but the sum.
    is_label = jax.lax.broadcasted_iota(labels.dtype, logits.shape, 2) == labels[..., None]
    label_logits = jnp.sum(jnp.where(is_label, logits, 0.0), axis=-1)
    shifted = logits - log_z[..., None]
    entropy = -jnp.sum(jnp.exp(shifted) * shifted, axis=-1)
    return label_logits - log_z, entropy
