"""Hidden states and a vocabulary weight -> log-probability and entropy of each token."""

from kernels.linear_logprob.api import linear_logprob

__all__ = ["linear_logprob"]
