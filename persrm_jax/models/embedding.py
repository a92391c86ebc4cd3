"""Token ids -> vectors, from a matrix that a mesh splits."""

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


def look_up(
    weight: Float[Array, "V D"], tokens: Int[Array, "B T"], dtype: str
) -> Float[Array, "B T D"]:
    """weight[tokens] in `dtype`. Its gradient is summed in float32, and scattered to where the
    weight lies."""
    return _look_up(str(jnp.dtype(dtype)), weight, tokens)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _look_up(dtype: str, weight: jax.Array, tokens: jax.Array) -> jax.Array:
    axes = axes_of(tokens.shape[0], weight.shape[0])
    local = partial(_local_look_up, axes, dtype)
    return over_mesh(local, (axes.matrix, axes.rows), axes.rows)(weight, tokens)


def _forward(
    dtype: str, weight: jax.Array, tokens: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _look_up(dtype, weight, tokens), (weight, tokens)


def _backward(
    dtype: str, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, None]:
    weight, tokens = saved
    axes = axes_of(tokens.shape[0], weight.shape[0])
    local = partial(_local_gradient, axes)
    add = over_mesh(local, (axes.matrix, axes.rows, axes.rows), axes.matrix)
    return add(weight, tokens, gradient), None


_look_up.defvjp(_forward, _backward)


def _local_look_up(axes: Axes, dtype: str, weight: jax.Array, tokens: jax.Array) -> jax.Array:
    weight = gather_weight(axes, weight.astype(dtype))
    rows = local_ids(axes, tokens, weight.shape[0])
    found = weight[jnp.maximum(rows, 0)]
    if axes.vocabulary is None:
        return found
    return sum_vocabulary(axes, jnp.where(rows[..., None] >= 0, found, 0))


def _local_gradient(
    axes: Axes, weight: jax.Array, tokens: jax.Array, gradient: jax.Array
) -> jax.Array:
    num_rows = weight.shape[0] * (1 if axes.shards is None else jax.lax.axis_size(axes.shards))
    rows = local_ids(axes, tokens, num_rows)
    # A row past the end is dropped; -1 would count from there.
    rows = jnp.where(rows < 0, num_rows, rows)
    whole = jnp.zeros((num_rows, gradient.shape[-1]), jnp.float32)
    whole = whole.at[rows].add(gradient.astype(jnp.float32), mode="drop")
    return scatter_gradient(axes, whole).astype(weight.dtype)
