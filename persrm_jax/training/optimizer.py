"""Learning-rate schedule and the Optax chain."""

from dataclasses import dataclass
from typing import Literal

import optax


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with global-norm clipping."""

    learning_rate: float = 5e-6
    """Peak learning rate."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """After the warm-up: constant, or a cosine to a tenth of the peak."""
    warmup_steps: int = 10
    """Steps of linear warm-up from 0."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    b1: float = 0.9
    """Decay of the first moment."""
    b2: float = 0.95
    """Decay of the second moment."""
    max_grad_norm: float = 1.0
    """Gradients of a larger global norm are scaled down to it."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"learning-rate {self.learning_rate}: must be positive")


def make_schedule(cfg: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Learning rate of each step."""
    warmup = min(cfg.warmup_steps, max(num_steps - 1, 0))
    after = (
        optax.constant_schedule(cfg.learning_rate)
        if cfg.schedule == "constant"
        else optax.cosine_decay_schedule(cfg.learning_rate, max(num_steps - warmup, 1), alpha=0.1)
    )
    rise = optax.linear_schedule(cfg.learning_rate / (warmup + 1), cfg.learning_rate, warmup)
    return optax.join_schedules([rise, after], [warmup])


def make_optimizer(cfg: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """clip by global norm -> AdamW -> schedule."""
    return optax.chain(
        optax.clip_by_global_norm(cfg.max_grad_norm),
        optax.adamw(
            make_schedule(cfg, num_steps), b1=cfg.b1, b2=cfg.b2, weight_decay=cfg.weight_decay
        ),
    )
