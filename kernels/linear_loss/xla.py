"""A loss from hidden states, a chunk of tokens at a time, its gradients formed in the forward pass.

For each chunk of tokens: logits z = h W^T / temperature, log-probabilities and entropies, the terms
of the loss and their derivatives g and e with respect to both, and then at once, since the logits
are still there,

    dz = (g (onehot - p) - e p (log p + H)) / temperature,    dh = dz W,    dW += dz^T h.

The backward pass multiplies dh and dW by the loss's own cotangent (Liger-Kernel, arXiv 2410.10989;
Cut Cross-Entropy, arXiv 2411.09009). 6 T D V floating-point operations, as many as with all logits
stored, against 8 where the backward pass forms them again. At T = 32,768, D = 3,584, V = 151,936
107 TFLOP, 135 ms of an H100 at 790 TFLOP/s, and 40 ms more for dW, which each of 32 chunks reads
and writes. Memory: dh, dW in float32 (2.0 GiB) and a chunk of logits.

This holds while a token's term depends on no other token. A ratio per sequence needs every
log-probability before any derivative: `linear_logprob`, which is differentiable, and 8 T D V.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from kernels import softmax
from kernels.sharding import (
    Axes,
    axes_of,
    gather_weight,
    local_ids,
    over_mesh,
    scatter_gradient,
    sum_tokens,
    sum_vocabulary,
)

Static = tuple[Any, float, bool, str]
"""token_fn, temperature, uses_entropy, accumulator."""


def linear_loss(
    token_fn: Any,
    temperature: float,
    uses_entropy: bool,
    accumulator: str,
    hidden: jax.Array,
    weight: jax.Array,
    labels: jax.Array,
    inputs: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `api.linear_loss`."""
    static = (token_fn, temperature, uses_entropy, accumulator)
    return _linear_loss(static, hidden, weight, labels, inputs)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _linear_loss(
    static: Static, hidden: jax.Array, weight: jax.Array, labels: jax.Array, inputs: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    axes = axes_of(hidden.shape[0], weight.shape[0])
    rows = axes.rows
    local = partial(_local_value, axes, static)
    return over_mesh(local, (rows, axes.matrix, rows, rows), (axes.whole, rows, rows))(
        hidden, weight, labels, inputs
    )


def _forward(
    static: Static, hidden: jax.Array, weight: jax.Array, labels: jax.Array, inputs: Any
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    axes = axes_of(hidden.shape[0], weight.shape[0])
    rows, matrix = axes.rows, axes.matrix
    local = partial(_local_value_and_gradients, axes, static)
    *out, dh, dw = over_mesh(
        local, (rows, matrix, rows, rows), (axes.whole, rows, rows, rows, matrix)
    )(hidden, weight, labels, inputs)
    return tuple(out), (dh, dw)


def _backward(
    static: Static, saved: tuple[jax.Array, jax.Array], cotangents: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array, None, None]:
    dh, dw = (x * cotangents[0].astype(x.dtype) for x in saved)
    return dh, dw, None, None


_linear_loss.defvjp(_forward, _backward)


def _chunk_outcome(
    axes: Axes, temperature: float, hidden: jax.Array, weight: jax.Array, labels: jax.Array
) -> tuple[jax.Array, softmax.Outcome]:
    z = softmax.logits(hidden, weight, temperature)
    part = softmax.statistics(z, labels)
    return z, softmax.outcome(softmax.over_vocabulary(axes, part))


def _split(n: int, labels: jax.Array, *rows: Any) -> Any:
    """Chunks of what has a row a token, and which rows are tokens and no filling."""
    real = jnp.ones(labels.shape, bool)
    return jax.tree.map(partial(softmax.chunks, num_chunks=n), (real, labels, *rows))


def _local_value(
    axes: Axes,
    static: Static,
    hidden: jax.Array,
    weight: jax.Array,
    labels: jax.Array,
    inputs: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    token_fn, temperature, _, _ = static
    weight = gather_weight(axes, weight.astype(hidden.dtype))
    local = local_ids(axes, labels, len(weight))

    def one(loss: jax.Array, xs: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        real, label, h, given = xs
        _, found = _chunk_outcome(axes, temperature, h, weight, label)
        terms = token_fn(found.logprobs, found.entropy, given)
        return loss + jnp.sum(jnp.where(real, terms, 0.0)), (found.logprobs, found.entropy)

    n = softmax.num_chunks(labels, weight, gradient=False)
    loss, out = jax.lax.scan(one, jnp.zeros(()), _split(n, local, hidden, inputs))
    logprobs, entropy = (softmax.whole(x, len(labels)) for x in out)
    return sum_tokens(axes, loss), logprobs, entropy


def _local_value_and_gradients(
    axes: Axes,
    static: Static,
    hidden: jax.Array,
    weight: jax.Array,
    labels: jax.Array,
    inputs: Any,
) -> tuple[jax.Array, ...]:
    token_fn, temperature, uses_entropy, accumulator = static
    whole = gather_weight(axes, weight.astype(hidden.dtype))
    local = local_ids(axes, labels, len(whole))

    def one(carry: tuple[jax.Array, jax.Array], xs: Any) -> tuple[Any, Any]:
        loss, dw = carry
        real, label, h, given = xs
        z, found = _chunk_outcome(axes, temperature, h, whole, label)

        def total(logprobs: jax.Array, entropy: jax.Array) -> jax.Array:
            return jnp.sum(jnp.where(real, token_fn(logprobs, entropy, given), 0.0))

        value, (g, e) = jax.value_and_grad(total, argnums=(0, 1))(found.logprobs, found.entropy)
        dz = softmax.logit_gradient(z, label, found, g, e if uses_entropy else None, temperature)
        dh, more = softmax.pull_back(dz, h, whole, accumulator)
        dh = sum_vocabulary(axes, dh).astype(h.dtype)
        return (loss + value, dw + more), (found.logprobs, found.entropy, dh)

    n = softmax.num_chunks(labels, whole, gradient=True)
    start = (jnp.zeros(()), jnp.zeros(whole.shape, accumulator))
    (loss, dw), out = jax.lax.scan(one, start, _split(n, local, hidden, inputs))
    rows = (softmax.whole(x, len(labels)) for x in out)
    return sum_tokens(axes, loss), *rows, scatter_gradient(axes, dw).astype(weight.dtype)
