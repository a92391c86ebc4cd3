"""The numerics contract: what must not change a model's numbers, measured."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from persrm_jax.models.config import ComputeConfig, ModelConfig
from persrm_jax.models.decoder import decode_step, forward, prefill, unstack_layers, vocab_weight
from persrm_jax.models.logprobs import token_logprobs
from persrm_jax.models.params import Params
from persrm_jax.sampling import Ending, SamplingConfig, make_generate, sequence_keys
from persrm_jax.types import Batch

B, T, P = 6, 16, 9
"""Rows, their length, and the prompt's length where they are decoded."""
FORWARD = jax.jit(forward, static_argnums=(1, 5))
PREFILL = jax.jit(prefill, static_argnums=(1, 4, 5, 6))
STEP = jax.jit(decode_step, static_argnums=(2, 5))
SCORE = jax.jit(token_logprobs, static_argnums=(1, 3), static_argnames=("start", "temperature"))


class Gap(NamedTuple):
    """How far two arrays are apart: ||a - b|| / ||b||, and the largest |a - b|."""

    l2: float
    max: float


def gap(found: object, want: object) -> Gap:
    a, b = (np.asarray(x, np.float64) for x in (found, want))
    assert a.shape == b.shape and np.isfinite(a).all()
    return Gap(float(np.linalg.norm(a - b) / np.linalg.norm(b)), float(np.abs(a - b).max()))


def logits_of(
    params: Params, cfg: ModelConfig, compute: ComputeConfig, *batch: np.ndarray
) -> np.ndarray:
    """float32 logits [B, T, V] of (tokens, positions, segment ids)."""
    return np.asarray(_to_logits(params, FORWARD(params, cfg, *batch, compute)))


def _to_logits(params: Params, hidden: jax.Array) -> jax.Array:
    weight = vocab_weight(params).astype(hidden.dtype)
    return jnp.einsum("...D,VD->...V", hidden, weight, preferred_element_type=jnp.float32)


def measure(cfg: ModelConfig, params: Params, compute: ComputeConfig) -> dict[str, Gap]:
    """Each way of running the same rows against one plain forward pass over them."""
    rng = np.random.default_rng(3)
    tokens = rng.integers(3, cfg.vocab_size, (B, T)).astype(np.int32)
    positions = np.tile(np.arange(T, dtype=np.int32), (B, 1))
    ones = np.ones_like(tokens)
    whole = logits_of(params, cfg, compute, tokens, positions, ones)
    lengths = T - np.arange(B)
    real = np.arange(T) < lengths[:, None]
    noise = rng.integers(3, cfg.vocab_size, (B, T)).astype(np.int32)
    found = {}

    right = logits_of(
        params, cfg, compute, np.where(real, tokens, noise), positions * real, real.astype(np.int32)
    )
    found["right padding"] = gap(right[real], whole[real])

    left = real[:, ::-1]
    rows, places = noise.copy(), np.zeros_like(positions)
    rows[left], places[left] = tokens[real], positions[real]
    shifted = logits_of(params, cfg, compute, rows, places, left.astype(np.int32))
    found["left padding"] = gap(shifted[left], whole[real])

    half = T // 2  # the starts of two rows side by side in one
    rows = np.concatenate([tokens[:, :half], tokens[::-1, :half]], axis=1)
    places = np.tile(np.arange(half, dtype=np.int32), (B, 2))
    segments = np.repeat(np.array([[1, 2]], np.int32), half, axis=1)
    packed = logits_of(params, cfg, compute, rows, places, np.tile(segments, (B, 1)))
    want = np.concatenate([whole[:, :half], whole[::-1, :half]], axis=1)
    found["packing"] = gap(packed, want)

    mixed = noise.copy()
    mixed[0] = tokens[0]
    other = logits_of(params, cfg, compute, mixed, positions, ones)
    found["batch composition"] = gap(other[0], whole[0])

    found["cached decode"] = gap(_decoded(cfg, params, compute, tokens), whole[:, P - 1 : -1])
    found["sampler against trainer"] = _sampler_gap(cfg, params, compute, tokens)
    return found


def _decoded(
    cfg: ModelConfig, params: Params, compute: ComputeConfig, tokens: np.ndarray
) -> np.ndarray:
    """Logits of a prompt's last token and of all but the last that are then fed one by one."""
    mask = np.ones((B, P), bool)
    hidden, cache = PREFILL(params, cfg, tokens[:, :P], mask, 1, T - P, compute)
    layers = unstack_layers(params, cfg)
    out = [hidden]
    for t in range(P, T - 1):
        hidden, cache = STEP(params, layers, cfg, tokens[:, t], cache, compute)
        out.append(hidden)
    return np.asarray(_to_logits(params, jnp.stack(out, axis=1)))


def _sampler_gap(
    cfg: ModelConfig, params: Params, compute: ComputeConfig, tokens: np.ndarray
) -> Gap:
    """The log-probabilities that the sampler gives its own tokens, and those of training."""
    generate = make_generate(
        cfg, SamplingConfig(T - P, temperature=0.7), ending=Ending((1,), 0), compute=compute
    )
    mask = np.arange(P) >= (np.arange(B) % 3)[:, None]
    out = generate(params, tokens[:, :P], mask, sequence_keys(jax.random.key(5), B))
    rows = np.concatenate([tokens[:, :P], out.tokens], axis=1)
    valid = np.concatenate([mask, out.mask], axis=1)
    positions = np.maximum(np.cumsum(valid, axis=1) - 1, 0).astype(np.int32)
    batch = Batch(rows, positions, valid.astype(np.int32), valid)
    scored, _ = SCORE(params, cfg, batch, compute, start=P, temperature=0.7)
    keep = np.asarray(out.mask)
    return gap(np.asarray(out.logprobs)[keep], np.asarray(scored)[keep])
