"""Hidden states and a vocabulary weight -> any loss of each token's log-probability and entropy."""

from kernels.linear_loss.api import TokenFn, linear_loss

__all__ = ["TokenFn", "linear_loss"]
