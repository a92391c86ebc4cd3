"""The softmax of logits z = h W^T / temperature, of which only a few numbers a token are kept.

For a part of the vocabulary: m = max z, the sums of e^(z-m) and of e^(z-m) (z-m), and the label's
z where it lies there. Parts combine (the online softmax of Milakov and Gimelshein, arXiv
1805.02867), and give log-probability, entropy and log-sum-exp. The entropy has a sum of its own,
and is not log Z minus a mean of z: both of those are large, and their difference rounds.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.dispatch import tuned
from kernels.sharding import Axes

FLOOR = -1e30
"""Stands for minus infinity: 0 * -inf would be NaN in the entropy."""


ROW_TILE = 128
"""Matrix units are fed whole tiles of so many rows."""


class Statistics(NamedTuple):
    """Of each token's logits over a part of the vocabulary, float32."""

    max: jax.Array
    total: jax.Array
    """Sum of e^(z - max)."""
    weighted: jax.Array
    """Sum of e^(z - max) (z - max)."""
    label: jax.Array
    """The label's z; 0 where the label lies in another part."""


class Outcome(NamedTuple):
    """Of each token, in nats."""

    logprobs: jax.Array
    entropy: jax.Array
    log_z: jax.Array


def logits(hidden: jax.Array, weight: jax.Array, temperature: float) -> jax.Array:
    """[n, D] and [v, D] of one dtype -> [n, v] in float32."""
    z = jnp.einsum("nD,vD->nv", hidden, weight, preferred_element_type=jnp.float32)
    return z / temperature


def is_label(z: jax.Array, labels: jax.Array) -> jax.Array:
    """A mask and a sum, not a gather, which a sharded vocabulary would have to collect for."""
    return jax.lax.broadcasted_iota(labels.dtype, z.shape, 1) == labels[:, None]


def statistics(z: jax.Array, labels: jax.Array) -> Statistics:
    """Of logits [n, v]; a label outside [0, v) lies in another part."""
    m = jnp.max(z, axis=1)
    shifted = z - m[:, None]
    e = jnp.exp(shifted)
    label = jnp.sum(jnp.where(is_label(z, labels), z, 0.0), axis=1)
    return Statistics(m, jnp.sum(e, axis=1), jnp.sum(e * shifted, axis=1), label)


def _moved(part: Statistics, m: jax.Array) -> Statistics:
    """The sums as of a maximum `m` that is no less than the part's own."""
    scale = jnp.exp(part.max - m)
    weighted = scale * (part.weighted + (part.max - m) * part.total)
    return Statistics(m, scale * part.total, weighted, part.label)


def fold(
    seen: Statistics,
    z: jax.Array,
    matches: jax.Array,
    *,
    keepdims: bool,
    widen: Callable[[jax.Array], jax.Array],
) -> Statistics:
    """What a kernel does with one more tile of logits.

    Args:
        seen: of the tiles before; at first `FLOOR` and zeros.
        z: the tile's logits [n, v]; `FLOOR` where there is none.
        matches: where the label lies.
        keepdims: whether numbers a token are [n, 1] or [n].
        widen: makes them [n, v].
    """

    def add(before: jax.Array, terms: jax.Array) -> jax.Array:
        return before + jnp.sum(terms, axis=1, keepdims=keepdims)

    # In this order no more than two tiles are alive, which registers may have to hold.
    label = add(seen.label, jnp.where(matches, z, 0.0))
    m = jnp.maximum(seen.max, jnp.max(z, axis=1, keepdims=keepdims))
    moved = _moved(seen, m)
    shifted = z - widen(m)
    e = jnp.exp(shifted)
    total = add(moved.total, e)
    return Statistics(m, total, add(moved.weighted, e * shifted), label)


def combine(parts: Statistics) -> Statistics:
    """Arrays [parts, n] -> [n]."""
    m = jnp.max(parts.max, axis=0)
    moved = _moved(parts, m)
    return Statistics(m, *(jnp.sum(x, axis=0) for x in moved[1:]))


def over_vocabulary(axes: Axes, part: Statistics) -> Statistics:
    """Combines the parts that the devices of a mesh hold: four numbers a token cross it."""
    if axes.vocabulary is None:
        return part
    m = jax.lax.pmax(part.max, axes.vocabulary)
    sums = jax.lax.psum(jnp.stack(_moved(part, m)[1:]), axes.vocabulary)
    return Statistics(m, *sums)


def outcome(whole: Statistics) -> Outcome:
    """Of the whole vocabulary's statistics."""
    log_total = jnp.log(whole.total)
    return Outcome(
        (whole.label - whole.max) - log_total,
        log_total - whole.weighted / whole.total,
        whole.max + log_total,
    )


def logit_gradient(
    z: jax.Array,
    labels: jax.Array,
    found: Outcome,
    on_logprob: jax.Array,
    on_entropy: jax.Array | None,
    temperature: float,
) -> jax.Array:
    """The gradient of a loss with respect to h W^T, [n, v], from those with respect to each token's
    log-probability (g) and entropy H (e): (g (onehot - p) - e p (log p + H)) / temperature."""
    log_p = z - found.log_z[:, None]
    p = jnp.exp(log_p)
    dz = on_logprob[:, None] * (is_label(z, labels) - p)
    if on_entropy is not None:
        dz -= on_entropy[:, None] * p * (log_p + found.entropy[:, None])
    return dz / temperature


def chunks(x: jax.Array, num_chunks: int) -> jax.Array:
    """[n, ...] -> [chunks, tokens, ...], filled up with zeros."""
    pad = -x.shape[0] % num_chunks
    filled = jnp.pad(x, ((0, pad), *((0, 0),) * (x.ndim - 1)))
    return filled.reshape(num_chunks, -1, *x.shape[1:])


def whole(x: jax.Array, num_tokens: int) -> jax.Array:
    """[chunks, tokens, ...] -> [n, ...]."""
    return x.reshape(-1, *x.shape[2:])[:num_tokens]


def num_chunks(labels: jax.Array, weight: jax.Array, *, gradient: bool) -> int:
    """In how many chunks these tokens meet this part of the vocabulary, as was tuned for a forward
    pass, or for one that forms gradients."""
    settings = tuned()
    logits = settings.gradient_chunk if gradient else settings.forward_chunk
    tokens = max(1, settings.min_tokens, logits // len(weight))
    if tokens > ROW_TILE:
        tokens -= tokens % ROW_TILE
    return -(-len(labels) // tokens)


def pull_back(
    dz: jax.Array, hidden: jax.Array, weight: jax.Array, accumulator: str = "float32"
) -> tuple[jax.Array, jax.Array]:
    """The gradient of h W^T [n, v] -> those of h [n, D] in float32 and of W [v, D] in
    `accumulator`. The products are taken in the dtype of h."""
    dz = dz.astype(hidden.dtype)
    dh = jnp.einsum("nv,vD->nD", dz, weight, preferred_element_type=jnp.float32)
    dw = jnp.einsum("nv,nD->vD", dz, hidden, preferred_element_type=jnp.dtype(accumulator))
    return dh, dw
