"""Tunix's GRPOLearner with its own rollout engine, no remat."""

import sys
from collections.abc import Iterator

import jax
import numpy as np
import optax
from flax import nnx
from tunix.models.qwen2.model import ModelConfig, Qwen2
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
from tunix.rl.rollout.base_rollout import RolloutConfig

from benchmarks.peers import workload as w
from benchmarks.peers.turns import Turns

MAX_STEPS = 1000
"""More than there are turns."""


def main(name: str) -> None:
    """Takes turns at steps of workload `name`."""
    size = w.WORKLOADS[name]
    turns, tokenizer = Turns(), w.make_tokenizer()
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    config = ModelConfig(
        num_layers=w.NUM_LAYERS,
        vocab_size=w.VOCAB_SIZE,
        embed_dim=w.WIDTH,
        hidden_dim=w.MLP_WIDTH,
        num_heads=w.NUM_HEADS,
        head_dim=w.WIDTH // w.NUM_HEADS,
        num_kv_heads=w.NUM_KV_HEADS,
        rope_theta=1_000_000,
        norm_eps=1e-6,
        use_tied_embedding=True,
    )
    with mesh:
        actor = Qwen2(config, rngs=nnx.Rngs(0))
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(w.LEARNING_RATE, weight_decay=0.0)
    )
    cluster = RLCluster(
        actor=actor,
        tokenizer=tokenizer,
        cluster_config=ClusterConfig(
            role_to_mesh=dict.fromkeys((Role.ACTOR, Role.REFERENCE, Role.ROLLOUT), mesh),
            training_config=RLTrainingConfig(
                actor_optimizer=optimizer, eval_every_n_steps=MAX_STEPS, max_steps=MAX_STEPS
            ),
            rollout_config=RolloutConfig(
                max_tokens_to_generate=size.new_tokens,
                max_prompt_length=size.prompt_tokens,
                kv_cache_size=size.prompt_tokens + size.new_tokens,
                temperature=1.0,
                top_p=1.0,
                eos_tokens=[-1],  # no token ends a completion
            ),
        ),
    )

    def reward(prompts: list[str], completions: list[str], **kwargs: object) -> list[float]:
        turns.rolled_out()
        ids = tokenizer(list(completions))["input_ids"]
        if {len(row) for row in ids} != {size.new_tokens}:
            raise ValueError("a completion ended early")
        return w.share_even(ids)

    def batches() -> Iterator[dict[str, np.ndarray]]:
        """Asked for the next step's batch, the one before is done but for what is in flight."""
        for step in range(MAX_STEPS):
            trainer = cluster.actor_trainer
            jax.block_until_ready((nnx.state(trainer.model), nnx.state(trainer.optimizer)))
            turns.end()
            if not turns.begin():
                return
            yield {"prompts": np.array(w.make_prompts(size, step))}

    GRPOLearner(
        rl_cluster=cluster,
        algo_config=GRPOConfig(num_generations=size.group_size, num_iterations=1, beta=0.0),
        reward_fns=reward,
    ).train(batches())


if __name__ == "__main__":
    main(sys.argv[1])
