"""Reinforcement fine-tuning with GRPO: rollout -> rewards -> advantages -> loss -> update.

One update a rollout, so that old log-probabilities are the policy's own at the time of the update:
the ratio is exactly 1 in value and carries the gradient (arXiv 2402.03300, eq. 3 with pi_old = pi).
"""

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from kernels.linear_logprob import linear_logprob
from persrm_jax.chips import peak_flops
from persrm_jax.data.batches import batch_indices, bucketed, encode_pairs
from persrm_jax.data.prompts import PromptConfig
from persrm_jax.distributed import place
from persrm_jax.models.config import ComputeConfig, ModelConfig
from persrm_jax.models.decoder import vocab_weight
from persrm_jax.models.flops import group_flops, train_flops
from persrm_jax.models.groups import completion_states
from persrm_jax.models.logprobs import masked_mean
from persrm_jax.models.params import Params
from persrm_jax.models.trainable import TrainableConfig, join, trained_share
from persrm_jax.rl.advantages import AdvantageConfig, group_relative, varied_groups
from persrm_jax.rl.losses import LossConfig, rollout_loss
from persrm_jax.rl.rewards import RewardConfig
from persrm_jax.rl.rollout import JudgedRollout, roll_out
from persrm_jax.sampling import Generate, SamplingConfig, make_generate
from persrm_jax.sharding import batch_sharding
from persrm_jax.tokenizer import Tokenizer
from persrm_jax.training.guard import StepLog
from persrm_jax.training.loop import StepFn
from persrm_jax.training.optimizer import (
    OptimizerConfig,
    make_optimizer,
    make_schedule,
    num_updates,
)
from persrm_jax.training.step import (
    ALL,
    LossFn,
    Metrics,
    TrainState,
    TrainStep,
    make_train_step,
    map_parts,
)
from persrm_jax.types import Groups, Pair, Totals


@dataclass(frozen=True)
class RftConfig:
    """The second stage of training."""

    steps: int = 100
    """Rollouts, each with one optimizer step; 0 skips the stage."""
    prompts: int = 8
    """Pairs a step (P)."""
    group_size: int = 8
    """Completions of each (G)."""
    accumulate: int = 1
    """Parts in which an update, and the reference, take a step's pairs; more parts take less
    memory."""
    shared_prefix: bool = True
    """Whether updates and the reference compute a prompt once for its whole group: the same loss
    and gradients, for less."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-6, schedule="constant")
    )
    save_every: int = 20
    """Steps between checkpoints."""
    eval_every: int = 0
    """Steps between evaluations on dev authors; 0 for none."""
    patience: int = 0
    """Evaluations without a new best after which training ends with the best; 0: never."""
    text_every: int = 10
    """Steps between rollouts that TensorBoard shows as text."""

    def __post_init__(self) -> None:
        if self.patience and not self.eval_every:
            raise ValueError(f"--rft.patience {self.patience}: needs --rft.eval-every")
        if self.group_size < 2:
            raise ValueError(
                f"--rft.group-size {self.group_size}: a group needs at least 2 completions"
            )
        if self.sampling.temperature == 0:
            raise ValueError("--rft.sampling.temperature 0: a group would have one completion")


class RftBatch(NamedTuple):
    """A rollout, with what the loss weighs its tokens by. The group is the unit that is split over
    devices, and taken in parts."""

    groups: Groups
    sampler_logprobs: Float[Any, "P G T"]
    ref_logprobs: Float[Any, "P G T"] | None
    advantages: Float[Any, "P G"]


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
        mask = groups.mask.reshape(-1, groups.mask.shape[2])

        def rows(x: jax.Array) -> jax.Array:
            return x.reshape(len(mask), mask.shape[1], *x.shape[3:])

        loss, metrics, logprobs = rollout_loss(
            rows(completion_states(params, cfg, groups, compute, shared=shared)),
            vocab_weight(params),
            rows(groups.tokens),
            mask,
            batch.advantages.reshape(-1),
            loss_cfg,
            ref=None if batch.ref_logprobs is None else rows(batch.ref_logprobs),
            sampler=rows(batch.sampler_logprobs),
            temperature=temperature,
            totals=totals,
        )
        gap = jnp.where(mask, jnp.abs(logprobs - rows(batch.sampler_logprobs)), 0.0)
        metrics["sampler/logprob_gap_mean"] = masked_mean(gap, mask, totals.tokens)
        metrics["sampler/logprob_gap_max"] = jnp.max(gap)
        return loss, metrics

    return rft_loss


def count_rollout(batch: RftBatch) -> Totals:
    """Completions and their tokens."""
    mask = batch.groups.mask
    return Totals(jnp.asarray(mask.shape[0] * mask.shape[1]), jnp.sum(mask))


class RftPrograms(NamedTuple):
    """The compiled parts of a step."""

    generate: Generate
    """(params, tokens [P, S], mask [P, S], keys [P * G]) -> completions."""
    score: Callable[[Params, Groups], jax.Array]
    """(params, groups) -> log-probabilities [P, G, T] of their completions: the reference's."""
    train: TrainStep
    """(state, batch, frozen) -> (state, metrics)."""


def make_rft_programs(
    model: ModelConfig,
    compute: ComputeConfig,
    cfg: RftConfig,
    loss_cfg: LossConfig,
    *,
    end_ids: tuple[int, ...],
    pad_id: int,
    trainable: TrainableConfig = ALL,
) -> RftPrograms:
    """Compiled for the shapes that they meet."""
    temperature = cfg.sampling.temperature
    train = make_train_step(
        make_rft_loss(model, compute, loss_cfg, temperature=temperature, shared=cfg.shared_prefix),
        make_optimizer(cfg.optimizer, cfg.steps),
        count=count_rollout,
        accumulate=cfg.accumulate,
        trainable=trainable,
    )
    generate = make_generate(
        model,
        cfg.sampling,
        end_ids=end_ids,
        pad_id=pad_id,
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


def make_rft_step(
    pairs: Sequence[Pair],
    model: ModelConfig,
    compute: ComputeConfig,
    cfg: RftConfig,
    loss_cfg: LossConfig,
    *,
    ref_params: Params | None,
    tokenizer: Tokenizer,
    prompt: PromptConfig,
    seed: int,
    mesh: Mesh,
    trainable: TrainableConfig = ALL,
    frozen: Params | None = None,
) -> StepFn:
    """Returns (state, step) -> (state, log).

    Args:
        ref_params: the KL reference; None only where `loss_cfg.kl_coef` is 0.
        frozen: parameters that the state does not hold, as `trainable` has it.
    """
    if (ref_params is None) != (loss_cfg.kl_coef == 0):
        raise ValueError("a reference goes with a kl_coef above 0, and only with it")
    prompts = encode_pairs(pairs, [p.order for p in pairs], tokenizer, prompt)
    start = bucketed(max(map(len, prompts)))
    schedule = make_schedule(cfg.optimizer, cfg.steps)
    programs = make_rft_programs(
        model,
        compute,
        cfg,
        loss_cfg,
        end_ids=tokenizer.end_ids,
        pad_id=tokenizer.pad_id,
        trainable=trainable,
    )
    sharding = batch_sharding(mesh)

    def step_fn(state: TrainState, step: int) -> tuple[TrainState, StepLog]:
        begin = time.perf_counter()
        chosen = [pairs[i] for i in batch_indices(len(pairs), cfg.prompts, step, seed)]
        judged = roll_out(
            join(state.params, frozen or {}, trainable),
            programs.generate,
            chosen,
            cfg.group_size,
            jax.random.fold_in(state.key, step),
            tokenizer=tokenizer,
            prompt=prompt,
            reward_cfg=cfg.reward,
            prompt_length=start,
            mesh=mesh,
        )
        rolled = time.perf_counter()
        groups, logprobs = place(judged.rollout, sharding)
        ref = None
        if ref_params is not None:
            ref = jax.block_until_ready(programs.score(ref_params, groups))
        referred = time.perf_counter()
        advantages = group_relative(jnp.asarray(judged.rewards), cfg.group_size, cfg.advantage)
        grouped = advantages.reshape(-1, cfg.group_size)
        batch = RftBatch(groups, logprobs, ref, place(grouped, sharding))
        learning_rate = float(schedule(num_updates(state.opt_state)))
        state, metrics = programs.train(state, batch, frozen)
        scalars = {tag: float(value) for tag, value in jax.device_get(metrics).items()}
        end = time.perf_counter()
        new = judged.rollout.groups.mask.sum(axis=2)
        prompts = judged.rollout.groups.prompt_mask.sum(axis=1)
        num_new = int(new.sum())
        num_all = num_new + int(prompts.sum()) * (1 if cfg.shared_prefix else cfg.group_size)
        flops = rollout_flops(model, prompts, new, shared=cfg.shared_prefix)
        flops = train_flops(flops, trained_share(state.params, frozen))
        scalars |= rollout_metrics(judged, cfg, tokenizer.end_ids)
        scalars |= {
            "loss/learning_rate": learning_rate,
            "time/rollout_s": rolled - begin,
            "time/reference_s": referred - rolled,
            "time/train_s": end - referred,
            "time/rollout_tokens_per_s": num_new / (rolled - begin),
            "time/train_tokens_per_s": num_all / (end - referred),
            "time/tokens_per_s": num_all / (end - begin),
            "time/mfu": flops / (end - referred) / (peak_flops() * mesh.size),
        }
        texts = {}
        if step % cfg.text_every == 0 or step == cfg.steps - 1:
            texts["rollout/sample"] = describe(judged, chosen)
        return state, StepLog(scalars, texts, batch)

    return step_fn


def rollout_metrics(
    judged: JudgedRollout, cfg: RftConfig, end_ids: tuple[int, ...]
) -> dict[str, float]:
    """Rewards, verdicts and lengths of one rollout."""
    tokens, mask = judged.rollout.groups.tokens, judged.rollout.groups.mask
    lengths = mask.sum(axis=2).ravel()
    last = tokens.reshape(len(lengths), -1)[np.arange(len(lengths)), lengths - 1]
    parsed = [j for j in judged.judgements if j is not None]
    return {
        "reward/mean": float(judged.rewards.mean()),
        "reward/std": float(judged.rewards.std()),
        "reward/accuracy": float(judged.correct.mean()),
        "reward/format": len(parsed) / len(judged.judgements),
        "reward/ties": sum(j.verdict == "tie" for j in parsed) / len(judged.judgements),
        "reward/varied_groups": float(varied_groups(jnp.asarray(judged.rewards), cfg.group_size)),
        "length/completion": float(lengths.mean()),
        "length/truncated": float(1 - np.isin(last, end_ids).mean()),
        # Two runs that drew the same tokens agree here; 24 bits, which a float32 holds.
        "sampler/checksum": float(zlib.crc32(tokens.tobytes()) % 2**24),
    }


def rollout_flops(
    cfg: ModelConfig,
    prompts: Int[np.ndarray, " P"],
    completions: Int[np.ndarray, "P G"],
    *,
    shared: bool,
) -> float:
    """Those of a forward pass over a rollout of these lengths."""
    if shared:
        return group_flops(cfg, prompts, completions)
    G = completions.shape[1]
    return group_flops(cfg, np.repeat(prompts, G), completions.reshape(-1, 1))


def describe(judged: JudgedRollout, pairs: Sequence[Pair]) -> str:
    """The first pair of a rollout and its first completion, as Markdown."""
    pair = pairs[0]
    a, b = pair.candidates()
    parts = [f"**Exemplar** {text}" for text in pair.exemplars]
    parts += [f"**A** {a}", f"**B** {b}", f"**Right** {'A' if pair.order == 'AB' else 'B'}"]
    parts += [f"**Completion** (reward {judged.rewards[0]:+.1f})", "```", judged.completions[0]]
    return "\n\n".join(parts) + "\n```\n"
