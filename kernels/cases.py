"""What `kernels.bench` and `kernels.tune` run: the operations at real sizes, and a fair clock."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels.dispatch import Impl, has_kernels
from kernels.group_advantage import group_advantage
from kernels.grpo_loss import grpo_loss
from kernels.linear_logprob import linear_logprob
from kernels.token_loss import TokenInputs, TokenRule, token_loss

RULE = TokenRule(clip_low=0.2, clip_high=0.28, kl_coef=1e-3, kl_estimator="k3")


@dataclass(frozen=True)
class Size:
    """T tokens, hidden width D, vocabulary V."""

    tokens: int
    width: int
    vocab: int
    dtype: str = "bfloat16"


SIZES = {
    "w1": Size(4096, 256, 2048, "float32"),
    "smollm2": Size(512, 576, 49_152, "float32"),
    "qwen2.5-0.5b-cpu": Size(512, 896, 151_936, "float32"),
    "qwen2.5-0.5b": Size(32_768, 896, 151_936),
    "qwen2.5-7b-8k": Size(8192, 3584, 151_936),
    "qwen2.5-7b": Size(32_768, 3584, 151_936),
}
ON_CPU = ("w1", "smollm2", "qwen2.5-0.5b-cpu")


@dataclass(frozen=True)
class Operation:
    """One thing to time."""

    run: Callable[..., Any]
    """(impl, *arrays)"""
    arrays: Callable[[Size], tuple[Any, ...]]
    flops: Callable[[Size], float]
    """The fewest floating-point operations that it can take."""
    bytes: Callable[[Size], float]
    """The fewest bytes that it must read and write."""


def _states(size: Size) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), 3)
    return (
        jax.random.normal(keys[0], (size.tokens, size.width), size.dtype),
        jax.random.normal(keys[1], (size.vocab, size.width), size.dtype) * size.width**-0.5,
        jax.random.randint(keys[2], (size.tokens,), 0, size.vocab),
    )


def _tokens(size: Size) -> TokenInputs:
    rng = np.random.default_rng(0)
    old, ref = -rng.random((2, size.tokens)) * 10
    weights = (rng.random(size.tokens) < 0.9) / size.tokens
    arrays = (weights, rng.standard_normal(size.tokens), old, ref)
    return TokenInputs(*(jnp.asarray(x, jnp.float32) for x in arrays))


def _logprob(impl: Impl, *arrays: jax.Array) -> Any:
    return linear_logprob(*arrays, impl=impl)


def _grpo(impl: Impl, hidden: jax.Array, weight: jax.Array, *rest: Any) -> Any:
    def loss(hidden: jax.Array, weight: jax.Array) -> jax.Array:
        labels, inputs = rest
        return grpo_loss(hidden, weight, labels, inputs, RULE, impl=impl).loss

    return jax.value_and_grad(loss, argnums=(0, 1))(hidden, weight)


def _token_loss(impl: Impl, logprobs: jax.Array, inputs: TokenInputs) -> Any:
    run = partial(token_loss, inputs=inputs, rule=RULE, impl=impl)
    return jax.value_and_grad(run, has_aux=True)(logprobs)


def _advantage(impl: Impl, rewards: jax.Array, ids: jax.Array) -> Any:
    return group_advantage(rewards, ids, scale_by_std=True, eps=1e-4, impl=impl)


def _matrices(size: Size) -> float:
    itemsize = jnp.dtype(size.dtype).itemsize
    return itemsize * size.width * (size.tokens + size.vocab)


NUM_REWARDS = 4096
OPERATIONS = {
    "linear_logprob": Operation(
        _logprob,
        _states,
        lambda s: 2.0 * s.tokens * s.width * s.vocab,
        lambda s: _matrices(s) + 12 * s.tokens,
    ),
    "grpo_loss and gradients": Operation(
        _grpo,
        lambda s: (*_states(s), _tokens(s)),
        lambda s: 6.0 * s.tokens * s.width * s.vocab,
        lambda s: 2 * _matrices(s) + 20 * s.tokens,
    ),
    "token_loss and gradient": Operation(
        _token_loss,
        lambda s: (_tokens(s).old, _tokens(s)),
        lambda s: 20.0 * s.tokens,
        lambda s: 24.0 * s.tokens,
    ),
    "group_advantage": Operation(
        _advantage,
        lambda s: (jnp.arange(NUM_REWARDS) % 7 / 7, jnp.arange(NUM_REWARDS) // 8),
        lambda s: 8.0 * NUM_REWARDS**2,
        lambda s: 12.0 * NUM_REWARDS,
    ),
}


def compiled(operation: Operation, impl: Impl, arrays: tuple[Any, ...]) -> Any:
    """The program of an operation.

    Raises:
        Exception: of any kind, where the chip has no room for it or its compiler refuses it.
    """
    return jax.jit(partial(operation.run, impl)).lower(*arrays).compile()


def impls() -> list[Impl]:
    """Those that this machine can run, the naive one first."""
    return ["reference", "xla", "pallas"] if has_kernels() else ["reference", "xla"]


def medians(
    programs: Mapping[str, Callable[..., Any]], arrays: tuple[Any, ...], rounds: int
) -> dict[str, float]:
    """Seconds of each, which take turns; the first turn is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds + 1):
        for name, program in programs.items():
            begin = time.perf_counter()
            jax.block_until_ready(program(*arrays))
            seconds[name].append(time.perf_counter() - begin)
    return {name: median(times[1:]) for name, times in seconds.items()}
