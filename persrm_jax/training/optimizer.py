"""Learning-rate schedule and the Optax chain."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from persrm_jax.models.params import Params


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with global-norm clipping."""

    learning_rate: float = 5e-6
    """Peak learning rate."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """After the warm-up: constant, or down to a tenth of the peak by a cosine or a line."""
    warmup_steps: int = 10
    """Steps of linear warm-up from 0."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices; norms and biases are left alone."""
    b1: float = 0.9
    """Decay of the first moment."""
    b2: float = 0.95
    """Decay of the second moment."""
    max_grad_norm: float = 1.0
    """Gradients of a larger global norm are scaled down to it."""
    state_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the two moments, each as large as the parameters. They are updated in float32."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"learning-rate {self.learning_rate}: must be positive")


def make_schedule(cfg: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Learning rate of each step."""
    warmup = min(cfg.warmup_steps, max(num_steps - 1, 0))
    peak, fall = cfg.learning_rate, max(num_steps - warmup, 1)
    match cfg.schedule:
        case "constant":
            after = optax.constant_schedule(peak)
        case "cosine":
            after = optax.cosine_decay_schedule(peak, fall, alpha=0.1)
        case "linear":
            after = optax.linear_schedule(peak, 0.1 * peak, fall)
    rise = optax.linear_schedule(cfg.learning_rate / (warmup + 1), cfg.learning_rate, warmup)
    return optax.join_schedules([rise, after], [warmup])


def make_optimizer(cfg: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """clip by global norm -> AdamW -> schedule."""
    return optax.chain(
        optax.clip_by_global_norm(cfg.max_grad_norm),
        _stored_in(cfg.state_dtype, optax.scale_by_adam(b1=cfg.b1, b2=cfg.b2)),
        optax.add_decayed_weights(cfg.weight_decay, mask=_decayed),
        optax.scale_by_learning_rate(make_schedule(cfg, num_steps)),
    )


def num_updates(opt_state: optax.OptState) -> int:
    """Updates that were made; those that were skipped left no trace."""
    return int(optax.tree.get_all_with_path(opt_state, "count")[0][1])


def _decayed(params: Params) -> Params:
    """True for matrices: leaves named kernel or weight, and an adapter's two."""
    return jax.tree.map_with_path(
        lambda path, _: path[-1].key not in ("scale", "bias"),
        params,
    )


def _stored_in(dtype: str, inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner`, its floating-point state kept in `dtype` between steps."""
    if dtype == "float32":
        return inner

    def cast(state: optax.OptState, to: str) -> optax.OptState:
        def one(x: Any) -> Any:
            # Optax also asks for the state of placeholders, which are no arrays.
            is_moment = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
            return x.astype(to) if is_moment else x

        return jax.tree.map(one, state)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        updates, state = inner.update(updates, cast(state, "float32"), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(lambda params: cast(inner.init(params), dtype), update)
