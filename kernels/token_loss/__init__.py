"""Log-probabilities of tokens -> GRPO's loss, its gradient and its metrics."""

from kernels.token_loss.api import token_loss
from kernels.token_loss.reference import (
    KlEstimator,
    Surrogate,
    TokenInputs,
    TokenRule,
    TokenSums,
    clipped_surrogate,
    kl_estimate,
    token_terms,
)

__all__ = [
    "KlEstimator",
    "Surrogate",
    "TokenInputs",
    "TokenRule",
    "TokenSums",
    "clipped_surrogate",
    "kl_estimate",
    "token_loss",
    "token_terms",
]
