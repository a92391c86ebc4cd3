"""Reinforcement fine-tuning: rollout -> rewards -> advantages -> loss -> update.

By default a rollout has one update, so that old log-probabilities are the policy's own: the ratio
is exactly 1 in value and carries the gradient (arXiv 2402.03300, eq. 3 with pi_old = pi). With
mini-batches or epochs they are computed before the first.
"""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from persrm_jax.chips import peak_flops
from persrm_jax.compilations import num_compilations
from persrm_jax.data.batches import batch_indices, bucketed, encode_pairs
from persrm_jax.data.packed_groups import pack_groups
from persrm_jax.data.prompts import PromptConfig, questions
from persrm_jax.distributed import fetch, place
from persrm_jax.models.config import ComputeConfig, ModelConfig
from persrm_jax.models.flops import train_flops
from persrm_jax.models.params import Params
from persrm_jax.models.trainable import TrainableConfig, join, trained_share
from persrm_jax.rl.advantages import group_relative
from persrm_jax.rl.losses import LossConfig
from persrm_jax.rl.own_reward import OwnReward
from persrm_jax.rl.rollout import (
    JudgedRollout,
    join_groups,
    join_judged,
    judge_ending,
    judge_rollout,
    roll_out,
    take_groups,
)
from persrm_jax.sharding import batch_sharding
from persrm_jax.tokenizer import Tokenizer
from persrm_jax.training.guard import StepLog
from persrm_jax.training.loop import StepFn
from persrm_jax.training.optimizer import make_schedule, num_updates
from persrm_jax.training.rft_config import RftConfig, needs_reference
from persrm_jax.training.rft_metrics import rollout_flops, rollout_histograms, rollout_metrics
from persrm_jax.training.rft_programs import RATIO_COUNTS, RftBatch, make_rft_programs
from persrm_jax.training.rollout_text import describe
from persrm_jax.training.step import ALL, TrainState, average, split_parts
from persrm_jax.types import Groups, Order, Pair


class _Drawn(NamedTuple):
    """What a step learns from."""

    judged: JudgedRollout
    groups: Groups
    """Of `judged`, on the mesh."""
    ref_logprobs: jax.Array | None
    metrics: dict[str, float]


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
        ref_params: the KL reference; None only where no KL has a weight.
        frozen: parameters that the state does not hold, as `trainable` has it.
    """
    if (ref_params is None) != (not needs_reference(cfg, loss_cfg)):
        raise ValueError("a reference goes with a weight of the KL divergence, and only with it")
    lengths = prompt_lengths(pairs, cfg, tokenizer, prompt, seed)
    check_pack_length(cfg, max(lengths, default=0))
    schedule = make_schedule(cfg.optimizer, cfg.num_updates)
    programs = make_rft_programs(
        model,
        compute,
        cfg,
        loss_cfg,
        ending=judge_ending(cfg.sampling, tokenizer, prompt),
        trainable=trainable,
    )
    split = jax.jit(partial(split_parts, num_parts=cfg.mini_batches))
    sharding = batch_sharding(mesh)
    own = OwnReward(cfg.reward.own, cfg.reward.own_timeout) if cfg.reward.own else None

    def put(groups: Groups) -> Groups:
        """Onto the mesh."""
        if cfg.pack_length:
            packed = pack_groups(
                groups,
                cfg.pack_length,
                num_devices=mesh.shape["data"],
                num_parts=cfg.num_parts,
            )
            groups = groups._replace(packed=packed)
        return place(groups, sharding)

    def draw(policy: Params, key: jax.Array, step: int) -> _Drawn:
        """Rolls out until enough groups have rewards that differ, or `cfg.max_rollouts` times."""
        parts: list[tuple[JudgedRollout, np.ndarray]] = []
        spent = {"rollout": 0.0, "reward": 0.0}
        decoding = 0.0
        missing, ref, num_new = cfg.prompts, None, 0
        for number in range(step * cfg.max_rollouts, (step + 1) * cfg.max_rollouts):
            start = begin = time.perf_counter()
            shares = roll_out(
                policy,
                programs.generate,
                _asked(pairs, cfg, prompt, number, seed),
                cfg.group_size,
                jax.random.fold_in(key, number),
                tokenizer=tokenizer,
                prompt=prompt,
                prompt_length=lengths[step],
                mesh=mesh,
                num_parts=cfg.rollout_parts,
            )
            drawn: list[Groups] = []
            judged_shares = []
            for asked, rollout in shares:
                rolled = time.perf_counter()
                spent["rollout"] += rolled - begin
                drawn.append(rollout.groups)
                if cfg.max_rollouts == 1 and len(drawn) == cfg.rollout_parts:
                    # The reference works while the last rewards are worked out.
                    groups = put(join_groups(drawn))
                    ref = None if ref_params is None else programs.score(ref_params, groups)
                judged_shares.append(
                    judge_rollout(
                        rollout,
                        asked,
                        tokenizer=tokenizer,
                        prompt=prompt,
                        reward=cfg.reward,
                        own=own,
                    )
                )
                begin = time.perf_counter()
                spent["reward"] += begin - rolled
            decoding += rolled - start  # beside rewards too
            judged = join_judged(judged_shares)
            if np.isnan(judged.rewards).all():
                raise ValueError(
                    f"--rft.reward.own {cfg.reward.own}: it failed for every completion of step "
                    f"{step}"
                )
            num_new += int(judged.rollout.groups.mask.sum())
            parts.append((judged, np.flatnonzero(judged.varied)[:missing]))
            missing -= len(parts[-1][1])
            if not missing:
                break
        metrics = {f"time/{phase}_s": seconds for phase, seconds in spent.items()}
        metrics |= {
            **rollout_metrics(join_judged([x for x, _ in parts])),
            "time/rollout_tokens_per_s": num_new / decoding,
            "reward/rollouts": float(len(parts)),
        }
        if cfg.max_rollouts > 1:
            if missing:  # shapes are fixed: flat groups, which are not kept, fill up
                parts.append((judged, np.flatnonzero(~judged.varied)[:missing]))
            judged = take_groups(parts)
            groups = put(judged.rollout.groups)
            ref = None if ref_params is None else programs.score(ref_params, groups)
        return _Drawn(judged, groups, ref, metrics)

    def make_batch(drawn: _Drawn, old: jax.Array | None) -> RftBatch:
        judged = drawn.judged
        rewards = judged.rewards
        if cfg.reward.kl and drawn.ref_logprobs is not None:
            policy = judged.rollout.logprobs if old is None else fetch(old)
            gap = np.where(judged.rollout.groups.mask, policy - fetch(drawn.ref_logprobs), 0)
            rewards = rewards - cfg.reward.kl * gap.sum(axis=2).ravel()
        advantages = group_relative(jnp.asarray(rewards), cfg.group_size, cfg.advantage)
        kept = np.ones(cfg.prompts, bool)
        if cfg.drop_flat or cfg.max_rollouts > 1:
            kept = judged.varied
        shape = (cfg.prompts, cfg.group_size)
        has_reward = ~np.isnan(judged.rewards).reshape(shape)
        if cfg.mask_truncated:
            has_reward &= ~np.array([r.truncated for r in judged.records]).reshape(shape)
        counts = judged.rollout.groups.mask & ~judged.rollout.forced
        counts &= kept[:, None, None] & has_reward[:, :, None]
        placed = place((kept, counts, advantages.reshape(shape)), sharding)
        sampler = place(judged.rollout.logprobs, sharding)
        return RftBatch(drawn.groups, *placed, sampler, drawn.ref_logprobs, old)

    def update(
        state: TrainState, batch: RftBatch
    ) -> tuple[TrainState, dict[str, float], list[np.ndarray]]:
        """With the metrics, and of several updates the counts of each's ratios."""
        if cfg.updates_a_step == 1:
            state, metrics = programs.train(state, batch, frozen)
            return state, {tag: float(x) for tag, x in jax.device_get(metrics).items()}, []
        parts = split(batch)
        found: list[Any] = []
        for _ in range(cfg.epochs):
            for i in range(cfg.mini_batches):
                part = jax.tree.map(lambda x, i=i: x[i], parts)
                state, metrics = programs.train(state, part, frozen)
                found.append(metrics)
        found = jax.device_get(found)
        ratios = [one.pop(RATIO_COUNTS) for one in found]
        read = [{tag: float(x) for tag, x in one.items()} for one in found]
        return state, average(read), ratios

    def step_fn(state: TrainState, step: int) -> tuple[TrainState, StepLog]:
        begin, compiled = time.perf_counter(), num_compilations()
        policy = join(state.params, frozen or {}, trainable)
        drawn = draw(policy, state.key, step)
        judged = drawn.judged
        scoring = time.perf_counter()
        old = programs.score(policy, drawn.groups) if cfg.updates_a_step > 1 else None
        del policy
        jax.block_until_ready((drawn.ref_logprobs, old))
        scored = time.perf_counter()
        batch = make_batch(drawn, old)
        kept = fetch(batch.kept)
        learning_rate = float(schedule(num_updates(state.opt_state)))
        state, scalars, ratios = update(state, batch)
        end = time.perf_counter()
        new = judged.rollout.groups.mask.sum(axis=2)
        prompts = judged.rollout.groups.prompt_mask.sum(axis=1)
        num_all = int(new.sum()) + int(prompts.sum()) * (1 if cfg.shared_prefix else cfg.group_size)
        flops = cfg.epochs * train_flops(
            rollout_flops(model, prompts, new, shared=cfg.shared_prefix),
            trained_share(state.params, frozen),
        )
        scalars |= drawn.metrics
        scalars |= {
            "loss/learning_rate": learning_rate,
            "reward/kept_groups": float(np.mean(kept)),
            "time/reference_s": scored - scoring,
            "time/train_s": end - scored,
            "time/rollout_share": drawn.metrics["time/rollout_s"] / (end - begin),
            "time/train_share": (end - scored) / (end - begin),
            "time/train_tokens_per_s": cfg.epochs * num_all / (end - scored),
            "time/tokens_per_s": num_all / (end - begin),
            "time/mfu": flops / (end - scored) / (peak_flops() * mesh.size),
            "time/compilations": float(num_compilations() - compiled),
        }
        if drawn.groups.packed is not None:
            scalars["length/padding"] = 1 - num_all / drawn.groups.packed.tokens.size
        texts, histograms = {}, {}
        if step % cfg.text_every == 0 or step == cfg.steps - 1:
            texts["rollout/sample"] = describe(judged, prompt)
        if step % cfg.histogram_every == 0 or step == cfg.steps - 1:
            advantages = fetch(batch.advantages)
            histograms = rollout_histograms(judged, advantages, kept, ratios)
        return state, StepLog(scalars, texts, histograms, batch)

    return step_fn


def check_pack_length(cfg: RftConfig, longest_prompt: int) -> None:
    """Refuses rows that could not hold a group.

    Raises:
        ValueError: `cfg.pack_length` is shorter than a group may be.
    """
    longest = longest_prompt + cfg.group_size * cfg.sampling.max_new_tokens
    if 0 < cfg.pack_length < longest:
        raise ValueError(
            f"--rft.pack-length {cfg.pack_length}: a group may take {longest} tokens (a prompt of "
            f"up to {longest_prompt}, and {cfg.group_size} completions of "
            f"{cfg.sampling.max_new_tokens}); give at least that"
        )


def _asked(
    pairs: Sequence[Pair], cfg: RftConfig, prompt: PromptConfig, number: int, seed: int
) -> list[tuple[Pair, Order]]:
    """The questions of rollout `number`."""
    count = cfg.prompts // prompt.questions_a_pair
    return questions([pairs[i] for i in batch_indices(len(pairs), count, number, seed)], prompt)


def prompt_lengths(
    pairs: Sequence[Pair], cfg: RftConfig, tokenizer: Tokenizer, prompt: PromptConfig, seed: int
) -> list[int]:
    """What each step pads its prompts to: one of `cfg.prompt_buckets` lengths, which are quantiles
    of the steps' longest.

    Raises:
        ValueError: a prompt that is too long, whichever step would meet it.
    """
    asked = questions(pairs, prompt)
    ids = encode_pairs([p for p, _ in asked], [o for _, o in asked], tokenizer, prompt)
    longest = bucketed(max(map(len, ids)))
    if cfg.prompt_buckets == 1 or cfg.steps == 0:
        return [longest] * cfg.steps
    per_pair = prompt.questions_a_pair
    of_pair = np.array([len(row) for row in ids]).reshape(-1, per_pair).max(axis=1)
    count = cfg.prompts // per_pair * cfg.max_rollouts
    needed = np.array(
        [of_pair[batch_indices(len(pairs), count, step, seed)].max() for step in range(cfg.steps)]
    )
    quantiles = np.quantile(needed, np.arange(1, cfg.prompt_buckets + 1) / cfg.prompt_buckets)
    edges = np.array([bucketed(int(np.ceil(q))) for q in quantiles])
    return [int(edges[np.searchsorted(edges, length)]) for length in needed]
