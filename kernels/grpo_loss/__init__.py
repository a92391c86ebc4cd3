"""Hidden states and a vocabulary weight -> GRPO's loss, without logits in memory."""

from kernels.grpo_loss.api import GrpoLoss, grpo_loss

__all__ = ["GrpoLoss", "grpo_loss"]
