"""Token log-probabilities of whole sequences: SFT, RL and evaluation all call this."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.linear_logprob import linear_logprob
from persrm_jax.models.config import ComputeConfig, ModelConfig
from persrm_jax.models.decoder import forward, vocab_weight
from persrm_jax.models.params import Params
from persrm_jax.types import Batch


def token_logprobs(
    params: Params,
    cfg: ModelConfig,
    batch: Batch,
    compute: ComputeConfig,
    *,
    start: int = 0,
    temperature: float = 1.0,
) -> tuple[Float[Array, "B t"], Float[Array, "B t"]]:
    """log p(token | the tokens before it) and the entropy of that softmax, in nats.

    Args:
        start: the first position to score, at least 1 after clipping; hidden states before
            `start - 1` never meet the vocabulary.
        temperature: divides the logits, as it did in the sampler.

    Returns:
        For positions max(start, 1) .. T-1, t = T - max(start, 1).
    """
    start = max(start, 1)
    hidden = forward(params, cfg, batch.tokens, batch.positions, batch.segment_ids, compute)
    labels = jnp.asarray(batch.tokens)[:, start:]
    return linear_logprob(
        hidden[:, start - 1 : -1], vocab_weight(params), labels, temperature=temperature
    )


def masked_mean(x: jax.Array, mask: jax.Array, num_tokens: jax.Array | None = None) -> jax.Array:
    """Sum of `x` where `mask`, over `num_tokens`: the mask's own, unless it is part of a larger
    batch. 0 where there are none."""
    count = jnp.sum(mask) if num_tokens is None else num_tokens
    return jnp.sum(jnp.where(mask, x, 0.0)) / jnp.maximum(count, 1)
