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


def cached_attention(
    q: Float[Array, "B 1 N H"],
    layer: LayerCache,
    prompt_mask: Bool[Array, "P S"],
    own_mask: Bool[Array, "B T"],
) -> Float[Array, "B 1 N H"]:
    """One query token a row against its prompt and its own tokens, in one softmax in float32. The
    queries of a group are multiplied with their prompt together, which reads it
    once. (The library's attention would want a copy of the prompt for each.)"""
    B, _, N, H = q.shape
    P, K, S, _ = layer.prompt_keys.shape
    G, n = B // P, N // K
    own = q.reshape(B, K, n, H)
    together = own.reshape(P, G, K, n, H).swapaxes(1, 2).reshape(P, K, G * n, H)

    def apart(x: jax.Array) -> jax.Array:
        return x.reshape(P, K, G, n, x.shape[3]).swapaxes(1, 2).reshape(B, K, n, x.shape[3])

    scores = jnp.einsum(
        "PKgH,PKSH->PKgS", together, layer.prompt_keys, preferred_element_type=jnp.float32
    )
    scores = jnp.where(prompt_mask[:, None, None, :], scores, -1e30)
    mine = jnp.einsum("BKnH,BKTH->BKnT", own, layer.keys, preferred_element_type=jnp.float32)
    mine = jnp.where(own_mask[:, None, None, :], mine, -1e30)
    weights = jnp.concatenate([apart(scores), mine], axis=3) * H**-0.5
    weights = jax.nn.softmax(weights, axis=-1).astype(layer.values.dtype)
    shared, mine = weights[..., :S], weights[..., S:]
    shared = shared.reshape(P, G, K, n, S).swapaxes(1, 2).reshape(P, K, G * n, S)
    out = apart(jnp.einsum("PKgS,PKSH->PKgH", shared, layer.prompt_values))
    out += jnp.einsum("BKnT,BKTH->BKnH", mine, layer.values)
    return out.reshape(B, 1, N, H)
