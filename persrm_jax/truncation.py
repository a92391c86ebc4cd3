"""What part of a distribution is sampled from: top-k, top-p and min-p, as transformers has them."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclass(frozen=True)
class Truncation:
    """Tokens that may be drawn; by default all. A log-probability is always that of the whole
    distribution, so that trainer and sampler mean the same; with a truncation they do not sample
    the same."""

    top_k: int = 0
    """Only the k likeliest tokens; 0: all."""
    top_p: float = 1.0
    """Only the likeliest tokens that reach this probability together, of those that top-k leaves
    (Holtzman et al. 2020)."""
    min_p: float = 0.0
    """Only tokens at least this share as likely as the likeliest (arXiv 2407.01082)."""

    def __post_init__(self) -> None:
        if self.top_k < 0:
            raise ValueError(f"top-k {self.top_k}: must be 0 or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top-p {self.top_p}: must be above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min-p {self.min_p}: must be between 0 and 1")


def truncate(logits: Float[Array, "B V"], cfg: Truncation) -> Float[Array, "B V"]:
    """`logits`, -inf where a token may not be drawn."""
    if 0 < cfg.top_k < logits.shape[1]:
        least = jax.lax.top_k(logits, cfg.top_k)[0][:, -1:]
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    if cfg.top_p < 1:
        falling = jnp.sort(logits, axis=-1, descending=True)
        share = jax.nn.softmax(falling, axis=-1)
        before = jnp.cumsum(share, axis=-1) - share
        least = jnp.min(jnp.where(before < cfg.top_p, falling, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    if cfg.min_p > 0:
        least = jnp.max(logits, axis=-1, keepdims=True) + math.log(cfg.min_p)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return logits
