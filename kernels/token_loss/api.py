"""The public function: it picks the implementation."""

from jaxtyping import Array, Float

from kernels.dispatch import Impl, require_pallas, tuned
from kernels.token_loss import pallas, reference
from kernels.token_loss.reference import TokenInputs, TokenRule, TokenSums


def token_loss(
    logprobs: Float[Array, " N"], inputs: TokenInputs, rule: TokenRule, *, impl: Impl = "auto"
) -> tuple[Float[Array, ""], TokenSums]:
    """GRPO's loss of tokens whose log-probabilities are known, and its metrics.

    Args:
        logprobs: of the policy, in nats; the loss is differentiable with respect to them alone.
        impl: `xla` is the reference, which XLA fuses; `pallas` forms loss, gradient and metrics
            in one pass, on TPUs and Hopper GPUs.

    Raises:
        ValueError: `pallas` where it cannot run.
    """
    if impl == "auto":
        impl = tuned().token_loss
    elif impl == "pallas":
        require_pallas("token_loss")
    if impl == "pallas":
        return pallas.token_loss(logprobs, inputs, rule)
    return reference.token_loss(logprobs, inputs, rule)
