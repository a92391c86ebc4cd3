"""Pairs whose texts are read one at a time -> groups, which read once what texts follow alike."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from persrm_jax.data.batches import common_start, encode_pairs, left_pad
from persrm_jax.data.prompts import BOTH_ORDERS, PromptConfig
from persrm_jax.tokenizer import Tokenizer
from persrm_jax.types import Groups, Pair


class PairRow(NamedTuple):
    """Ids of what both texts of a pair follow, and of the chosen and the rejected text."""

    before: list[int]
    texts: tuple[list[int], list[int]]


def encode_alone(
    pairs: Sequence[Pair], tokenizer: Tokenizer, prompt: PromptConfig
) -> list[PairRow]:
    """The prompts that show a pair's chosen and its rejected text alone, taken apart where those of
    the same exemplars begin to differ.

    Raises:
        ValueError: a prompt is longer than `prompt.max_tokens`.
    """
    asked = [(pair, order) for pair in pairs for order in BOTH_ORDERS]
    prompts = encode_pairs([p for p, _ in asked], [o for _, o in asked], tokenizer, prompt.alone)
    both = list(zip(prompts[::2], prompts[1::2], strict=True))
    starts = [0] * len(pairs)
    for members in _together([(pair.exemplars, pair.prompt) for pair in pairs]):
        start = common_start([ids for i in members for ids in both[i]])
        for i in members:
            starts[i] = start
    return [
        PairRow(chosen[:start], (chosen[start:], rejected[start:]))
        for start, (chosen, rejected) in zip(starts, both, strict=True)
    ]


def alike(rows: Sequence[PairRow]) -> list[list[int]]:
    """The rows whose texts follow the same."""
    return _together([tuple(row.before) for row in rows])


def _together(keys: Sequence[Hashable]) -> list[list[int]]:
    """Places of equal keys, in the order in which each key comes first."""
    found: dict[Hashable, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        found[key].append(i)
    return list(found.values())


def longest(rows: Sequence[PairRow]) -> tuple[int, int]:
    """Tokens of the longest beginning and of the longest text."""
    return max(len(row.before) for row in rows), max(len(ids) for row in rows for ids in row.texts)


def group_pairs(
    groups: Sequence[Sequence[PairRow]], size: int, lengths: tuple[int, int], pad_id: int
) -> Groups:
    """Rows that begin alike -> a group with room for `size` pairs, chosen and rejected texts in
    turns. The mask is true in texts, nowhere where a pair is missing.

    Args:
        lengths: to which beginnings and texts are padded.
    """
    start_length, length = lengths
    tokens = np.full((len(groups), 2 * size, length), pad_id, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for g, rows in enumerate(groups):
        for m, ids in enumerate(ids for row in rows for ids in row.texts):
            tokens[g, m, : len(ids)] = ids
            mask[g, m, : len(ids)] = True
    befores = [rows[0].before for rows in groups]
    return Groups(*left_pad(befores, pad_id, start_length), tokens, mask)
