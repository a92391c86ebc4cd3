"""Ours: the programs that the trainer runs, with a prompt computed once for its group."""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers import workload as w
from benchmarks.peers.turns import Turns
from persrm_jax.models.config import ComputeConfig, ModelConfig
from persrm_jax.models.params import init_params
from persrm_jax.rl.advantages import group_relative
from persrm_jax.rl.losses import LossConfig
from persrm_jax.sampling import Ending, SamplingConfig, sequence_keys
from persrm_jax.sharding import MeshShape, make_mesh
from persrm_jax.training.optimizer import OptimizerConfig, make_optimizer
from persrm_jax.training.rft_config import RftConfig
from persrm_jax.training.rft_programs import make_rft_programs, whole_batch
from persrm_jax.training.step import init_state
from persrm_jax.types import Groups


def main(name: str) -> None:
    """Takes turns at steps of workload `name`."""
    size = w.WORKLOADS[name]
    P, G, T = size.prompts, size.group_size, size.new_tokens
    turns, tokenizer = Turns(), w.make_tokenizer()
    mesh = make_mesh(MeshShape(1, 1))
    model = ModelConfig(
        vocab_size=w.VOCAB_SIZE,
        num_layers=w.NUM_LAYERS,
        width=w.WIDTH,
        mlp_width=w.MLP_WIDTH,
        num_heads=w.NUM_HEADS,
        num_kv_heads=w.NUM_KV_HEADS,
        head_width=w.WIDTH // w.NUM_HEADS,
        max_positions=4096,
        qkv_bias=True,
    )
    optimizer = OptimizerConfig(learning_rate=w.LEARNING_RATE, warmup_steps=0, schedule="constant")
    cfg = RftConfig(prompts=P, group_size=G, sampling=SamplingConfig(T), optimizer=optimizer)
    programs = make_rft_programs(
        model, ComputeConfig(), cfg, LossConfig(kl_coef=0.0), ending=Ending((-1,), w.PAD_ID)
    )
    params = init_params(model, jax.random.key(0), mesh)
    state = init_state(params, make_optimizer(optimizer, 100), jax.random.key(1), mesh)
    del params
    step = 0
    while turns.begin():
        ids = np.array(tokenizer(w.make_prompts(size, step))["input_ids"], np.int32)
        prompts = (jnp.asarray(ids), jnp.ones(ids.shape, bool))
        keys = sequence_keys(jax.random.key(step), P * G)
        out = jax.device_get(programs.generate(state.params, *prompts, keys))
        turns.rolled_out()
        tokenizer.batch_decode(out.tokens)  # the others' rewards are given text as well
        rewards = jnp.asarray(w.share_even(out.tokens), jnp.float32)
        advantages = group_relative(rewards, G, cfg.advantage).reshape(P, G)
        tokens, mask, logprobs = (x.reshape(P, G, T) for x in out[:3])
        batch = whole_batch(Groups(*prompts, tokens, mask), advantages, logprobs)
        state, metrics = programs.train(state, batch)
        jax.block_until_ready((state, metrics))
        turns.end()
        step += 1


if __name__ == "__main__":
    main(sys.argv[1])
