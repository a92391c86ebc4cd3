"""The key-value cache of decoding: a prompt's keys and values once for all its completions, and
each completion's own. One pair of arrays a layer, [rows, K, slots, H]."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from persrm_jax.sharding import constrain


class LayerCache(NamedTuple):
    """B = P * G rows, grouped by prompt."""

    prompt_keys: Float[Array, "P K S H"]
    prompt_values: Float[Array, "P K S H"]
    keys: Float[Array, "B K T H"]
    values: Float[Array, "B K T H"]


class KVCache(NamedTuple):
    """Layers stay apart (a tuple, not a stacked dim), so that a decode step updates each in
    place. All rows fill the same slot at the same step, around a ring of T; how many of the last
    slots are a row's own is its `lengths`, so that a row may begin anew at any step."""

    layers: tuple[LayerCache, ...]
    prompt_mask: Bool[Array, "P S"]
    lengths: Int[Array, " B"]
    """Tokens of each row's completion that are in its cache. -1: the next token read is none."""
    next_slot: Int[Array, ""]
    """0 to T - 1."""


def init_cache(
    keys: Float[Array, "L P S K H"],
    values: Float[Array, "L P S K H"],
    mask: Bool[Array, "P S"],
    num_samples: int,
    num_new: int,
) -> KVCache:
    """A cache that holds prefilled prompts, and has room for `num_new` tokens of each of their
    `num_samples` completions."""
    _, P, _, K, H = keys.shape

    def place(x: jax.Array) -> jax.Array:
        return constrain(x, "batch", "kv_heads", "length", "head_width")

    def layer(k: jax.Array, v: jax.Array) -> LayerCache:
        own = jnp.zeros((P * num_samples, K, num_new, H), k.dtype)
        return LayerCache(place(k.swapaxes(1, 2)), place(v.swapaxes(1, 2)), place(own), place(own))

    layers = tuple(layer(k, v) for k, v in zip(keys, values, strict=True))
    lengths = jnp.zeros(P * num_samples, jnp.int32)
    return KVCache(layers, mask, lengths, jnp.zeros((), jnp.int32))


def update_layer(
    layer: LayerCache,
    key: Float[Array, "B 1 K H"],
    value: Float[Array, "B 1 K H"],
    slot: Int[Array, ""],
) -> LayerCache:
    """Writes one token's keys and values into `slot`."""

    def write(old: jax.Array, new: jax.Array) -> jax.Array:
        new = new.swapaxes(1, 2).astype(old.dtype)
        return jax.lax.dynamic_update_slice_in_dim(old, new, slot, axis=2)

    return layer._replace(keys=write(layer.keys, key), values=write(layer.values, value))


def group_attention(
    q: Float[Array, "B t N H"],
    layer: LayerCache,
    prompt_mask: Bool[Array, "P S"],
    own_mask: Bool[Array, "B t T"],
) -> Float[Array, "B t N H"]:
    """Queries of completions against their prompt and their own tokens, in one softmax in float32.

    The queries of a group are multiplied with their prompt together, which reads it once. (The
    library's attention would want a copy of the prompt for each.) The softmax's denominator divides
    what it weighs, not the weights, which are many more.
    """
    B, t, N, H = q.shape
    P, K, S, _ = layer.prompt_keys.shape
    G, n, T = B // P, N // K, layer.keys.shape[2]
    f32 = {"preferred_element_type": jnp.float32}

    def together(x: jax.Array) -> jax.Array:
        return x.reshape(P, G, K, n * t, -1).swapaxes(1, 2).reshape(P, K, G * n * t, -1)

    def apart(x: jax.Array) -> jax.Array:
        return x.reshape(P, K, G, n * t, -1).swapaxes(1, 2).reshape(B, K, n * t, -1)

    own = (q * H**-0.5).reshape(B, t, K, n, H).transpose(0, 2, 3, 1, 4).reshape(B, K, n * t, H)
    theirs = jnp.einsum("PKgH,PKSH->PKgS", together(own), layer.prompt_keys, **f32)
    theirs += jnp.where(prompt_mask, 0.0, -1e30)[:, None, None]
    mine = jnp.einsum("BKmH,BKTH->BKmT", own, layer.keys, **f32).reshape(B, K, n, t, T)
    mine = together(mine + jnp.where(own_mask, 0.0, -1e30)[:, None, None])
    # It cancels out, so that it needs no gradient.
    top = jax.lax.stop_gradient(jnp.maximum(theirs.max(3), mine.max(3)))[..., None]
    theirs, mine = jnp.exp(theirs - top), jnp.exp(mine - top)
    total = theirs.sum(3) + mine.sum(3)
    dtype = layer.values.dtype
    out = jnp.einsum("PKgS,PKSH->PKgH", theirs.astype(dtype), layer.prompt_values, **f32)
    out += together(jnp.einsum("BKmT,BKTH->BKmH", apart(mine).astype(dtype), layer.values, **f32))
    out = apart(out / total[..., None]).astype(dtype)
    return out.reshape(B, K, n, t, H).transpose(0, 3, 1, 2, 4).reshape(B, t, N, H)
