"""Floating-point operations that a model's arithmetic asks for, by the usual count: 2 for each
weight of a matrix and each token, and 4 L N H for each token and each position of its sequence
(PaLM, arXiv 2204.02311, appendix B). Recomputation, masks and padding do not count."""

import math

import numpy as np
from jaxtyping import Int

from persrm_jax.models.config import ModelConfig
from persrm_jax.models.params import param_specs


def matrix_params(cfg: ModelConfig) -> int:
    """Weights that a token is multiplied with: the layers' matrices, the output projection."""
    kernels = [s for path, s in param_specs(cfg) if path[-1] == "kernel"]
    return sum(math.prod(spec.shape) for spec in kernels) + cfg.vocab_size * cfg.width


def forward_flops(
    cfg: ModelConfig,
    lengths: Int[np.ndarray, " B"],
    after: Int[np.ndarray, " B"] | int = 0,
    *,
    scored: float | None = None,
) -> float:
    """One forward pass over sequences of these lengths.

    Args:
        after: tokens before each sequence that it sees, computed elsewhere.
        scored: how many of all tokens meet the vocabulary (None: every one).
    """
    lengths = lengths.astype(float)
    seen = np.sum(lengths * (lengths + after))
    attention = 4 * cfg.num_layers * cfg.num_heads * cfg.head_width * seen
    vocabulary = cfg.vocab_size * cfg.width
    tokens = np.sum(lengths)
    layers = (matrix_params(cfg) - vocabulary) * tokens
    return float(2 * (layers + vocabulary * (tokens if scored is None else scored)) + attention)


def group_flops(
    cfg: ModelConfig, prompts: Int[np.ndarray, " P"], completions: Int[np.ndarray, "P G"]
) -> float:
    """One forward pass over groups of these lengths, each prompt once."""
    after = np.repeat(prompts, completions.shape[1])
    shared = forward_flops(cfg, prompts, scored=0.0)
    return shared + forward_flops(cfg, completions.ravel(), after)


def train_flops(forward: float, trained_share: float = 1.0) -> float:
    """Forward and backward: 6 N T and attention where all weights train. Frozen weights pass
    gradients on but have none: 4 N T.

    Args:
        forward: those of the forward pass.
        trained_share: trained parameters over all.
    """
    return (2 + trained_share) * forward
