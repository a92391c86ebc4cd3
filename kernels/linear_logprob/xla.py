"""`linear_logprob` a chunk of tokens at a time, so that only one chunk's logits exist.

Forward, for each chunk: logits z = h W^T / temperature, m = max z, and the sums of e^(z-m) and of
e^(z-m) (z-m) give log-sum-exp and entropy. Nothing but these is kept. Backward: the chunk's logits
again, p = e^(z - log Z), and with the cotangents g of the log-probability and e of the entropy H,

    dz = (g (onehot - p) - e p (log p + H)) / temperature,    dh = dz W,    dW = sum of dz^T h

8 T D V floating-point operations for both, against 6 with all logits stored. (That the entropy
needs its own sum, and not log Z minus a mean of z, is a matter of rounding: both are large.)

Over a mesh each device takes its own tokens (`data`) and its own part of the vocabulary (`model`):
the weight is gathered along `data` once a pass, its gradient scattered once, and what crosses
`model` are three numbers a token, and dh.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kernels.sharding import (
    Axes,
    axes_of,
    gather_weight,
    local_ids,
    over_mesh,
    scatter_gradient,
    sum_vocabulary,
)


def linear_logprob(
    hidden: Float[Array, "B T D"],
    weight: Float[Array, "V D"],
    labels: Int[Array, "B T"],
    temperature: float,
    chunk: int,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """As the reference. `chunk` counts positions of a row: B * chunk * V logits exist at once."""
    num_chunks = -(-hidden.shape[1] // chunk)
    return _linear_logprob(temperature, num_chunks, hidden, weight, labels)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _linear_logprob(
    temperature: float, num_chunks: int, hidden: jax.Array, weight: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return _forward(temperature, num_chunks, hidden, weight, labels)[0]


def _forward(
    temperature: float, num_chunks: int, hidden: jax.Array, weight: jax.Array, labels: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:
    axes = axes_of(hidden.shape[0], weight.shape[0])
    local = partial(_local_forward, axes, temperature, num_chunks)
    rows, matrix = axes.rows, axes.matrix
    logprobs, entropy, log_z = over_mesh(local, (rows, matrix, rows), (rows, rows, rows))(
        hidden, weight, labels
    )
    return (logprobs, entropy), (hidden, weight, labels, log_z, entropy)


def _backward(
    temperature: float,
    num_chunks: int,
    saved: tuple[jax.Array, ...],
    cotangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array, None]:
    hidden, weight = saved[:2]
    axes = axes_of(hidden.shape[0], weight.shape[0])
    local = partial(_local_backward, axes, temperature, num_chunks)
    rows, matrix = axes.rows, axes.matrix
    dh, dw = over_mesh(local, (rows, matrix, *(rows,) * 5), (rows, matrix))(*saved, *cotangents)
    return dh, dw, None


_linear_logprob.defvjp(_forward, _backward)


def _chunks(x: jax.Array, num_chunks: int) -> jax.Array:
    """[b, T, ...] -> [chunks, tokens, ...], filled up with zeros."""
    flat = x.reshape(-1, *x.shape[2:])
    pad = -flat.shape[0] % num_chunks
    flat = jnp.pad(flat, ((0, pad), *((0, 0),) * (flat.ndim - 1)))
    return flat.reshape(num_chunks, -1, *flat.shape[1:])


def _logits(hidden: jax.Array, weight: jax.Array, temperature: float) -> jax.Array:
    z = jnp.einsum("nD,vD->nv", hidden, weight, preferred_element_type=jnp.float32)
    return z / temperature


def _is_label(z: jax.Array, labels: jax.Array) -> jax.Array:
    return jax.lax.broadcasted_iota(labels.dtype, z.shape, 1) == labels[:, None]


def _local_forward(
    axes: Axes,
    temperature: float,
    num_chunks: int,
    hidden: jax.Array,
    weight: jax.Array,
    labels: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    weight = gather_weight(axes, weight.astype(hidden.dtype))
    local = local_ids(axes, labels, weight.shape[0])

    def one(xs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        z = _logits(xs[0], weight, temperature)
        m = jnp.max(z, axis=1)
        if axes.vocabulary is not None:
            m = jax.lax.pmax(m, axes.vocabulary)
        shifted = z - m[:, None]
        e = jnp.exp(shifted)
        label = jnp.sum(jnp.where(_is_label(z, xs[1]), shifted, 0.0), axis=1)
        sums = jnp.stack([jnp.sum(e, axis=1), jnp.sum(e * shifted, axis=1), label])
        total, weighted, label = sum_vocabulary(axes, sums)
        log_total = jnp.log(total)
        return label - log_total, log_total - weighted / total, m + log_total

    out = jax.lax.map(one, (_chunks(hidden, num_chunks), _chunks(local, num_chunks)))
    num_tokens = labels.shape[0] * labels.shape[1]
    logprobs, entropy, log_z = (x.reshape(-1)[:num_tokens].reshape(labels.shape) for x in out)
    return logprobs, entropy, log_z


def _local_backward(
    axes: Axes,
    temperature: float,
    num_chunks: int,
    hidden: jax.Array,
    weight: jax.Array,
    labels: jax.Array,
    log_z: jax.Array,
    entropy: jax.Array,
    d_logprobs: jax.Array,
    d_entropy: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    whole = gather_weight(axes, weight.astype(hidden.dtype))
    local = local_ids(axes, labels, whole.shape[0])

    def one(dw: jax.Array, xs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        h, label, z_sum, H, g, e = xs
        log_p = _logits(h, whole, temperature) - z_sum[:, None]
        p = jnp.exp(log_p)
        dz = g[:, None] * (_is_label(log_p, label) - p) - e[:, None] * p * (log_p + H[:, None])
        dz = (dz / temperature).astype(h.dtype)
        dh = jnp.einsum("nv,vD->nD", dz, whole, preferred_element_type=jnp.float32)
        dw += jnp.einsum("nv,nD->vD", dz, h, preferred_element_type=jnp.float32)
        return dw, sum_vocabulary(axes, dh).astype(h.dtype)

    rows = (hidden, local, log_z, entropy, d_logprobs, d_entropy)
    start = jnp.zeros(whole.shape, jnp.float32)
    dw, dh = jax.lax.scan(one, start, tuple(_chunks(x, num_chunks) for x in rows))
    dh = dh.reshape(-1, hidden.shape[2])[: labels.size].reshape(hidden.shape)
    return dh, scatter_gradient(axes, dw).astype(weight.dtype)
