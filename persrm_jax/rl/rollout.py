"""Prompts x G completions -> a Rollout, its judgements and its rewards."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh

from persrm_jax.data.batches import encode_pairs, left_pad
from persrm_jax.data.prompts import Judgement, PromptConfig, parse_judgement
from persrm_jax.distributed import fetch, place
from persrm_jax.models.params import Params
from persrm_jax.rl.rewards import RewardConfig, reward
from persrm_jax.sampling import Generate, sequence_keys
from persrm_jax.sharding import batch_sharding
from persrm_jax.tokenizer import Tokenizer
from persrm_jax.types import Groups, Pair, Rollout, right_verdict


@dataclass(frozen=True)
class JudgedRollout:
    """A rollout with what its texts say, B = P * G of them, grouped by pair."""

    rollout: Rollout
    completions: list[str]
    judgements: list[Judgement | None]
    rewards: np.ndarray
    correct: np.ndarray
    """Credit of each verdict: 1 right, 0.5 tie, 0 wrong or unparsed."""


def completion_texts(tokens: np.ndarray, mask: np.ndarray, tokenizer: Tokenizer) -> list[str]:
    """The text of each row, end token left out."""
    return [tokenizer.decode(row[keep].tolist()) for row, keep in zip(tokens, mask, strict=True)]


def roll_out(
    params: Params,
    generate: Generate,
    pairs: Sequence[Pair],
    group_size: int,
    key: jax.Array,
    *,
    tokenizer: Tokenizer,
    prompt: PromptConfig,
    reward_cfg: RewardConfig,
    prompt_length: int,
    mesh: Mesh,
) -> JudgedRollout:
    """Samples `group_size` judgements of each pair, in the pair's own order, and rewards them."""
    orders = [pair.order for pair in pairs]
    ids = encode_pairs(pairs, orders, tokenizer, prompt)
    tokens, mask = left_pad(ids, tokenizer.pad_id, prompt_length)
    keys = sequence_keys(key, len(pairs) * group_size)
    sharding = batch_sharding(mesh)
    out = fetch(generate(params, *place((tokens, mask, keys), sharding)))
    texts = completion_texts(out.tokens, out.mask, tokenizer)
    judgements = [parse_judgement(text, prompt) for text in texts]
    sides = [order for order in orders for _ in range(group_size)]
    rewards = [reward(j, side, reward_cfg) for j, side in zip(judgements, sides, strict=True)]
    credit = [
        0.0 if j is None else 0.5 if j.verdict == "tie" else float(j.verdict == right_verdict(side))
        for j, side in zip(judgements, sides, strict=True)
    ]
    sampled = (x.reshape(len(pairs), group_size, -1) for x in (out.tokens, out.mask))
    rollout = Rollout(
        Groups(tokens, mask, *sampled), out.logprobs.reshape(len(pairs), group_size, -1)
    )
    return JudgedRollout(
        rollout, texts, judgements, np.array(rewards, np.float32), np.array(credit, np.float32)
    )
