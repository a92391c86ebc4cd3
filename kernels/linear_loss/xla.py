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

Tokens that do not count, such as prompts and padding, are put behind those that do, and their
chunks are left out: a judge's prompt is ten times as long as its answer, and has no loss. A weight
that is not differentiated (LoRA's) has no dW, so that chunks may be small and leave more out.

This holds while a token's term depends on no other token. A ratio per sequence needs every
log-probability before any derivative: `linear_logprob`, which is differentiable, and 8 T D V.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

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

_CHUNKS = 16
"""Where no dW is read and written by each."""


class _Static(NamedTuple):
    """What is no array."""

    token_fn: Any
    temperature: float
    uses_entropy: bool
    accumulator: str


class _Tokens(NamedTuple):
    """What has a row a token."""

    hidden: jax.Array
    labels: jax.Array
    inputs: Any
    counts: jax.Array | None
    """None: all do."""


def linear_loss(
    token_fn: Any,
    temperature: float,
    uses_entropy: bool,
    accumulator: str,
    hidden: jax.Array,
    weight: jax.Array,
    labels: jax.Array,
    inputs: Any,
    counts: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `api.linear_loss`."""
    static = _Static(token_fn, temperature, uses_entropy, accumulator)
    return _linear_loss(static, hidden, weight, labels, inputs, counts)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _linear_loss(
    static: _Static,
    hidden: jax.Array,
    weight: jax.Array,
    labels: jax.Array,
    inputs: Any,
    counts: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    axes = axes_of(hidden.shape[0], weight.shape[0])
    rows = axes.rows
    local = partial(_local_value, axes, static)
    return over_mesh(local, (axes.matrix, rows), (axes.whole, rows, rows))(
        weight, _Tokens(hidden, labels, inputs, counts)
    )


def _forward(
    static: _Static, hidden: Any, weight: Any, *rest: Any
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array | None]]:
    """Every array comes as (value, whether it is differentiated)."""
    trains = weight.perturbed
    values = jax.tree.map(lambda x: x.value, rest, is_leaf=lambda x: isinstance(x, CustomVJPPrimal))
    matrix, tokens = weight.value, _Tokens(hidden.value, *values)
    axes = axes_of(tokens.hidden.shape[0], matrix.shape[0])
    rows = axes.rows
    local = partial(_local_value_and_gradients, axes, static, trains)
    out_specs = (axes.whole, rows, rows, rows, axes.matrix if trains else None)
    *out, dh, dw = over_mesh(local, (axes.matrix, rows), out_specs)(matrix, tokens)
    return (out[0], out[1], out[2]), (dh, dw)


def _backward(
    static: _Static, saved: tuple[jax.Array, jax.Array | None], cotangents: tuple[Any, ...]
) -> tuple[jax.Array | None, jax.Array | None, None, None, None]:
    if isinstance(cotangents[0], SymbolicZero):
        return None, None, None, None, None
    dh, dw = (None if x is None else x * cotangents[0].astype(x.dtype) for x in saved)
    return dh, dw, None, None, None


_linear_loss.defvjp(_forward, _backward, symbolic_zeros=True)


def _chunk_outcome(
    axes: Axes, temperature: float, hidden: jax.Array, weight: jax.Array, labels: jax.Array
) -> tuple[jax.Array, softmax.Outcome]:
    z = softmax.logits(hidden, weight, temperature)
    part = softmax.statistics(z, labels)
    return z, softmax.outcome(softmax.over_vocabulary(axes, part))


def _each_chunk(
    one: Callable[[Any, tuple[jax.Array, _Tokens]], tuple[Any, tuple[jax.Array, ...]]],
    start: Any,
    tokens: _Tokens,
    weight: jax.Array,
    *,
    gradient: bool,
    least: int = 1,
) -> tuple[Any, list[jax.Array]]:
    """`one` over chunks of the tokens that count: what it carries, and what it gives each token (0
    to those that do not count).

    Args:
        one: (carried, (which rows are tokens that count, tokens)) -> (carried, rows).
        least: chunks to make at least, where there are several and not all tokens count.
    """
    size = len(tokens.labels)
    n = softmax.num_chunks(tokens.labels, weight, gradient=gradient)
    real = jnp.ones(size, bool) if tokens.counts is None else tokens.counts
    used: int | jax.Array = n
    order = None
    if n > 1 and tokens.counts is not None:
        n = max(n, least)
        order = jnp.argsort(~real, stable=True)
        real, tokens = jax.tree.map(lambda x: x[order], (real, tokens))
        used = -(-jnp.sum(real) // -(-size // n))
    xs = jax.tree.map(partial(softmax.chunks, num_chunks=n), (real, tokens))

    def chunk(i: jax.Array | int) -> tuple[jax.Array, _Tokens]:
        found: tuple[jax.Array, _Tokens] = jax.tree.map(lambda x: x[i], xs)
        return found

    def step(i: jax.Array, state: tuple[Any, Any]) -> tuple[Any, Any]:
        carried, rows = state
        carried, more = one(carried, chunk(i))
        return carried, jax.tree.map(lambda x, new: x.at[i].set(new), rows, more)

    shapes = jax.eval_shape(lambda carried: one(carried, chunk(0))[1], start)
    rows = jax.tree.map(lambda x: jnp.zeros((n, *x.shape), x.dtype), shapes)
    carried, rows = jax.lax.fori_loop(0, used, step, (start, rows))
    flat = [softmax.whole(x, size) for x in rows]
    if tokens.counts is not None:
        flat = [jnp.where(_like(real, x), x, 0) for x in flat]
    if order is not None:
        flat = [jnp.zeros_like(x).at[order].set(x, unique_indices=True) for x in flat]
    return carried, flat


def _like(mask: jax.Array, x: jax.Array) -> jax.Array:
    return mask.reshape(-1, *(1,) * (x.ndim - 1))


def _local_value(
    axes: Axes, static: _Static, weight: jax.Array, tokens: _Tokens
) -> tuple[jax.Array, jax.Array, jax.Array]:
    weight = gather_weight(axes, weight.astype(tokens.hidden.dtype))
    tokens = tokens._replace(labels=local_ids(axes, tokens.labels, len(weight)))

    def one(
        loss: jax.Array, xs: tuple[jax.Array, _Tokens]
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        real, (h, label, given, _) = xs
        _, found = _chunk_outcome(axes, static.temperature, h, weight, label)
        terms = static.token_fn(found.logprobs, found.entropy, given)
        return loss + jnp.sum(jnp.where(real, terms, 0.0)), (found.logprobs, found.entropy)

    loss, (logprobs, entropy) = _each_chunk(one, jnp.zeros(()), tokens, weight, gradient=False)
    return sum_tokens(axes, loss), logprobs, entropy


def _local_value_and_gradients(
    axes: Axes, static: _Static, trains: bool, weight: jax.Array, tokens: _Tokens
) -> tuple[Any, ...]:
    """Args:
    trains: whether the weight does.
    """
    whole = gather_weight(axes, weight.astype(tokens.hidden.dtype))
    tokens = tokens._replace(labels=local_ids(axes, tokens.labels, len(whole)))

    def one(
        carry: tuple[jax.Array, jax.Array | None], xs: tuple[jax.Array, _Tokens]
    ) -> tuple[Any, tuple[jax.Array, ...]]:
        loss, dw = carry
        real, (h, label, given, _) = xs
        z, found = _chunk_outcome(axes, static.temperature, h, whole, label)

        def total(logprobs: jax.Array, entropy: jax.Array) -> jax.Array:
            return jnp.sum(jnp.where(real, static.token_fn(logprobs, entropy, given), 0.0))

        value, (g, e) = jax.value_and_grad(total, argnums=(0, 1))(found.logprobs, found.entropy)
        on_entropy = e if static.uses_entropy else None
        dz = softmax.logit_gradient(z, label, found, g, on_entropy, static.temperature)
        dh, more = softmax.pull_back(dz, h, whole, static.accumulator)
        dh = sum_vocabulary(axes, dh).astype(h.dtype)
        return (loss + value, None if dw is None else dw + more), (
            found.logprobs,
            found.entropy,
            dh,
        )

    start = (jnp.zeros(()), jnp.zeros(whole.shape, static.accumulator) if trains else None)
    least = 1 if trains else _CHUNKS
    (loss, dw), rows = _each_chunk(one, start, tokens, whole, gradient=True, least=least)
    dw = None if dw is None else scatter_gradient(axes, dw).astype(weight.dtype)
    return sum_tokens(axes, loss), *rows, dw
