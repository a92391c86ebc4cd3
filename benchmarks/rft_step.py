"""An RFT step with a prompt computed once for its group, beside one that computes it each time.

    python -m benchmarks.rft_step [--out results/rft-step.json]

The model and sizes are W1's and W2's of `shared/PEERS.md`: 4 layers of width 256, vocabulary 2,048;
8 prompts of 256 tokens x 4 completions of 128, and 4 prompts of 768 x 8 completions of 96; no
reference. The ways take turns in one process; the ratio of medians counts. Then an update alone on
ragged groups (prompts and completions of any length up to those), groups padded beside groups
packed.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.train_step import W1 as MODEL
from persrm_jax import cli
from persrm_jax.data.packed_groups import pack_groups
from persrm_jax.jsonl import write_text
from persrm_jax.models.config import ComputeConfig
from persrm_jax.models.params import init_params
from persrm_jax.rl.losses import LossConfig
from persrm_jax.runs import provenance
from persrm_jax.sampling import Ending, SamplingConfig, sequence_keys
from persrm_jax.sharding import MeshShape, make_mesh
from persrm_jax.training.optimizer import OptimizerConfig, make_optimizer
from persrm_jax.training.rft_config import RftConfig
from persrm_jax.training.rft_programs import make_rft_programs, whole_batch
from persrm_jax.training.step import init_state
from persrm_jax.types import Groups

OPTIMIZER = OptimizerConfig(learning_rate=1e-6, warmup_steps=0, schedule="constant")
WORKLOADS = {"W1": (8, 4, 256, 128), "W2": (4, 8, 768, 96)}
"""Prompts, completions of each, prompt tokens, new tokens."""
MIB = 2**20


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Seconds of rollout and update, and temporary MiB of the update, each way."""
    P, G, S, T = WORKLOADS[name]
    mesh = make_mesh(MeshShape(1, 1))
    params = init_params(MODEL, jax.random.key(0), mesh)
    tokens = np.random.default_rng(0).integers(3, MODEL.vocab_size, (P, S)).astype(np.int32)
    prompts = (jnp.asarray(tokens), jnp.ones((P, S), bool))
    sampling = SamplingConfig(T)
    cfg = RftConfig(prompts=P, group_size=G, sampling=sampling, optimizer=OPTIMIZER)
    ways = {"shared": cfg, "plain": replace(cfg, shared_prefix=False)}
    programs: dict[str, Any] = {}
    states: dict[str, Any] = {}
    found: dict[str, dict[str, list[float]]] = {}
    for way, config in ways.items():
        # No token ends a completion: all have exactly T.
        programs[way] = make_rft_programs(
            MODEL, ComputeConfig(), config, LossConfig(kl_coef=0.0), ending=Ending((-1,), 0)
        )
        states[way] = init_state(params, make_optimizer(OPTIMIZER, 100), jax.random.key(1), mesh)
        found[way] = {"rollout_s": [], "train_s": []}
    for i in range(rounds + 1):
        for way, (generate, _, train) in programs.items():
            begin = time.perf_counter()
            keys = sequence_keys(jax.random.key(i), P * G)
            out = jax.block_until_ready(generate(states[way].params, *prompts, keys))
            middle = time.perf_counter()
            sampled, mask, logprobs, _ = (x.reshape(P, G, T) for x in out)
            rewards = jnp.mean(sampled % 2 == 0, axis=2)
            advantages = rewards - rewards.mean(axis=1, keepdims=True)
            batch = whole_batch(Groups(*prompts, sampled, mask), advantages, logprobs)
            states[way], metrics = train(states[way], batch)
            jax.block_until_ready(metrics)
            end = time.perf_counter()
            if i:
                found[way]["rollout_s"].append(middle - begin)
                found[way]["train_s"].append(end - middle)
            else:
                stats = train.lower(states[way], batch).compile().memory_analysis()
                found[way]["train_temporaries_mib"] = [stats.temp_size_in_bytes / MIB]
    return {way: {key: median(x) for key, x in times.items()} for way, times in found.items()}


def measure_ragged(name: str, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of an update, and positions computed, with groups padded and packed."""
    P, G, S, T = WORKLOADS[name]
    mesh = make_mesh(MeshShape(1, 1))
    params = init_params(MODEL, jax.random.key(0), mesh)
    rng = np.random.default_rng(0)
    prompt_mask = np.arange(S) >= S - rng.integers(1, S + 1, P)[:, None]
    mask = np.arange(T) < rng.integers(1, T + 1, (P, G))[..., None]
    tokens, own = (
        rng.integers(3, MODEL.vocab_size, x.shape, np.int32) for x in (prompt_mask, mask)
    )
    padded = Groups(tokens, prompt_mask, own, mask)
    ways = {
        "padded": padded,
        "packed": padded._replace(packed=pack_groups(padded, S + G * T)),
    }
    advantages = jnp.asarray(rng.standard_normal((P, G)), jnp.float32)
    logprobs = jnp.zeros((P, G, T))
    cfg = RftConfig(prompts=P, group_size=G, sampling=SamplingConfig(T), optimizer=OPTIMIZER)
    train = make_rft_programs(
        MODEL, ComputeConfig(), cfg, LossConfig(kl_coef=0.0), ending=Ending((-1,), 0)
    ).train
    optimizer = make_optimizer(OPTIMIZER, 100)
    states = {way: init_state(params, optimizer, jax.random.key(1), mesh) for way in ways}
    batches = {
        way: whole_batch(jax.device_put(groups), advantages, logprobs)
        for way, groups in ways.items()
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for i in range(rounds + 1):
        for way, batch in batches.items():
            begin = time.perf_counter()
            states[way], _ = jax.block_until_ready(train(states[way], batch))
            if i:
                seconds[way].append(time.perf_counter() - begin)
    assert ways["packed"].packed is not None
    positions = {"padded": P * (S + G * T), "packed": ways["packed"].packed.tokens.size}
    return {
        way: {"train_s": median(times), "positions": positions[way]}
        for way, times in seconds.items()
    }


@dataclass(frozen=True)
class Config:
    """What to measure."""

    rounds: int = 5
    """Turns of each way; one more is not counted."""
    out: Path | None = None
    """Where to write the numbers, as JSON."""


def main(args: Sequence[str]) -> None:
    """The command line."""
    cfg = cli.parse_flags(Config, "python -m benchmarks.rft_step", args)
    found = {name: measure(name, cfg.rounds) for name in WORKLOADS}
    for name, ways in found.items():
        for way, x in ways.items():
            total = x["rollout_s"] + x["train_s"]
            x["step_s"] = total
            print(
                f"{name} {way:>6}: {total:.2f} s a step ({x['rollout_s']:.2f} rollout, "
                f"{x['train_s']:.2f} train), {x['train_temporaries_mib']:,.0f} MiB"
            )
        print(f"{name}: plain / shared {ways['plain']['step_s'] / ways['shared']['step_s']:.2f}")
    ragged = {name: measure_ragged(name, cfg.rounds) for name in WORKLOADS}
    for name, rows in ragged.items():
        padded, packed = rows["padded"], rows["packed"]
        print(
            f"{name} ragged: {padded['train_s']:.2f} s an update padded, {packed['train_s']:.2f} "
            f"packed ({packed['positions'] / padded['positions']:.2f} of the positions): "
            f"{padded['train_s'] / packed['train_s']:.2f}"
        )
    if cfg.out is not None:
        result = {
            "provenance": provenance(),
            "workloads": WORKLOADS,
            "found": found,
            "ragged": ragged,
        }
        write_text(cfg.out, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    cli.run_main(main)
