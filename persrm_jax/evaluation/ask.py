"""Prompts -> a model's answers, a batch at a time.

How far a prompt is padded depends on its own length alone, and every batch has the same number of
rows: an answer depends on its prompt and its key, not on what else is asked.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from persrm_jax.data.batches import BUCKET, left_pad
from persrm_jax.data.prompts import PromptConfig
from persrm_jax.distributed import fetch, place
from persrm_jax.models.config import ComputeConfig, ModelConfig
from persrm_jax.models.decoder import Prefix
from persrm_jax.models.params import Params
from persrm_jax.rl.rollout import completion_texts, judge_ending
from persrm_jax.sampling import SamplingConfig, make_generate
from persrm_jax.sharding import batch_sharding, replicated
from persrm_jax.tokenizer import Tokenizer

KEY_WORDS = 2
"""Words of a key's data."""


class Reply(NamedTuple):
    """What a model said, and in how many tokens."""

    text: str
    tokens: int


Ask = Callable[..., list[Reply]]


def padded(length: int) -> int:
    """The length to which a prompt is padded: 32, 64, then two steps from each power of two to the
    next, so that few programs are compiled."""
    step = max(BUCKET, 2 ** (length - 1).bit_length() // 4)
    return -(-length // step) * step


def like_lengths(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Batches of the indices of prompts that are padded alike, the shortest first."""
    alike: dict[int, list[int]] = defaultdict(list)
    for i, length in enumerate(lengths):
        alike[padded(length)].append(i)
    return [
        members[at : at + batch_size]
        for _, members in sorted(alike.items())
        for at in range(0, len(members), batch_size)
    ]


def make_ask(
    model: ModelConfig,
    sampling: SamplingConfig,
    *,
    batch_size: int,
    tokenizer: Tokenizer,
    prompt: PromptConfig,
    compute: ComputeConfig,
    mesh: Mesh,
) -> Ask:
    """Returns ask(params, prompts, keys, shared=0) -> replies, of one batch: at most `batch_size`
    prompts that are padded alike, and the data [prompts, KEY_WORDS] of their threefry keys. Of the
    first `shared` tokens, which must be the same, the keys and values are worked out once."""
    generate = make_generate(
        model, sampling, judge_ending(sampling, tokenizer, prompt), compute=compute
    )
    sharding = batch_sharding(mesh)

    def ask(
        params: Params, prompts: Sequence[Sequence[int]], keys: np.ndarray, shared: int = 0
    ) -> list[Reply]:
        prefix, prompts = prompts[0][:shared], [ids[shared:] for ids in prompts]
        (length,) = {padded(len(ids)) for ids in prompts}
        # Filled up, so that nothing new is compiled.
        rows = [*range(len(prompts))] + [len(prompts) - 1] * (batch_size - len(prompts))
        tokens, mask = left_pad([prompts[i] for i in rows], tokenizer.pad_id, length)
        wrapped = jax.random.wrap_key_data(jnp.asarray(keys[rows]), impl="threefry2x32")
        start = None
        if shared:
            read_once = left_pad([prefix], tokenizer.pad_id, padded(shared))
            start = Prefix(*place(tuple(map(jnp.asarray, read_once)), replicated(mesh)))
        out = fetch(generate(params, *place((tokens, mask, wrapped), sharding), start))
        real = slice(len(prompts))
        texts = completion_texts(out.tokens[real], out.mask[real], tokenizer)
        return list(map(Reply, texts, out.mask[real].sum(axis=1).tolist()))

    return ask
