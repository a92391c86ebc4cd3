"""One public function; it picks the implementation."""

from typing import Literal

from jaxtyping import Array, Float, Int

from kernels.linear_logprob import reference, xla

Impl = Literal["auto", "xla", "reference"]
MAX_LOGITS = 1 << 26
"""`auto` chunks where more float32 logits than this (256 MiB) would exist at once."""


def linear_logprob(
    hidden: Float[Array, "B T D"],
    weight: Float[Array, "V D"],
    labels: Int[Array, "B T"],
    *,
    temperature: float = 1.0,
    impl: Impl = "auto",
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Log-probability of each label under softmax(hidden weight^T / temperature), and entropy.

    Args:
        hidden: states after the final norm; the product is taken in their dtype, sums in float32.
        weight: the output projection.
        labels: in [0, V).
        impl: `reference` holds all logits at once, `xla` a chunk of them.

    Returns:
        Log-probabilities and entropies in nats, float32.
    """
    B, T, _ = hidden.shape
    V = weight.shape[0]
    chunk = max(1, min(T, MAX_LOGITS // (B * V)))
    if impl == "reference" or (impl == "auto" and chunk >= T):
        return reference.linear_logprob(hidden, weight, labels, temperature)
    return xla.linear_logprob(hidden, weight, labels, temperature, chunk)
