"""The model of two layers that tests share: small enough to compile in a second."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from persrm_jax.models.config import ModelConfig, RopeScaling
from persrm_jax.models.decoder import forward
from persrm_jax.models.params import Params, param_specs

SMALL = ModelConfig(
    vocab_size=320,
    num_layers=2,
    width=32,
    mlp_width=64,
    num_heads=4,
    num_kv_heads=2,
    head_width=8,
    max_positions=512,
    rope_theta=1e4,
    qk_norm=True,
)


def small_model(**changes: object) -> ModelConfig:
    """The small model, but for `changes`."""
    return dataclasses.replace(SMALL, **changes)


FAMILIES = {
    "qwen2": small_model(qk_norm=False, qkv_bias=True, tie_embeddings=False),
    "qwen3": small_model(head_width=12),
    "llama": small_model(qk_norm=False, qkv_bias=True, out_bias=True, mlp_bias=True),
    "llama3": small_model(
        qk_norm=False, rope_scaling=RopeScaling("llama3", 8.0, 64, 1.0, 4.0), rope_theta=100.0
    ),
    "smollm3": small_model(qk_norm=False, num_layers=4, rope_layers=(True, True, True, False)),
    "linear": small_model(rope_scaling=RopeScaling("linear", 2.0)),
    "yarn": small_model(
        rope_scaling=RopeScaling("yarn", 4.0, 128, beta_fast=8.0, attention_factor=1.14)
    ),
}
"""One of each feature: biases, q/k norm, untied, odd head width, every rope."""


def random_params(cfg: ModelConfig, seed: int = 0, dtype: str = "float32") -> Params:
    """Random weights, biases and scales too, large enough that a wrong mask shows."""
    rng = np.random.default_rng(seed)
    return traverse_util.unflatten_dict(
        {
            path: jnp.asarray((spec.init == "ones") + 0.3 * rng.standard_normal(spec.shape), dtype)
            for path, spec in param_specs(cfg)
        }
    )


_forward = functools.partial(jax.jit, static_argnums=1)(forward)


def hidden_states(params: Params, cfg: ModelConfig, ids: np.ndarray) -> jax.Array:
    """Hidden states [1, T, D] of one row [1, T] without padding."""
    positions = jnp.arange(ids.shape[1])[None]
    return _forward(params, cfg, jnp.asarray(ids), positions, jnp.ones_like(positions))
