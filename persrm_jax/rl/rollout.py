"""Questions x G completions -> a rollout, and what its texts are worth."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float

from persrm_jax.data.batches import encode_pairs, left_pad
from persrm_jax.data.prompts import CLOSING, THINK_END, PromptConfig, parse_judgement
from persrm_jax.distributed import fetch, place
from persrm_jax.models.params import Params
from persrm_jax.rl.own_reward import OwnReward
from persrm_jax.rl.rewards import CompletionRecord, RewardConfig, credit, score
from persrm_jax.sampling import Ending, Generate, SamplingConfig, make_ending, sequence_keys
from persrm_jax.sharding import batch_sharding
from persrm_jax.tokenizer import Tokenizer
from persrm_jax.types import Groups, Order, Pair, Rollout


@dataclass(frozen=True)
class JudgedRollout:
    """A rollout with what its texts say, B = P * G of them, grouped by question."""

    rollout: Rollout
    records: list[CompletionRecord]
    components: dict[str, Float[np.ndarray, " B"]]
    """Of the reward, unweighted."""
    rewards: Float[np.ndarray, " B"]
    """NaN where a function of the user's own gave none."""

    @property
    def group_size(self) -> int:
        """G."""
        return self.rollout.groups.tokens.shape[1]

    @property
    def correct(self) -> Float[np.ndarray, " B"]:
        """Credit of each verdict: 1 right, 0.5 tie, 0 wrong or unparsed."""
        return np.array([credit(record) for record in self.records], np.float32)

    @property
    def varied(self) -> Bool[np.ndarray, " P"]:
        """Groups whose rewards are not all equal: the others give no policy gradient."""
        groups = self.rewards.reshape(-1, self.group_size)
        low = np.where(np.isnan(groups), np.inf, groups).min(axis=1)
        return np.where(np.isnan(groups), -np.inf, groups).max(axis=1) > low


def judge_ending(sampling: SamplingConfig, tokenizer: Tokenizer, prompt: PromptConfig) -> Ending:
    """What ends a judge's completions.

    Raises:
        ValueError: reasoning is to be closed by force where there is none.
    """
    if sampling.answer_tokens and not prompt.think:
        raise ValueError("answer-tokens closes reasoning, and --prompt.no-think has none")
    return make_ending(sampling, tokenizer, closed_by=THINK_END, closing=CLOSING)


def completion_texts(tokens: np.ndarray, mask: np.ndarray, tokenizer: Tokenizer) -> list[str]:
    """The text of each row, end token left out."""
    return [tokenizer.decode(row[keep].tolist()) for row, keep in zip(tokens, mask, strict=True)]


def roll_out(
    params: Params,
    generate: Generate,
    asked: Sequence[tuple[Pair, Order]],
    group_size: int,
    key: jax.Array,
    *,
    tokenizer: Tokenizer,
    prompt: PromptConfig,
    prompt_length: int,
    mesh: Mesh,
    num_parts: int = 1,
) -> Iterator[tuple[Sequence[tuple[Pair, Order]], Rollout]]:
    """Samples `group_size` answers to each question, as NumPy arrays: yields `num_parts` shares of
    the questions with their rollouts. The device goes on with the next while one is looked at. What
    is drawn does not depend on the parts.

    Args:
        asked: a multiple of `num_parts`.
    """
    pairs, orders = zip(*asked, strict=True)
    ids = encode_pairs(pairs, orders, tokenizer, prompt)
    tokens, mask = left_pad(ids, tokenizer.pad_id, prompt_length)
    keys = sequence_keys(key, len(asked) * group_size)
    sharding = batch_sharding(mesh)
    size = len(asked) // num_parts
    starts = range(0, len(asked), size)
    running = []
    for at in starts:
        here, rows = slice(at, at + size), slice(at * group_size, (at + size) * group_size)
        given = place((tokens[here], mask[here], keys[rows]), sharding)
        running.append(generate(params, *given))
    for at, out in zip(starts, running, strict=True):
        here = slice(at, at + size)
        sampled, mask_, logprobs, forced = (x.reshape(size, group_size, -1) for x in fetch(out))
        groups = Groups(tokens[here], mask[here], sampled, mask_)
        yield asked[here], Rollout(groups, logprobs, forced)


def judge_rollout(
    rollout: Rollout,
    asked: Sequence[tuple[Pair, Order]],
    *,
    tokenizer: Tokenizer,
    prompt: PromptConfig,
    reward: RewardConfig,
    own: OwnReward | None = None,
) -> JudgedRollout:
    """Reads and rewards a rollout's texts.

    Args:
        own: the function that `reward.own` names.
    """
    tokens, mask = rollout.groups.tokens, rollout.groups.mask
    G, T = tokens.shape[1:]
    lengths = mask.sum(axis=2).ravel()
    tokens, mask = tokens.reshape(-1, T), mask.reshape(-1, T)
    last = tokens[np.arange(len(lengths)), lengths - 1]
    truncated = ~np.isin(last, tokenizer.end_ids)
    texts = completion_texts(tokens, mask, tokenizer)
    judgements = [parse_judgement(text, prompt) for text in texts]
    scores = [None if j is None else j.score_a for j in judgements]
    records = []
    for row, text in enumerate(texts):
        question = row // G
        pair, order = asked[question]
        rivals: list[float | None] = []
        if prompt.answer == "score":  # its pair's other text is the neighbouring question
            other = (question ^ 1) * G
            rivals = scores[other : other + G]
        records.append(
            CompletionRecord(
                pair,
                order,
                text,
                judgements[row],
                num_tokens=int(lengths[row]),
                max_tokens=T,
                truncated=bool(truncated[row]),
                rivals=tuple(rival for rival in rivals if rival is not None),
            )
        )
    found = None if own is None else own(records, G)
    return JudgedRollout(rollout, records, *score(records, reward, found))


def join_groups(groups: Sequence[Groups]) -> Groups:
    """Several as one."""
    return jax.tree.map(lambda *xs: np.concatenate(xs), *groups)


def take_groups(parts: Sequence[tuple[JudgedRollout, np.ndarray]]) -> JudgedRollout:
    """The given groups (their numbers) of each rollout, as one."""
    groups = [jax.tree.map(lambda x, ids=ids: x[ids], judged.rollout) for judged, ids in parts]
    rows = [
        (judged, (ids[:, None] * judged.group_size + np.arange(judged.group_size)).ravel())
        for judged, ids in parts
    ]
    return JudgedRollout(
        jax.tree.map(lambda *xs: np.concatenate(xs), *groups),
        [judged.records[row] for judged, some in rows for row in some],
        {
            name: np.concatenate([judged.components[name][some] for judged, some in rows])
            for name in parts[0][0].components
        },
        np.concatenate([judged.rewards[some] for judged, some in rows]),
    )


def join_judged(parts: Sequence[JudgedRollout]) -> JudgedRollout:
    """Several as one."""
    return take_groups([(judged, np.arange(len(judged.varied))) for judged in parts])
