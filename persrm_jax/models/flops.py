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


def forward_flops(cfg: ModelConfig, lengths: Int[np.ndarray, " B"]) -> float:
    """One forward pass over sequences of these lengths, the vocabulary met at every token."""
    lengths = lengths.astype(float)
    attention = 4 * cfg.num_layers * cfg.num_heads * cfg.head_width * np.sum(lengths**2)
    return float(2 * matrix_params(cfg) * np.sum(lengths) + attention)


def train_flops(
    cfg: ModelConfig, lengths: Int[np.ndarray, " B"], trained_share: float = 1.0
) -> float:
    """Forward and backward: 6 N T and attention where all weights train. Frozen weights pass
    gradients on but have none: 4 N T.

    Args:
        trained_share: trained parameters over all.
    """
    return (2 + trained_share) * forward_flops(cfg, lengths)
