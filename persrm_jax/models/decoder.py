"""The decoder: Qwen2, Qwen2.5, Qwen3 and Llama are this one function of their config.

`forward` reads whole sequences (training, scoring), `prefill` and `decode_step` generate. All three
run the same `block`; they differ in what they attend to.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from persrm_jax.models.attention import attention
from persrm_jax.models.cache import (
    KVCache,
    LayerCache,
    group_attention,
    init_cache,
    update_layer,
)
from persrm_jax.models.config import ComputeConfig, ModelConfig, Remat
from persrm_jax.models.embedding import look_up
from persrm_jax.models.params import Params
from persrm_jax.models.rope import Rotation, apply_rope, rotation, rotation_of_layer
from persrm_jax.sharding import constrain

F32 = ComputeConfig()
REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""What is kept of a layer, by the name of what is recomputed."""
Attend = Callable[..., tuple[jax.Array, Any]]


def rms_norm(x: Float[Array, "... D"], scale: Float[Array, " D"], eps: float) -> jax.Array:
    """x / rms(x) * scale, in float32 (Zhang and Sennrich 2019)."""
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return x32.astype(x.dtype) * scale


def linear(layer: Params, x: Float[Array, "B T ..."], equation: str) -> jax.Array:
    """An einsum of each token with the layer's kernel, plus its bias and low-rank adapter where it
    has them. In `equation` T is all tokens of all rows, B x T: over two dims XLA sums a CPU's
    gradients of weights after a transpose, which takes a third longer."""
    tokens = x.reshape(-1, *x.shape[2:])
    y = jnp.einsum(equation, tokens, layer["kernel"])
    if "lora_a" in layer:
        ins, kernel, outs = equation.replace("->", ",").split(",")
        summed = "".join(dim for dim in kernel if dim in ins)
        low = jnp.einsum(f"{ins},{summed}R->TR", _drop(layer, tokens), layer["lora_a"])
        y = y + jnp.einsum(f"TR,R{kernel.replace(summed, '')}->{outs}", low, layer["lora_b"])
    y = y + layer["bias"] if "bias" in layer else y
    return y.reshape(*x.shape[:2], *y.shape[1:])


def _drop(layer: Params, x: jax.Array) -> jax.Array:
    """An adapter's input, some of it dropped where the layer carries a key for that."""
    if "lora_key" not in layer:
        return x
    kept = jax.random.bernoulli(layer["lora_key"], layer["lora_keep"], x.shape)
    return jnp.where(kept, x / layer["lora_keep"].astype(x.dtype), 0)


def _cast(w: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return w.astype(dtype) if jnp.issubdtype(w.dtype, jnp.floating) else w


def block(
    cfg: ModelConfig,
    layer: Params,
    h: Float[Array, "B T D"],
    rope: Rotation,
    attend: Attend,
) -> tuple[Float[Array, "B T D"], Any]:
    """One layer: h + attention(norm(h)), then + mlp(norm(.)). Returns what `attend` hands on."""
    layer = jax.tree.map(lambda w: _cast(w, h.dtype), layer)
    x = rms_norm(h, layer["attn_norm"]["scale"], cfg.norm_eps)
    q, k, v = (linear(layer[name], x, "TD,DNH->TNH") for name in ("q", "k", "v"))
    if cfg.qk_norm:
        q = rms_norm(q, layer["q_norm"]["scale"], cfg.norm_eps)
        k = rms_norm(k, layer["k_norm"]["scale"], cfg.norm_eps)
    out, carried = attend(apply_rope(q, rope), apply_rope(k, rope), v)
    h = h + linear(layer["o"], out, "TNH,NHD->TD")
    x = rms_norm(h, layer["mlp_norm"]["scale"], cfg.norm_eps)
    gate = linear(layer["gate"], x, "TD,DF->TF")
    up = linear(layer["up"], x, "TD,DF->TF")
    h = h + linear(layer["down"], jax.nn.silu(gate) * up, "TF,FD->TD")
    return constrain(h, "batch", "length", "embed"), carried


def embed(params: Params, tokens: Int[Array, "B T"], dtype: str) -> Float[Array, "B T D"]:
    """Token vectors in the compute dtype."""
    weight = params["embed"]["weight"]
    # To gather the matrix for the one token of a decode step would cost more than it spares.
    h = look_up(weight, tokens, dtype) if tokens.shape[1] > 1 else weight.astype(dtype)[tokens]
    return constrain(h, "batch", "length", "embed")


def vocab_weight(params: Params) -> Float[Array, "V D"]:
    """The output projection; the embedding itself where they are tied."""
    return params["head" if "head" in params else "embed"]["weight"]


def _scan_layers(
    params: Params,
    cfg: ModelConfig,
    h: jax.Array,
    positions: jax.Array,
    attend: Attend,
    *,
    remat: Remat = "none",
    past: Any = None,
) -> tuple[jax.Array, Any]:
    """All layers in one compiled body. `past` is what `attend` is given of each layer."""
    rope = rotation(cfg, positions)

    def step(h: jax.Array, xs: tuple[Params, Any, Any]) -> tuple[jax.Array, Any]:
        layer, has_rope, past = xs
        here = rope if has_rope is None else rotation_of_layer(rope, has_rope)
        return block(cfg, layer, h, here, attend if past is None else partial(attend, past=past))

    has_rope = None if cfg.rope_layers is None else jnp.array(cfg.rope_layers)
    if remat != "none":
        step = jax.checkpoint(step, policy=REMAT_POLICIES[remat])
    return jax.lax.scan(step, h, (params["layers"], has_rope, past))


def forward(
    params: Params,
    cfg: ModelConfig,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    compute: ComputeConfig = F32,
) -> Float[Array, "B T D"]:
    """Hidden states after the final norm."""

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
        return attention(q, k, v, segment_ids, compute.attention), None

    return forward_tokens(params, cfg, tokens, positions, attend, compute)


def forward_tokens(
    params: Params,
    cfg: ModelConfig,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    attend: Attend,
    compute: ComputeConfig = F32,
) -> Float[Array, "B T D"]:
    """Hidden states after the final norm, of tokens that see what `attend` shows them."""
    h, _ = _scan_layers(
        params, cfg, embed(params, tokens, compute.dtype), positions, attend, remat=compute.remat
    )
    return rms_norm(h, params["final_norm"]["scale"].astype(h.dtype), cfg.norm_eps)


class Prefix(NamedTuple):
    """The beginning of several prompts, padded on the left."""

    tokens: Int[Array, "1 R"]
    mask: Bool[Array, "1 R"]


def prefill(
    params: Params,
    cfg: ModelConfig,
    tokens: Int[Array, "P S"],
    mask: Bool[Array, "P S"],
    num_samples: int,
    num_new: int,
    compute: ComputeConfig = F32,
    prefix: Prefix | None = None,
) -> tuple[Float[Array, "P D"], KVCache]:
    """Reads left-padded prompts. Returns their last hidden states and a cache with room for
    `num_samples` completions of each, of `num_new` tokens.

    Args:
        prefix: what all the prompts begin with and `tokens` leaves out; it is read once.
    """
    past = None
    if prefix is not None:
        past = _read(params, cfg, *prefix, compute=compute)[1:]
        mask = jnp.concatenate([jnp.tile(prefix.mask, (len(mask), 1)), mask], axis=1)
    h, keys, values = _read(params, cfg, tokens, mask, past, compute=compute)
    last = rms_norm(h[:, -1], params["final_norm"]["scale"].astype(h.dtype), cfg.norm_eps)
    return last, init_cache(keys, values, mask, num_samples, num_new)


def _read(
    params: Params,
    cfg: ModelConfig,
    tokens: Int[Array, "P t"],
    mask: Bool[Array, "P S"],
    past: tuple[jax.Array, jax.Array] | None = None,
    *,
    compute: ComputeConfig,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Hidden states of the last t of S tokens, and all layers' keys and values of all S. `past` are
    those of the S - t tokens before, the same for all rows: [L, 1, S - t, K, H]."""
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)[:, -tokens.shape[1] :]
    segment_ids = mask.astype(jnp.int32)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, past: Any = None) -> tuple[jax.Array, Any]:
        if past is not None:
            old_k, old_v = (jnp.broadcast_to(x, (len(k), *x.shape[1:])) for x in past)
            k, v = jnp.concatenate([old_k, k], axis=1), jnp.concatenate([old_v, v], axis=1)
        return attention(q, k, v, segment_ids, compute.attention), (k, v)

    h, (keys, values) = _scan_layers(
        params, cfg, embed(params, tokens, compute.dtype), positions, attend, past=past
    )
    return h, keys, values


def decode_step(
    params: Params,
    layers: list[Params],
    cfg: ModelConfig,
    tokens: Int[Array, " B"],
    cache: KVCache,
    compute: ComputeConfig = F32,
) -> tuple[Float[Array, "B D"], KVCache]:
    """Reads one token a row at the cache's next slot. `layers` are `params["layers"]` unstacked
    (`unstack_layers`): taking them apart at every token would copy the weights."""
    slot, num_samples = cache.next_slot, tokens.shape[0] // cache.prompt_mask.shape[0]
    prompt_lengths = jnp.repeat(jnp.sum(cache.prompt_mask, axis=1), num_samples)
    rope = rotation(cfg, (prompt_lengths + cache.lengths)[:, None])
    num_slots = cache.layers[0].keys.shape[2]
    ages = (slot - jnp.arange(num_slots)) % num_slots
    own_mask = (ages <= cache.lengths[:, None])[:, None]
    h = embed(params, tokens[:, None], compute.dtype)
    has_rope = cfg.rope_layers or (True,) * cfg.num_layers
    updated = []
    for layer, rotates, old in zip(layers, has_rope, cache.layers, strict=True):

        def attend(
            q: jax.Array, k: jax.Array, v: jax.Array, old: LayerCache = old
        ) -> tuple[jax.Array, LayerCache]:
            new = update_layer(old, k, v, slot)
            return group_attention(q, new, cache.prompt_mask, own_mask), new

        h, new = block(cfg, layer, h, rotation_of_layer(rope, rotates), attend)
        updated.append(new)
    h = rms_norm(h[:, 0], params["final_norm"]["scale"].astype(h.dtype), cfg.norm_eps)
    slot = (slot + 1) % num_slots
    return h, KVCache(tuple(updated), cache.prompt_mask, cache.lengths + 1, slot)


def unstack_layers(params: Params, cfg: ModelConfig) -> list[Params]:
    """The stacked layers one by one."""
    return [jax.tree.map(lambda w, i=i: w[i], params["layers"]) for i in range(cfg.num_layers)]
