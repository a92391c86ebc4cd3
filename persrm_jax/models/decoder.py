"""The decoder: Qwen2, Qwen2.5, Qwen3 and Llama are this one function of their config.

`forward` reads whole sequences (training, scoring), `prefill` and `decode_step` generate. All three
run the same `block`; they differ in what they attend to.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from persrm_jax.models.cache import KVCache, cached_attention, init_cache, update_layer
from persrm_jax.models.config import ModelConfig
from persrm_jax.models.params import Params
from persrm_jax.sharding import constrain

Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


def rms_norm(x: Float[Array, "... D"], scale: Float[Array, " D"], eps: float) -> jax.Array:
    """x / rms(x) * scale, in float32 (Zhang and Sennrich 2019)."""
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return x32.astype(x.dtype) * scale


def rope_frequencies(cfg: ModelConfig) -> np.ndarray:
    """Inverse wavelengths of the rotary embedding, [H/2] (RoFormer; Llama 3.1's rescaling)."""
    H = cfg.head_width
    freqs = cfg.rope_theta ** (-np.arange(0, H, 2, dtype=np.float64) / H)
    scaling = cfg.rope_scaling
    if scaling is None:
        return freqs
    if scaling.kind == "linear":
        return freqs / scaling.factor
    # Turns that a frequency makes over the original context: few are stretched, many kept.
    turns = scaling.original_max_positions * freqs / (2 * np.pi)
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = np.clip(keep, 0, 1)
    return freqs * (keep + (1 - keep) / scaling.factor)


def rope_angles(cfg: ModelConfig, positions: Int[Array, "B T"]) -> Float[Array, "B T 1 h"]:
    """Rotation angle of each position and frequency, h = H/2."""
    freqs = jnp.asarray(rope_frequencies(cfg), jnp.float32)
    return (positions.astype(jnp.float32)[..., None] * freqs)[:, :, None, :]


def apply_rope(x: Float[Array, "B T N H"], angles: Float[Array, "B T 1 h"]) -> jax.Array:
    """Rotates the halves of each head, as Hugging Face's weights expect."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def linear(layer: Params, x: jax.Array, equation: str) -> jax.Array:
    """An einsum with the layer's kernel, plus its bias where it has one."""
    y = jnp.einsum(equation, x, layer["kernel"])
    return y + layer["bias"] if "bias" in layer else y


def block(
    cfg: ModelConfig,
    layer: Params,
    h: Float[Array, "B T D"],
    angles: Float[Array, "B T 1 h"],
    attend: Attend,
) -> tuple[Float[Array, "B T D"], Any]:
    """One layer: h + attention(norm(h)), then + mlp(norm(.)). Returns what `attend` hands on."""
    layer = jax.tree.map(lambda w: w.astype(h.dtype), layer)
    x = rms_norm(h, layer["attn_norm"]["scale"], cfg.norm_eps)
    q, k, v = (linear(layer[name], x, "BTD,DNH->BTNH") for name in ("q", "k", "v"))
    if cfg.qk_norm:
        q = rms_norm(q, layer["q_norm"]["scale"], cfg.norm_eps)
        k = rms_norm(k, layer["k_norm"]["scale"], cfg.norm_eps)
    out, carried = attend(apply_rope(q, angles), apply_rope(k, angles), v)
    h = h + linear(layer["o"], out, "BTNH,NHD->BTD")
    x = rms_norm(h, layer["mlp_norm"]["scale"], cfg.norm_eps)
    gate = linear(layer["gate"], x, "BTD,DF->BTF")
    up = linear(layer["up"], x, "BTD,DF->BTF")
    h = h + linear(layer["down"], jax.nn.silu(gate) * up, "BTF,FD->BTD")
    return constrain(h, "batch", "length", "embed"), carried


def embed(params: Params, tokens: Int[Array, "B T"], dtype: str) -> Float[Array, "B T D"]:
    """Token vectors in the compute dtype."""
    h = params["embed"]["weight"].astype(dtype)[tokens]
    return constrain(h, "batch", "length", "embed")


def vocab_weight(params: Params) -> Float[Array, "V D"]:
    """The output projection; the embedding itself where they are tied."""
    return params["head" if "head" in params else "embed"]["weight"]


def segment_mask(segment_ids: Int[Array, "B T"]) -> Bool[Array, "B 1 T T"]:
    """A token sees the earlier tokens of its own segment, and itself."""
    T = segment_ids.shape[1]
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    return (same & jnp.tri(T, dtype=bool))[:, None]


def forward(
    params: Params,
    cfg: ModelConfig,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    *,
    compute_dtype: str = "float32",
    remat: bool = False,
) -> Float[Array, "B T D"]:
    """Hidden states after the final norm. With `remat`, layers are recomputed in the backward."""
    mask = segment_mask(segment_ids)
    angles = rope_angles(cfg, positions)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
        return jax.nn.dot_product_attention(q, k, v, mask=mask), None

    def step(h: jax.Array, layer: Params) -> tuple[jax.Array, None]:
        return block(cfg, layer, h, angles, attend)

    step = jax.checkpoint(step) if remat else step
    h, _ = jax.lax.scan(step, embed(params, tokens, compute_dtype), params["layers"])
    return rms_norm(h, params["final_norm"]["scale"].astype(h.dtype), cfg.norm_eps)


def prefill(
    params: Params,
    cfg: ModelConfig,
    tokens: Int[Array, "B P"],
    mask: Bool[Array, "B P"],
    num_new: int,
    *,
    compute_dtype: str = "float32",
) -> tuple[Float[Array, "B D"], KVCache]:
    """Reads left-padded prompts. Returns the last hidden state and a cache with `num_new` slots
    to spare."""
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    angles = rope_angles(cfg, positions)
    attend_mask = segment_mask(mask.astype(jnp.int32))

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Any]:
        return jax.nn.dot_product_attention(q, k, v, mask=attend_mask), (k, v)

    h, (keys, values) = jax.lax.scan(
        lambda h, layer: block(cfg, layer, h, angles, attend),
        embed(params, tokens, compute_dtype),
        params["layers"],
    )
    last = rms_norm(h[:, -1], params["final_norm"]["scale"].astype(h.dtype), cfg.norm_eps)
    return last, init_cache(keys, values, mask, num_new)


def decode_step(
    params: Params,
    layers: list[Params],
    cfg: ModelConfig,
    tokens: Int[Array, " B"],
    cache: KVCache,
    *,
    compute_dtype: str = "float32",
) -> tuple[Float[Array, "B D"], KVCache]:
    """Reads one token a row at the cache's next slot. `layers` are `params["layers"]` unstacked
    (`unstack_layers`): taking them apart at every token would copy the weights."""
    slot = cache.next_slot
    mask = jax.lax.dynamic_update_slice_in_dim(
        cache.mask, jnp.ones((tokens.shape[0], 1), bool), slot, axis=1
    )
    angles = rope_angles(cfg, jnp.sum(mask, axis=1, keepdims=True) - 1)
    h = embed(params, tokens[:, None], compute_dtype)
    new_keys, new_values = [], []
    for layer, old_keys, old_values in zip(layers, cache.keys, cache.values, strict=True):

        def attend(
            q: jax.Array, k: jax.Array, v: jax.Array, old: Any = (old_keys, old_values)
        ) -> tuple[jax.Array, Any]:
            keys, values = update_layer(old[0], k, slot), update_layer(old[1], v, slot)
            return cached_attention(q, keys, values, mask), (keys, values)

        h, (keys, values) = block(cfg, layer, h, angles, attend)
        new_keys.append(keys)
        new_values.append(values)
    h = rms_norm(h[:, 0], params["final_norm"]["scale"].astype(h.dtype), cfg.norm_eps)
    return h, KVCache(tuple(new_keys), tuple(new_values), mask, slot + 1)


def unstack_layers(params: Params, cfg: ModelConfig) -> list[Params]:
    """The stacked layers one by one."""
    return [jax.tree.map(lambda w, i=i: w[i], params["layers"]) for i in range(cfg.num_layers)]
