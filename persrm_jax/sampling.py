"""Generation: one prefill a prompt, then a jitted decode loop that ends when all rows have."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from persrm_jax.models.cache import KVCache
from persrm_jax.models.config import ComputeConfig, ModelConfig
from persrm_jax.models.decoder import F32, decode_step, prefill, unstack_layers, vocab_weight
from persrm_jax.models.params import Params
from persrm_jax.sharding import constrain


@dataclass(frozen=True)
class SamplingConfig:
    """How completions are drawn."""

    max_new_tokens: int = 1024
    """Longest completion, in tokens, its end token included."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max-new-tokens {self.max_new_tokens}: must be at least 1")
        if self.temperature < 0:
            raise ValueError(f"temperature {self.temperature}: must be 0 or more")


class Completions(NamedTuple):
    """B rows of at most T tokens; `mask` reaches up to and including the first end token."""

    tokens: Int[Array, "B T"]
    mask: Bool[Array, "B T"]
    logprobs: Float[Array, "B T"]


class _Loop(NamedTuple):
    step: jax.Array
    done: jax.Array
    last: jax.Array
    """Each row's last token."""
    cache: KVCache
    out: Completions


Generate = Callable[..., Completions]


def sequence_keys(key: Key[Array, ""], num_sequences: int) -> Key[Array, " B"]:
    """One key a sequence, so that a sample depends neither on its batch-mates nor on the mesh."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num_sequences))


def make_generate(
    cfg: ModelConfig,
    sampling: SamplingConfig,
    *,
    end_ids: tuple[int, ...],
    pad_id: int,
    num_samples: int = 1,
    compute: ComputeConfig = F32,
) -> Generate:
    """Returns the jitted `generate(params, tokens [P, S], mask [P, S], keys [P * num_samples])`.

    Prompts are padded on the left. Rows of the result are grouped by prompt: row p * num_samples
    + g is sample g of prompt p. After its end token a row holds `pad_id` and log-probability 0.
    Log-probabilities are those of the temperature-scaled softmax (at temperature 0 of the plain
    one).
    """
    ends = jnp.asarray(end_ids)
    max_new = sampling.max_new_tokens

    def choose(logits: jax.Array, keys: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        if sampling.temperature == 0:
            tokens = jnp.argmax(logits, axis=-1)
        else:
            logits = logits / sampling.temperature
            step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
            tokens = jax.vmap(jax.random.categorical)(step_keys, logits)
        logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, None], axis=-1)
        return tokens.astype(jnp.int32), logprobs[:, 0]

    @jax.jit
    def generate(
        params: Params, tokens: jax.Array, mask: jax.Array, keys: jax.Array
    ) -> Completions:
        weight = vocab_weight(params).astype(compute.dtype)
        layers = unstack_layers(params, cfg)

        def to_logits(hidden: jax.Array) -> jax.Array:
            logits = jnp.einsum("BD,VD->BV", hidden, weight, preferred_element_type=jnp.float32)
            return constrain(logits, "batch", "vocab")

        def add(loop: _Loop, hidden: jax.Array) -> _Loop:
            """One more token a row, drawn from what `hidden` predicts."""
            chosen, logprobs = choose(to_logits(hidden), keys, loop.step)
            chosen = jnp.where(loop.done, pad_id, chosen)
            column = (chosen, ~loop.done, jnp.where(loop.done, 0.0, logprobs))
            out = Completions(
                *(
                    jax.lax.dynamic_update_slice_in_dim(old, new[:, None], loop.step, axis=1)
                    for old, new in zip(loop.out, column, strict=True)
                )
            )
            done = loop.done | jnp.isin(chosen, ends)
            return _Loop(loop.step + 1, done, chosen, loop.cache, out)

        def body(loop: _Loop) -> _Loop:
            hidden, cache = decode_step(params, layers, cfg, loop.last, loop.cache, compute)
            return add(loop._replace(cache=cache), hidden)

        hidden, cache = prefill(params, cfg, tokens, mask, num_samples, max_new, compute)
        B = tokens.shape[0] * num_samples
        out = Completions(
            jnp.full((B, max_new), pad_id, jnp.int32),
            jnp.zeros((B, max_new), bool),
            jnp.zeros((B, max_new), jnp.float32),
        )
        out = Completions(*(constrain(x, "batch", "length") for x in out))
        zeros = jnp.zeros(B, jnp.int32)
        start = _Loop(jnp.zeros((), jnp.int32), zeros > 0, zeros, cache, out)
        return jax.lax.while_loop(
            lambda loop: (loop.step < max_new) & ~jnp.all(loop.done),
            body,
            add(start, jnp.repeat(hidden, num_samples, axis=0)),
        ).out

    return generate
