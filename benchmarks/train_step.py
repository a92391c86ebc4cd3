"""The training step beside two others: a plain JAX step, and ours with its layers unrolled.

    python -m benchmarks.train_step [--out results/train-step.json]

The model and batch are W1's of `shared/PEERS.md`: 4 layers of width 256, vocabulary 2,048, 32 rows
of 384 tokens of which 128 carry loss. All three take turns in one process; the ratio of medians
counts. Compile times are apart.
"""

import functools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from persrm_jax import cli
from persrm_jax.jsonl import write_text
from persrm_jax.models.config import ComputeConfig, ModelConfig
from persrm_jax.models.params import Params, init_params
from persrm_jax.runs import provenance
from persrm_jax.sharding import MeshShape, make_mesh
from persrm_jax.training.optimizer import OptimizerConfig, make_optimizer
from persrm_jax.training.sft import make_sft_loss
from persrm_jax.training.step import TrainState, init_state, make_train_step
from persrm_jax.types import Batch

W1 = ModelConfig(
    vocab_size=2048,
    num_layers=4,
    width=256,
    mlp_width=688,
    num_heads=8,
    num_kv_heads=4,
    head_width=32,
    max_positions=4096,
    qkv_bias=True,
)
B, PROMPT, T = 32, 256, 384
Step = Callable[[TrainState, Batch], tuple[TrainState, Any]]


def naive_loss(
    params: Params, batch: Batch, totals: None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """A decoder as one first writes it: a Python loop over layers, all logits of all positions."""
    cfg = W1
    H, group = cfg.head_width, cfg.num_heads // cfg.num_kv_heads
    freqs = cfg.rope_theta ** (-jnp.arange(0, H, 2) / H)
    angles = batch.positions[..., None, None] * freqs
    causal = jnp.tri(T, dtype=bool)

    def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + cfg.norm_eps) * scale

    def rope(x: jax.Array) -> jax.Array:
        a, b = jnp.split(x, 2, axis=-1)
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    h = params["embed"]["weight"][batch.tokens]
    for i in range(cfg.num_layers):
        w = jax.tree.map(lambda x, i=i: x[i], params["layers"])
        x = norm(h, w["attn_norm"]["scale"])
        q, k, v = (
            jnp.einsum("btd,dnh->btnh", x, w[name]["kernel"]) + w[name]["bias"] for name in "qkv"
        )
        q, k = rope(q), rope(k)
        k, v = jnp.repeat(k, group, axis=2), jnp.repeat(v, group, axis=2)
        scores = jnp.einsum("btnh,bsnh->bnts", q, k) / H**0.5
        weights = jax.nn.softmax(jnp.where(causal, scores, -1e30))
        out = jnp.einsum("bnts,bsnh->btnh", weights, v)
        h = h + jnp.einsum("btnh,nhd->btd", out, w["o"]["kernel"])
        x = norm(h, w["mlp_norm"]["scale"])
        gate = jax.nn.silu(x @ w["gate"]["kernel"])
        h = h + (gate * (x @ w["up"]["kernel"])) @ w["down"]["kernel"]
    logits = norm(h, params["final_norm"]["scale"]) @ params["embed"]["weight"].T
    logprobs = jax.nn.log_softmax(logits[:, :-1])
    picked = jnp.take_along_axis(logprobs, batch.tokens[:, 1:, None], axis=-1)[..., 0]
    mask = batch.loss_mask[:, 1:]
    loss = -jnp.sum(picked * mask) / jnp.sum(mask)
    return loss, {"loss/total": loss}


def make_batch() -> Batch:
    """Random tokens; the prompt carries no loss."""
    tokens = np.random.default_rng(0).integers(0, W1.vocab_size, (B, T)).astype(np.int32)
    positions = np.tile(np.arange(T, dtype=np.int32), (B, 1))
    return Batch(tokens, positions, np.ones_like(tokens), positions >= PROMPT)


def compile_step(loss: Any, state: TrainState, batch: Batch, unroll: int = 1) -> tuple[Step, float]:
    """The compiled step and the seconds that took."""
    step: Any = make_train_step(loss, OPTIMIZER)
    start = time.perf_counter()
    with mock.patch.object(jax.lax, "scan", functools.partial(jax.lax.scan, unroll=unroll)):
        compiled = step.lower(state, batch).compile()
    return compiled, time.perf_counter() - start


OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=1e-6, warmup_steps=0), 1000)


@dataclass(frozen=True)
class Config:
    """What to measure."""

    rounds: int = 7
    """Turns of each step; the first is not counted."""
    out: Path | None = None
    """Where to write the numbers, as JSON."""


def main(args: Sequence[str]) -> None:
    """The command line."""
    cfg = cli.parse_flags(Config, "python -m benchmarks.train_step", args)
    mesh = make_mesh(MeshShape(1, 1))
    params = init_params(W1, jax.random.key(0), mesh)
    batch = jax.device_put(make_batch())
    state = init_state(params, OPTIMIZER, jax.random.key(1), mesh)
    ours = make_sft_loss(W1, ComputeConfig())
    compiled = {
        "ours": compile_step(ours, state, batch),
        "ours, layers unrolled": compile_step(ours, state, batch, unroll=W1.num_layers),
        "naive": compile_step(naive_loss, state, batch),
    }
    states = {name: jax.tree.map(jnp.copy, state) for name in compiled}
    seconds: dict[str, list[float]] = {name: [] for name in compiled}
    for _ in range(cfg.rounds):
        for name, (step, _) in compiled.items():
            start = time.perf_counter()
            states[name], _ = jax.block_until_ready(step(states[name], batch))
            seconds[name].append(time.perf_counter() - start)
    medians = {name: median(times[1:]) for name, times in seconds.items()}
    best = min(value for name, value in medians.items() if name != "ours")
    for name, value in medians.items():
        print(f"{name:>22}: {value:.3f} s a step, compiled in {compiled[name][1]:.1f} s")
    print(f"speed of ours over the best of the others: {best / medians['ours']:.2f}")
    if cfg.out is not None:
        result = {
            "provenance": provenance(),
            "median_s": medians,
            "compile_s": {name: s for name, (_, s) in compiled.items()},
            "speed_over_the_best_of_the_others": best / medians["ours"],
        }
        write_text(cfg.out, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    cli.run_main(main)
