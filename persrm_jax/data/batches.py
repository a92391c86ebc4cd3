"""Records -> padded, masked token batches. A batch is a function of (seed, step), so that a run
resumes at any step without replaying the stream."""

from collections.abc import Sequence

import numpy as np

from persrm_jax.data.prompts import Messages, PromptConfig, judge_messages
from persrm_jax.tokenizer import Tokenizer
from persrm_jax.types import Batch, Order, Pair, Trace

BUCKET = 32
"""Lengths are rounded up to a multiple of this, so that few shapes are compiled."""


def bucketed(length: int) -> int:
    """`length` rounded up to a multiple of `BUCKET`."""
    return -(-length // BUCKET) * BUCKET


def batch_indices(num_records: int, batch_size: int, step: int, seed: int) -> np.ndarray:
    """The records of batch `step`: epochs in fresh seeded orders, laid end to end."""
    start = step * batch_size
    indices = []
    for position in range(start, start + batch_size):
        epoch, offset = divmod(position, num_records)
        indices.append((epoch, offset))
    orders = {
        epoch: np.random.default_rng([seed, 7, epoch]).permutation(num_records)
        for epoch in {epoch for epoch, _ in indices}
    }
    return np.array([orders[epoch][offset] for epoch, offset in indices])


def encode_prompt(
    messages: Messages, name: str, tokenizer: Tokenizer, cfg: PromptConfig
) -> list[int]:
    """Token ids of a prompt.

    Raises:
        ValueError: it is longer than `cfg.max_tokens`.
    """
    ids = tokenizer.encode_chat(messages)
    if len(ids) > cfg.max_tokens:
        raise ValueError(
            f"pair {name}: its prompt takes {len(ids)} tokens and --prompt.max-tokens is "
            f"{cfg.max_tokens}; lower --pairs.num-exemplars or --corpus.max-words"
        )
    return ids


def encode_pairs(
    pairs: Sequence[Pair], orders: Sequence[Order], tokenizer: Tokenizer, cfg: PromptConfig
) -> list[list[int]]:
    """Prompts of judgements."""
    return [
        encode_prompt(judge_messages(pair, order, cfg), pair.pair_id, tokenizer, cfg)
        for pair, order in zip(pairs, orders, strict=True)
    ]


def encode_traces(
    traces: Sequence[Trace], tokenizer: Tokenizer, cfg: PromptConfig
) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, response ids with the end token) of each trace."""
    return [
        (
            encode_prompt(trace.messages, trace.pair_id, tokenizer, cfg),
            [*tokenizer.encode(trace.response), tokenizer.end_id],
        )
        for trace in traces
    ]


def sft_batch(
    rows: Sequence[tuple[list[int], list[int]]], pad_id: int, length: int | None = None
) -> Batch:
    """Rows of prompt and response, padded on the right; only responses carry loss."""
    T = length or bucketed(max(len(prompt) + len(response) for prompt, response in rows))
    tokens = np.full((len(rows), T), pad_id, np.int32)
    segment_ids = np.zeros((len(rows), T), np.int32)
    loss_mask = np.zeros((len(rows), T), bool)
    for i, (prompt, response) in enumerate(rows):
        end = len(prompt) + len(response)
        tokens[i, :end] = [*prompt, *response]
        segment_ids[i, :end] = 1
        loss_mask[i, len(prompt) : end] = True
    positions = np.tile(np.arange(T, dtype=np.int32), (len(rows), 1))
    return Batch(tokens, positions, segment_ids, loss_mask)


def left_pad(
    prompts: Sequence[Sequence[int]], pad_id: int, length: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as (tokens [B, S], mask [B, S]), padded on the left so that all end together."""
    S = length or bucketed(max(map(len, prompts)))
    tokens = np.full((len(prompts), S), pad_id, np.int32)
    mask = np.zeros((len(prompts), S), bool)
    for i, prompt in enumerate(prompts):
        tokens[i, S - len(prompt) :] = prompt
        mask[i, S - len(prompt) :] = True
    return tokens, mask
