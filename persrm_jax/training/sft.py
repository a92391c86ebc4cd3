"""Supervised fine-tuning: the model learns to write the traces."""

import time
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from kernels.linear_loss import linear_loss
from persrm_jax.chips import peak_flops
from persrm_jax.data.feed import Feed
from persrm_jax.distributed import place_rows
from persrm_jax.models.config import ComputeConfig, ModelConfig
from persrm_jax.models.decoder import vocab_weight
from persrm_jax.models.flops import forward_flops, train_flops
from persrm_jax.models.groups import completion_states
from persrm_jax.models.logprobs import masked_mean, token_states
from persrm_jax.models.params import Params
from persrm_jax.models.trainable import TrainableConfig, trained_share
from persrm_jax.rl.losses import DEFAULT, LossConfig
from persrm_jax.sharding import batch_sharding
from persrm_jax.training.guard import StepLog
from persrm_jax.training.loop import StepFn
from persrm_jax.training.optimizer import (
    OptimizerConfig,
    make_optimizer,
    make_schedule,
    num_updates,
)
from persrm_jax.training.step import ALL, LossFn, Metrics, TrainState, TrainStep, make_train_step
from persrm_jax.types import Batch, Groups, Totals


@dataclass(frozen=True)
class SftConfig:
    """The first stage of training."""

    steps: int = 100
    """Optimizer steps; 0 skips the stage."""
    batch_size: int = 32
    """Rows a step: traces, or bins or groups of traces."""
    pack_length: int = 0
    """Tokens of a bin that traces are packed into, without sight of each other; 0: no packing."""
    group_size: int = 1
    """Traces of a row, at most, that show the same exemplars (`--pairs.exemplars-shared-by`), whose
    common beginning is then computed once, forward and backward; 1: each row is one trace."""
    accumulate: int = 1
    """Parts in which a step takes its traces; more parts take less memory."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    save_every: int = 100
    """Steps between checkpoints."""
    eval_every: int = 0
    """Steps between evaluations on dev authors; 0 for none."""
    patience: int = 0
    """Evaluations without a new best after which training ends with the best; 0: never."""
    stop_accuracy: float = 2.0
    """Greedy dev accuracy at which SFT ends early (above 1: never). RFT learns from groups in which
    some completions are right and some wrong; an SFT model without doubt leaves it none."""

    def __post_init__(self) -> None:
        if self.group_size < 1:
            raise ValueError(f"--sft.group-size {self.group_size}: must be at least 1")
        if self.group_size > 1 and self.pack_length:
            raise ValueError(
                f"--sft.pack-length {self.pack_length} and --sft.group-size {self.group_size}: "
                "rows hold either bins of traces or groups; choose one"
            )
        if self.patience and not self.eval_every:
            raise ValueError(f"--sft.patience {self.patience}: needs --sft.eval-every")


def make_sft_loss(
    cfg: ModelConfig, compute: ComputeConfig, loss_cfg: LossConfig = DEFAULT
) -> LossFn:
    """Mean negative log-likelihood of the batch's response tokens, in nats. Of `loss_cfg` only how
    a loss is computed matters here."""

    def sft_loss(
        params: Params, batch: Batch | Groups, totals: Totals | None = None
    ) -> tuple[jax.Array, Metrics]:
        totals = totals or count_batch(batch)
        if isinstance(batch, Groups):
            hidden = completion_states(params, cfg, batch, compute, shared=True)
            labels, mask = batch.tokens, jnp.ravel(batch.mask)
        else:
            hidden, labels = token_states(params, cfg, batch, compute)
            mask = jnp.ravel(batch.loss_mask[:, 1:])
        loss, _, entropy = linear_loss(
            _negative_log_likelihood,
            hidden.reshape(-1, hidden.shape[-1]),
            vocab_weight(params),
            labels.reshape(-1),
            mask / jnp.maximum(totals.tokens, 1),
            accumulator=loss_cfg.accumulator,
            impl=loss_cfg.impl,
            counts=mask,
        )
        return loss, {
            "loss/total": loss,
            "entropy/mean": masked_mean(entropy, mask, totals.tokens),
            "length/response": jnp.sum(mask) / totals.sequences,
        }

    return sft_loss


def _negative_log_likelihood(
    logprobs: jax.Array, entropy: jax.Array, weights: jax.Array
) -> jax.Array:
    return -weights * jnp.where(weights != 0, logprobs, 0.0)


def count_batch(batch: Batch | Groups) -> Totals:
    """Sequences and loss tokens of a batch. Segments of a row are numbered from 1; a group's mask
    holds what carries loss."""
    if isinstance(batch, Groups):
        return Totals(jnp.sum(jnp.any(batch.mask, axis=2)), jnp.sum(batch.mask))
    return Totals(jnp.sum(jnp.max(batch.segment_ids, axis=1)), jnp.sum(batch.loss_mask[:, 1:]))


def make_sft_program(
    model: ModelConfig,
    compute: ComputeConfig,
    cfg: SftConfig,
    trainable: TrainableConfig = ALL,
    loss_cfg: LossConfig = DEFAULT,
) -> TrainStep:
    """The compiled part of a step: (state, batch, frozen) -> (state, metrics)."""
    return make_train_step(
        make_sft_loss(model, compute, loss_cfg),
        make_optimizer(cfg.optimizer, cfg.steps),
        count=count_batch,
        accumulate=cfg.accumulate,
        trainable=trainable,
    )


def make_sft_step(
    feed: Feed,
    model: ModelConfig,
    compute: ComputeConfig,
    cfg: SftConfig,
    *,
    mesh: Mesh,
    trainable: TrainableConfig = ALL,
    frozen: Params | None = None,
    loss_cfg: LossConfig = DEFAULT,
) -> StepFn:
    """Returns (state, step) -> (state, log) over the batches of a feed (`data.feed`).

    Args:
        frozen: parameters that the state does not hold, as `trainable` has it.
    """
    train_step = make_sft_program(model, compute, cfg, trainable, loss_cfg)
    schedule = make_schedule(cfg.optimizer, cfg.steps)
    sharding = batch_sharding(mesh)

    def step_fn(state: TrainState, step: int) -> tuple[TrainState, StepLog]:
        start = time.perf_counter()
        fed = feed(step)
        num_tokens = int(fed.lengths.sum())
        placed = place_rows(fed.make, fed.num_rows, sharding)
        learning_rate = float(schedule(num_updates(state.opt_state)))
        state, metrics = train_step(state, placed, frozen)
        scalars = {tag: float(value) for tag, value in jax.device_get(metrics).items()}
        seconds = time.perf_counter() - start
        scored = scalars["length/response"] * fed.num_traces
        forward = forward_flops(model, fed.lengths, fed.after, scored=scored)
        flops = train_flops(forward, trained_share(state.params, frozen))
        return state, StepLog(
            {
                **scalars,
                "loss/learning_rate": learning_rate,
                "time/train_s": seconds,
                "time/tokens_per_s": num_tokens / seconds,
                "time/mfu": flops / seconds / (peak_flops() * mesh.size),
                "length/padding": 1 - num_tokens / (fed.num_rows * feed.row_length),
            },
            batch=placed,
        )

    return step_fn
