"""Texts from a model of ours, by our sampler."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from persrm_jax.data.batches import left_pad
from persrm_jax.data.cleaning import whole_sentences
from persrm_jax.data.writers import Request, Writer, Written
from persrm_jax.distributed import fetch, place
from persrm_jax.models.config import ComputeConfig
from persrm_jax.models.load import Model
from persrm_jax.sampling import SamplingConfig, make_ending, make_generate
from persrm_jax.sharding import batch_sharding

_WINDOW = 2
"""Batches among whose requests those of like length are gathered."""
_STEP = 128
"""Tokens to a multiple of which prompts are padded, so that few shapes are compiled."""


@dataclass(frozen=True)
class LocalConfig:
    """How the run's model writes."""

    batch_size: int = 8
    """Texts at a time."""
    sampling: SamplingConfig = field(
        default_factory=lambda: SamplingConfig(max_new_tokens=512, temperature=0.8)
    )
    """PersRM-R1's generators write at temperature 0.8."""


def padded(length: int) -> int:
    """The length to which a prompt is padded; of its own length alone, so that what is written does
    not depend on what else is asked for."""
    return -(-length // _STEP) * _STEP


def make_local_writer(
    model: Model, cfg: LocalConfig, *, compute: ComputeConfig, mesh: Mesh
) -> Writer:
    """A text depends on its request alone: its key is the request's, and how far its prompt is
    padded depends on the prompt's own length."""
    tokenizer = model.tokenizer
    generate = make_generate(
        model.config, cfg.sampling, make_ending(cfg.sampling, tokenizer), compute=compute
    )
    sharding = batch_sharding(mesh)
    longest = model.config.max_positions - cfg.sampling.max_new_tokens

    def write_batch(prompts: list[list[int]], seeds: list[int], length: int) -> list[Written]:
        spare = cfg.batch_size - len(prompts)  # filled up, so that nothing new is compiled
        tokens, mask = left_pad(prompts + prompts[-1:] * spare, tokenizer.pad_id, length)
        keys = jax.vmap(jax.random.key)(jnp.array(seeds + [0] * spare))
        out = fetch(generate(model.params, *place((tokens, mask, keys), sharding)))
        return [
            read(len(prompt), row[kept].tolist())
            for prompt, row, kept in zip(prompts, out.tokens, out.mask, strict=False)
        ]

    def read(num_prompt: int, ids: list[int]) -> Written:
        text, fault = tokenizer.decode(ids).strip(), "empty: no text"
        if ids[-1] not in tokenizer.end_ids:
            text = whole_sentences(text)
            fault = "cut off: longer than --local.sampling.max-new-tokens"
        return Written(text or None, "" if text else fault, num_prompt, len(ids))

    def write_window(requests: list[Request]) -> list[Written]:
        prompts = [tokenizer.encode_chat(request.messages) for request in requests]
        found: dict[int, Written] = {}
        by_length: dict[int, list[int]] = defaultdict(list)
        for i, prompt in enumerate(prompts):
            if len(prompt) > longest:
                found[i] = Written(None, f"long prompt: {len(prompt)} tokens, at most {longest}")
            else:
                by_length[min(padded(len(prompt)), longest)].append(i)
        for length, members in sorted(by_length.items()):
            for begin in range(0, len(members), cfg.batch_size):
                rows = members[begin : begin + cfg.batch_size]
                seeds = [requests[i].seed for i in rows]
                batch = write_batch([prompts[i] for i in rows], seeds, length)
                found |= zip(rows, batch, strict=True)
        return [found[i] for i in range(len(requests))]

    def write(requests: Iterable[Request]) -> Iterator[Written]:
        waiting = iter(requests)
        while window := list(islice(waiting, _WINDOW * cfg.batch_size)):
            yield from write_window(window)

    return write
