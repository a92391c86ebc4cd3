"""Token log-probabilities of whole sequences, and the states that losses take them from."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kernels.dispatch import Impl
from kernels.linear_logprob import linear_logprob
from persrm_jax.models.config import ComputeConfig, ModelConfig
from persrm_jax.models.decoder import forward, vocab_weight
from persrm_jax.models.params import Params
from persrm_jax.types import Batch


def token_states(
    params: Params, cfg: ModelConfig, batch: Batch, compute: ComputeConfig, *, start: int = 0
) -> tuple[Float[Array, "B t D"], Int[Array, "B t"]]:
    """The hidden state before each token, and the token.

    Args:
        start: the first position to score, at least 1 after clipping; hidden states before
            `start - 1` never meet the vocabulary.

    Returns:
        For positions max(start, 1) .. T-1, t = T - max(start, 1).
    """
    start = max(start, 1)
    hidden = forward(params, cfg, batch.tokens, batch.positions, batch.segment_ids, compute)
    return hidden[:, start - 1 : -1], jnp.asarray(batch.tokens)[:, start:]


def token_logprobs(
    params: Params,
    cfg: ModelConfig,
    batch: Batch,
    compute: ComputeConfig,
    *,
    start: int = 0,
    temperature: float = 1.0,
    impl: Impl = "auto",
) -> tuple[Float[Array, "B t"], Float[Array, "B t"]]:
    """log p(token | the tokens before it) and the entropy of that softmax, in nats.

    Args:
        start: as `token_states` has it, and so are the positions.
        temperature: divides the logits, as it did in the sampler.
    """
    hidden, labels = token_states(params, cfg, batch, compute, start=start)
    logprobs, entropy = linear_logprob(
        hidden.reshape(-1, hidden.shape[2]),
        vocab_weight(params),
        labels.reshape(-1),
        temperature=temperature,
        impl=impl,
    )
    return logprobs.reshape(labels.shape), entropy.reshape(labels.shape)


def masked_mean(x: jax.Array, mask: jax.Array, num_tokens: jax.Array | None = None) -> jax.Array:
    """Sum of `x` where `mask`, over `num_tokens`: the mask's own, unless it is part of a larger
    batch. 0 where there are none."""
    count = jnp.sum(mask) if num_tokens is None else num_tokens
    return jnp.sum(jnp.where(mask, x, 0.0)) / jnp.maximum(count, 1)
