"""Records -> padded, masked token batches. A batch is a function of (seed, step), so that a run
resumes at any step without replaying the stream."""

import bisect
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import numpy as np

from persrm_jax.data.prompts import Messages, PromptConfig, judge_messages
from persrm_jax.distributed import share_work
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


Row = tuple[list[int], list[int]]
"""Ids of a prompt and of its response."""


class Rows:
    """Rows that are encoded when asked for.

    Of several processes each encodes a share to learn the lengths of all, and then the rows that it
    places.
    """

    def __init__(self, encode: Callable[[int], Row], num_rows: int) -> None:
        self._encode = cache(encode)
        self.lengths = share_work(lambda i: sum(map(len, self._encode(i))), num_rows)
        """Of prompt and response together."""

    def __getitem__(self, i: int) -> Row:
        return self._encode(i)

    def __len__(self) -> int:
        return len(self.lengths)


def encode_traces(traces: Sequence[Trace], tokenizer: Tokenizer, cfg: PromptConfig) -> Rows:
    """(prompt ids, response ids with the end token) of each trace.

    Raises:
        ValueError: a prompt is longer than `cfg.max_tokens`.
    """

    def encode(i: int) -> Row:
        prompt = encode_prompt(traces[i].messages, traces[i].pair_id, tokenizer, cfg)
        return prompt, [*tokenizer.encode(traces[i].response), tokenizer.end_id]

    return Rows(encode, len(traces))


def sft_batch(rows: Sequence[Row], pad_id: int, length: int | None = None) -> Batch:
    """Rows of prompt and response, padded on the right; only responses carry loss."""
    return packed_batch([[row] for row in rows], pad_id, length)


def packed_batch(bins: Sequence[Sequence[Row]], pad_id: int, length: int | None = None) -> Batch:
    """Each bin's rows side by side in one: segments 1, 2, ... that do not see each other, each with
    positions from 0. What is left over is segment 0."""
    T = length or bucketed(max(sum(len(p) + len(r) for p, r in rows) for rows in bins))
    tokens = np.full((len(bins), T), pad_id, np.int32)
    positions = np.tile(np.arange(T, dtype=np.int32), (len(bins), 1))
    segment_ids = np.zeros((len(bins), T), np.int32)
    loss_mask = np.zeros((len(bins), T), bool)
    for i, rows in enumerate(bins):
        start = 0
        for segment, (prompt, response) in enumerate(rows, 1):
            end = start + len(prompt) + len(response)
            tokens[i, start:end] = [*prompt, *response]
            positions[i, start:end] = np.arange(end - start)
            segment_ids[i, start:end] = segment
            loss_mask[i, start + len(prompt) : end] = True
            start = end
    return Batch(tokens, positions, segment_ids, loss_mask)


class Packer:
    """Puts records of given lengths into bins of `capacity`, an epoch at a time.

    A batch is a function of (seed, step), as in `batch_indices`: epochs in fresh seeded orders,
    each packed by best fit, laid end to end.

    Raises:
        ValueError: a record that no bin holds.
    """

    def __init__(self, lengths: Sequence[int], capacity: int, seed: int) -> None:
        if max(lengths) > capacity:
            raise ValueError(
                f"--sft.pack-length {capacity}: the longest trace takes {max(lengths)} tokens"
            )
        self._lengths = list(lengths)
        self._capacity = capacity
        self._seed = seed
        self._bins: list[list[int]] = []
        self._num_epochs = 0

    def batch(self, step: int, num_bins: int) -> list[list[int]]:
        """The bins of batch `step`, each a list of record indices."""
        while len(self._bins) < (step + 1) * num_bins:
            self._bins += self._pack(self._num_epochs)
            self._num_epochs += 1
        return self._bins[step * num_bins : (step + 1) * num_bins]

    def _pack(self, epoch: int) -> list[list[int]]:
        order = np.random.default_rng([self._seed, 7, epoch]).permutation(len(self._lengths))
        bins = best_fit(self._lengths, self._capacity, order.tolist())
        # Filled in order of their opening; the last ones, half empty, must not meet in one batch.
        mix = np.random.default_rng([self._seed, 8, epoch]).permutation(len(bins))
        return [bins[i] for i in mix]


def best_fit(lengths: Sequence[int], capacity: int, order: Iterable[int]) -> list[list[int]]:
    """Bins of indices, none longer than `capacity` in all: each index, in `order`, goes where it
    leaves the least room. A length above `capacity` has no place."""
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (room left, bin), sorted
    for i in order:
        place = bisect.bisect_left(room, (lengths[i], -1))
        if place == len(room):
            left, chosen = capacity, len(bins)
            bins.append([])
        else:
            left, chosen = room.pop(place)
        bins[chosen].append(i)
        bisect.insort(room, (left - lengths[i], chosen))
    return bins


def common_start(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with; each has at least one more."""
    same = 0
    for tokens in zip(*prompts, strict=False):
        if len(set(tokens)) > 1:
            break
        same += 1
    return min(same, min(map(len, prompts)) - 1)


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
