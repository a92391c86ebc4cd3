"""The compiled parts of reinforcement fine-tuning: rollout, scoring, update."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kernels.linear_logprob import linear_logprob
from persrm_jax.models.config import ComputeConfig, ModelConfig
from persrm_jax.models.decoder import vocab_weight
from persrm_jax.models.groups import completion_states
from persrm_jax.models.logprobs import masked_mean
from persrm_jax.models.params import Params
from persrm_jax.models.trainable import TrainableConfig
from persrm_jax.rl.losses import LossConfig, rollout_loss
from persrm_jax.sampling import Ending, Generate, make_generate
from persrm_jax.training.optimizer import make_optimizer
from persrm_jax.training.rft_config import RftConfig
from persrm_jax.training.step import (
    ALL,
    LossFn,
    Metrics,
    TrainStep,
    make_train_step,
    map_parts,
)
from persrm_jax.types import Groups, Totals

RATIO_COUNTS = "ratio/each"
"""An update's token ratios, counted between `RATIO_EDGES`: no scalar as the other metrics are."""
RATIO_EDGES = (0.0, *(math.exp(n / 20) for n in range(-20, 21)), 1e3)
"""5 % apart around 1; what is beyond the last counts as below it."""


class RftBatch(NamedTuple):
    """A rollout, with what the loss weighs its tokens by. The group is the unit that is split over
    devices, and taken in parts."""

    groups: Groups
    kept: Bool[Any, " P"]
    """Groups that are in the update: means are taken over them."""
    counts: Bool[Any, "P G T"]
    """Tokens that something is learnt from."""
    advantages: Float[Any, "P G"]
    sampler_logprobs: Float[Any, "P G T"]
    ref_logprobs: Float[Any, "P G T"] | None
    old_logprobs: Float[Any, "P G T"] | None
    """The policy's own at the time of the rollout; None: it is still that policy."""


def whole_batch(
    groups: Groups,
    advantages: Float[Any, "P G"],
    sampler_logprobs: Float[Any, "P G T"],
    *,
    ref_logprobs: Float[Any, "P G T"] | None = None,
    old_logprobs: Float[Any, "P G T"] | None = None,
) -> RftBatch:
    """A rollout of which every group and token counts."""
    kept = jnp.ones(len(advantages), bool)
    return RftBatch(
        groups, kept, groups.mask, advantages, sampler_logprobs, ref_logprobs, old_logprobs
    )


def make_rft_loss(
    cfg: ModelConfig,
    compute: ComputeConfig,
    loss_cfg: LossConfig,
    *,
    temperature: float,
    shared: bool = True,
) -> LossFn:
    """GRPO's loss of an `RftBatch`."""

    def rft_loss(
        params: Params, batch: RftBatch, totals: Totals | None = None
    ) -> tuple[jax.Array, Metrics]:
        totals = totals or count_rollout(batch)
        groups = batch.groups
        mask = batch.counts.reshape(-1, batch.counts.shape[2])

        def rows(x: jax.Array) -> jax.Array:
            return x.reshape(len(mask), mask.shape[1], *x.shape[3:])

        loss, metrics, logprobs = rollout_loss(
            rows(completion_states(params, cfg, groups, compute, shared=shared)),
            vocab_weight(params),
            rows(groups.tokens),
            mask,
            batch.advantages.reshape(-1),
            loss_cfg,
            old=None if batch.old_logprobs is None else rows(batch.old_logprobs),
            ref=None if batch.ref_logprobs is None else rows(batch.ref_logprobs),
            sampler=rows(batch.sampler_logprobs),
            temperature=temperature,
            totals=totals,
        )
        drawn = logprobs if batch.old_logprobs is None else rows(batch.old_logprobs)
        gap = jnp.where(mask, jnp.abs(drawn - rows(batch.sampler_logprobs)), 0.0)
        metrics["sampler/logprob_gap_mean"] = masked_mean(gap, mask, totals.tokens)
        metrics["sampler/logprob_gap_max"] = jnp.max(gap)
        if batch.old_logprobs is not None:
            metrics[RATIO_COUNTS] = count_ratios(logprobs, drawn, mask)
        return loss, metrics

    return rft_loss


def count_rollout(batch: RftBatch) -> Totals:
    """Completions of the groups in the update, and their tokens."""
    return Totals(jnp.sum(batch.kept) * batch.counts.shape[1], jnp.sum(batch.counts))


def count_ratios(
    logprobs: Float[Array, "B T"], old: Float[Array, "B T"], mask: Bool[Array, "B T"]
) -> Int[Array, " num_bins"]:
    """Tokens whose ratio exp(logprobs - old) lies between one of `RATIO_EDGES` and the next."""
    # From each edge on: comparisons and sums, which shard and need no scatter.
    inner = jnp.log(jnp.array(RATIO_EDGES[1:-1]))
    above = jnp.sum(mask[..., None] & ((logprobs - old)[..., None] >= inner), axis=(0, 1))
    whole = jnp.concatenate([jnp.sum(mask)[None], above, jnp.zeros(1, above.dtype)])
    return whole[:-1] - whole[1:]


class RftPrograms(NamedTuple):
    """The compiled parts of a step."""

    generate: Generate
    """(params, tokens [P, S], mask [P, S], keys [P * G]) -> completions."""
    score: Callable[[Params, Groups], jax.Array]
    """(params, groups) -> log-probabilities [P, G, T] of their completions: the reference's, or the
    policy's own before its updates."""
    train: TrainStep
    """(state, batch, frozen) -> (state, metrics)."""


def make_rft_programs(
    model: ModelConfig,
    compute: ComputeConfig,
    cfg: RftConfig,
    loss_cfg: LossConfig,
    *,
    ending: Ending,
    trainable: TrainableConfig = ALL,
) -> RftPrograms:
    """Compiled for the shapes that they meet."""
    temperature = cfg.sampling.temperature
    train = make_train_step(
        make_rft_loss(model, compute, loss_cfg, temperature=temperature, shared=cfg.shared_prefix),
        make_optimizer(cfg.optimizer, cfg.num_updates),
        count=count_rollout,
        accumulate=cfg.accumulate,
        trainable=trainable,
    )
    generate = make_generate(
        model,
        cfg.sampling,
        ending,
        num_samples=cfg.group_size,
        compute=compute,
    )

    @jax.jit
    def score(params: Params, groups: Groups) -> jax.Array:
        def part(groups: Groups) -> jax.Array:
            hidden = completion_states(params, model, groups, compute, shared=cfg.shared_prefix)
            logprobs, _ = linear_logprob(
                hidden.reshape(-1, hidden.shape[3]),
                vocab_weight(params),
                groups.tokens.reshape(-1),
                temperature=temperature,
                impl=loss_cfg.impl,
            )
            return logprobs.reshape(groups.tokens.shape)

        return map_parts(part, groups, cfg.accumulate)

    return RftPrograms(generate, score, train)
