"""Verdicts on held-out pairs, statistics, baselines and the report; and the reward model in use."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from persrm_jax.evaluation.reward_model import Judge

__all__ = ["Judge"]


def __getattr__(name: str) -> Any:
    """`Judge`, imported when it is asked for: statistics need no model."""
    if name == "Judge":
        from persrm_jax.evaluation.reward_model import Judge

        return Judge
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
