"""Rotary position embeddings and their rescalings for longer contexts."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from persrm_jax.models.config import ModelConfig, RopeScaling


class Rotation(NamedTuple):
    """Cosine and sine for each position and frequency, h = H/2."""

    cos: Float[Array, "B T 1 h"]
    sin: Float[Array, "B T 1 h"]


def rope_frequencies(cfg: ModelConfig) -> np.ndarray:
    """Radians a position, [H/2] (RoFormer, arXiv 2104.09864, section 3.4), rescaled."""
    H = cfg.head_width
    freqs = cfg.rope_theta ** (-np.arange(0, H, 2, dtype=np.float64) / H)
    scaling = cfg.rope_scaling
    if scaling is None:
        return freqs
    if scaling.kind == "linear":
        keep: np.ndarray | float = 0.0
    elif scaling.kind == "llama3":
        # Turns that a frequency makes over the original context: few are stretched, many kept.
        turns = scaling.original_max_positions * freqs / (2 * np.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        keep = np.clip((turns - low) / (high - low), 0, 1)
    else:
        keep = _yarn_keep(scaling, H, cfg.rope_theta)
    return freqs * (keep + (1 - keep) / scaling.factor)


def _yarn_keep(scaling: RopeScaling, head_width: int, theta: float) -> np.ndarray:
    """Which frequencies YaRN leaves alone, 1, and which it stretches, 0: a ramp over their index
    (arXiv 2309.00071, eq. 21 to 23, as released: between the indices that make `beta_fast` and
    `beta_slow` turns)."""

    def index_of(turns: float) -> float:
        wavelength = scaling.original_max_positions / (turns * 2 * math.pi)
        return head_width * math.log(wavelength) / (2 * math.log(theta))

    first, last = index_of(scaling.beta_fast), index_of(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_width - 1)
    span = (last - first) or 1e-3
    return 1 - np.clip((np.arange(head_width // 2) - first) / span, 0, 1)


def rotation(cfg: ModelConfig, positions: Int[Array, "B T"]) -> Rotation:
    """The rotation of each position. YaRN's attention temperature multiplies it."""
    freqs = jnp.asarray(rope_frequencies(cfg), jnp.float32)
    angles = (positions.astype(jnp.float32)[..., None] * freqs)[:, :, None, :]
    scale = cfg.rope_scaling.attention_factor if cfg.rope_scaling else 1.0
    return Rotation(scale * jnp.cos(angles), scale * jnp.sin(angles))


def rotation_of_layer(rope: Rotation, has_rope: jax.Array | bool) -> Rotation:
    """`rope`, or the identity in a layer without positions (NoPE; SmolLM3)."""
    return Rotation(jnp.where(has_rope, rope.cos, 1.0), jnp.where(has_rope, rope.sin, 0.0))


def apply_rope(x: Float[Array, "B T N H"], rope: Rotation) -> Float[Array, "B T N H"]:
    """Rotates the halves of each head, as Hugging Face's weights expect; in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    halves = first * rope.cos - second * rope.sin, second * rope.cos + first * rope.sin
    return jnp.concatenate(halves, axis=-1).astype(x.dtype)
