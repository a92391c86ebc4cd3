"""The key-value cache of decoding: one pair of arrays a layer, [B, K, S, H]."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from persrm_jax.sharding import constrain


class KVCache(NamedTuple):
    """Slots 0..S-1 are shared by all rows; `mask` says which of them a row may attend to.

    Layers stay apart (a tuple, not a stacked dim), so that a decode step updates each in place.
    """

    keys: tuple[Float[Array, "B K S H"], ...]
    values: tuple[Float[Array, "B K S H"], ...]
    mask: Bool[Array, "B S"]
    next_slot: Int[Array, ""]


def init_cache(
    keys: Float[Array, "L B P K H"],
    values: Float[Array, "L B P K H"],
    mask: Bool[Array, "B P"],
    num_new: int,
) -> KVCache:
    """A cache that holds a prefilled prompt of P slots and has room for `num_new` more."""

    def store(x: jax.Array) -> tuple[jax.Array, ...]:
        x = jnp.pad(x.swapaxes(2, 3), ((0, 0), (0, 0), (0, 0), (0, num_new), (0, 0)))
        return tuple(constrain(layer, "batch", "kv_heads", "length", "head_width") for layer in x)

    return KVCache(
        store(keys),
        store(values),
        jnp.pad(mask, ((0, 0), (0, num_new))),
        jnp.asarray(mask.shape[1], jnp.int32),
    )


def repeat_cache(cache: KVCache, num_times: int) -> KVCache:
    """Each row `num_times` over, side by side: one prefill serves a whole group."""

    def repeat(x: jax.Array) -> jax.Array:
        return jnp.repeat(x, num_times, axis=0)

    return KVCache(
        tuple(map(repeat, cache.keys)),
        tuple(map(repeat, cache.values)),
        repeat(cache.mask),
        cache.next_slot,
    )


def update_layer(
    layer: Float[Array, "B K S H"], new: Float[Array, "B 1 K H"], slot: Int[Array, ""]
) -> Float[Array, "B K S H"]:
    """Writes one token's keys or values into `slot`."""
    return jax.lax.dynamic_update_slice_in_dim(
        layer, new.swapaxes(1, 2).astype(layer.dtype), slot, axis=2
    )


def cached_attention(
    q: Float[Array, "B 1 N H"],
    keys: Float[Array, "B K S H"],
    values: Float[Array, "B K S H"],
    mask: Bool[Array, "B S"],
) -> Float[Array, "B 1 N H"]:
    """One query token against the cache; softmax in float32. The library's attention wants
    [B, S, K, H] and would copy the cache at every token."""
    B, _, N, H = q.shape
    K = keys.shape[1]
    grouped = q.reshape(B, K, N // K, H)
    scores = jnp.einsum("BKGH,BKSH->BKGS", grouped, keys, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None, :], scores * H**-0.5, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    return jnp.einsum("BKGS,BKSH->BKGH", weights, values).reshape(B, 1, N, H)
