"""The public function: it picks the implementation."""

from typing import Literal

from jaxtyping import Array, Bool, Float, Int

from kernels.dispatch import Impl, require_pallas, tuned
from kernels.group_advantage import pallas, reference

Baseline = Literal["mean", "leave_one_out"]


def group_advantage(
    rewards: Float[Array, " B"],
    group_ids: Int[Array, " B"],
    mask: Bool[Array, " B"] | None = None,
    *,
    baseline: Baseline = "mean",
    scale_by_std: bool,
    eps: float,
    impl: Impl = "auto",
) -> Float[Array, " B"]:
    """(r - mean of its group) / (std of its group + eps), std with ddof 1 (arXiv 2402.03300, 4.1).

    Members are found by equal ids, so groups may be ragged, in any order. A group of one, or of
    equal rewards, gets exactly 0.

    Args:
        mask: members that count; the others get 0, whatever their reward.
        baseline: `leave_one_out` subtracts the mean of the others instead (RLOO, arXiv 2402.14740).
        scale_by_std: False leaves the division out (Dr. GRPO, arXiv 2503.20783).
        impl: `xla` is the reference, which XLA fuses; `pallas` runs on TPUs and Hopper GPUs.

    Raises:
        ValueError: `pallas` where it cannot run.
    """
    if impl == "auto":
        impl = tuned().group_advantage
    elif impl == "pallas":
        require_pallas("group_advantage")
    run = pallas.group_advantage if impl == "pallas" else reference.group_advantage
    return run(rewards, group_ids, mask, baseline, scale_by_std, eps)
