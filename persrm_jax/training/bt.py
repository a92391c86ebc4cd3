"""A scalar reward model from pairs, after Bradley and Terry: the reasoning judge's rival without
reasoning."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Int

from persrm_jax.chips import peak_flops
from persrm_jax.data.batches import batch_indices, bucketed, left_pad
from persrm_jax.distributed import place_rows
from persrm_jax.models.config import ComputeConfig, ModelConfig
from persrm_jax.models.flops import forward_flops, train_flops
from persrm_jax.models.params import Params
from persrm_jax.models.reward import rewards
from persrm_jax.models.trainable import TrainableConfig, trained_share
from persrm_jax.sharding import batch_sharding
from persrm_jax.training.guard import StepLog
from persrm_jax.training.loop import StepFn
from persrm_jax.training.optimizer import (
    OptimizerConfig,
    make_optimizer,
    make_schedule,
    num_updates,
)
from persrm_jax.training.step import ALL, LossFn, Metrics, TrainState, make_train_step
from persrm_jax.types import Totals


@dataclass(frozen=True)
class BtConfig:
    """Training of the scalar Bradley-Terry reward model."""

    steps: int = 100
    """Optimizer steps."""
    batch_size: int = 64
    """Pairs a step."""
    accumulate: int = 1
    """Parts in which a step takes its pairs; more parts take less memory."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    save_every: int = 100
    """Steps between checkpoints."""
    eval_every: int = 0
    """Steps between evaluations on dev authors; 0 for none."""
    patience: int = 0
    """Evaluations without a new best after which training ends with the best; 0: never."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise ValueError(f"--bt.{flag} {getattr(self, name)}: must be at least 1")
        if self.patience and not self.eval_every:
            raise ValueError(f"--bt.patience {self.patience}: needs --bt.eval-every")


class PairBatch(NamedTuple):
    """Prompts that show one text each: of every pair the chosen text's, then the rejected one's;
    padded on the left."""

    tokens: Int[Any, "B 2 T"]
    mask: Bool[Any, "B 2 T"]


PromptPair = tuple[list[int], list[int]]
"""Ids of the prompts that show a pair's chosen and its rejected text."""


def pair_batch(prompts: Sequence[PromptPair], pad_id: int, length: int) -> PairBatch:
    """Prompts of pairs as one batch."""
    tokens, mask = left_pad([ids for pair in prompts for ids in pair], pad_id, length)
    shape = (len(prompts), 2, length)
    return PairBatch(tokens.reshape(shape), mask.reshape(shape))


def count_pairs(batch: PairBatch) -> Totals:
    """Pairs and their tokens."""
    return Totals(jnp.asarray(batch.tokens.shape[0]), jnp.sum(batch.mask))


def make_bt_loss(cfg: ModelConfig, compute: ComputeConfig) -> LossFn:
    """-log sigmoid(r_chosen - r_rejected), mean over pairs, in nats: the negative log-likelihood of
    the preferences under Bradley and Terry's model (1952), as in InstructGPT (arXiv 2203.02155,
    eq. 1) with one pair a comparison."""

    def bt_loss(
        params: Params, batch: PairBatch, totals: Totals | None = None
    ) -> tuple[jax.Array, Metrics]:
        num_pairs = (totals or count_pairs(batch)).sequences
        length = batch.tokens.shape[2]
        tokens, mask = (x.reshape(-1, length) for x in batch)
        found = rewards(params, cfg, tokens, mask, compute).reshape(-1, 2)
        margins = found[:, 0] - found[:, 1]
        loss = -jnp.sum(jax.nn.log_sigmoid(margins)) / num_pairs
        right = jnp.where(margins == 0, 0.5, margins > 0)
        return loss, {
            "loss/total": loss,
            "reward/accuracy": jnp.sum(right) / num_pairs,
            "reward/margin": jnp.sum(margins) / num_pairs,
        }

    return bt_loss


def make_bt_step(
    prompts: Sequence[PromptPair],
    model: ModelConfig,
    compute: ComputeConfig,
    cfg: BtConfig,
    *,
    pad_id: int,
    seed: int,
    mesh: Mesh,
    trainable: TrainableConfig = ALL,
    frozen: Params | None = None,
) -> StepFn:
    """Returns (state, step) -> (state, log) over encoded pairs, all batches of one length.

    Args:
        frozen: parameters that the state does not hold, as `trainable` has it.
    """
    train_step = make_train_step(
        make_bt_loss(model, compute),
        make_optimizer(cfg.optimizer, cfg.steps),
        count=count_pairs,
        accumulate=cfg.accumulate,
        trainable=trainable,
    )
    schedule = make_schedule(cfg.optimizer, cfg.steps)
    length = bucketed(max(len(ids) for pair in prompts for ids in pair))
    sharding = batch_sharding(mesh)

    def step_fn(state: TrainState, step: int) -> tuple[TrainState, StepLog]:
        start = time.perf_counter()
        chosen = batch_indices(len(prompts), cfg.batch_size, step, seed).tolist()

        def make(rows: list[int]) -> PairBatch:
            return pair_batch([prompts[chosen[row]] for row in rows], pad_id, length)

        placed = place_rows(make, len(chosen), sharding)
        learning_rate = float(schedule(num_updates(state.opt_state)))
        state, metrics = train_step(state, placed, frozen)
        scalars = {tag: float(value) for tag, value in jax.device_get(metrics).items()}
        seconds = time.perf_counter() - start
        trained = np.array([len(ids) for i in chosen for ids in prompts[i]])
        forward = forward_flops(model, trained, scored=0.0)
        flops = train_flops(forward, trained_share(state.params, frozen))
        return state, StepLog(
            {
                **scalars,
                "loss/learning_rate": learning_rate,
                "time/train_s": seconds,
                "time/tokens_per_s": int(trained.sum()) / seconds,
                "time/mfu": flops / seconds / (peak_flops() * mesh.size),
                "length/padding": 1 - int(trained.sum()) / placed.tokens.size,
            },
            batch=placed,
        )

    return step_fn
