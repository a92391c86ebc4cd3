"""Prompts -> a model's answers, a batch at a time.

Every batch has the same number of rows, and each row has its own key: an answer depends on its
prompt and its key, not on what else is asked (save for the rounding of sums, where prompts that
begin alike are padded to the longest of them).
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from persrm_jax.data.batches import BUCKET, common_start, left_pad
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


def padded(length: int, steps: int = 2) -> int:
    """The length to which a prompt is padded: 32, 64, then so many steps from each power of two to
    the next, so that few programs are compiled."""
    step = max(BUCKET, 2 ** (length - 1).bit_length() // (2 * steps))
    return -(-length // step) * step


class Plan(NamedTuple):
    """Of a batch: which prompts, how many of their first tokens are the same and are read once, and
    to how many tokens what follows is padded."""

    rows: list[int]
    shared: int
    length: int


def plan_batches(
    prompts: Sequence[Sequence[int]],
    alike: Sequence[Hashable],
    batch_size: int,
    max_new: int,
    num_devices: int = 1,
) -> list[Plan]:
    """Prompts -> batches of few tokens.

    Those whose `alike` is equal are expected to begin alike. They go together where that takes
    fewer tokens than each whole; the others go with prompts of their own length.

    Args:
        max_new: tokens that a batch's rows may be answered in.
        num_devices: over which a batch's rows are split; each reads what they share.
    """
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for i, group in enumerate(alike):
        groups[group].append(i)
    batches, others = [], defaultdict(list)
    for members in groups.values():
        shared = common_start([prompts[i] for i in members])
        length = padded(max(len(prompts[i]) for i in members) - shared, steps=4)
        together = num_devices * padded(shared) + batch_size * (length + max_new)
        for at in range(0, len(members), batch_size):
            rows = members[at : at + batch_size]
            if shared and together < sum(padded(len(prompts[i])) + max_new for i in rows):
                batches.append(Plan(rows, shared, length))
            else:
                for i in rows:
                    others[padded(len(prompts[i]))].append(i)
    return batches + [
        Plan(rows[at : at + batch_size], 0, length)
        for length, rows in sorted(others.items())
        for at in range(0, len(rows), batch_size)
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
    """Returns ask(params, prompts, keys, length, shared=0) -> replies, of one batch: at most
    `batch_size` prompts, and the data [prompts, KEY_WORDS] of their threefry keys. Of the first
    `shared` tokens, which must be the same, the keys and values are worked out once; the others are
    padded to `length`."""
    generate = make_generate(
        model, sampling, judge_ending(sampling, tokenizer, prompt), compute=compute
    )
    sharding = batch_sharding(mesh)

    def ask(
        params: Params,
        prompts: Sequence[Sequence[int]],
        keys: np.ndarray,
        length: int,
        shared: int = 0,
    ) -> list[Reply]:
        prefix, prompts = prompts[0][:shared], [ids[shared:] for ids in prompts]
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
