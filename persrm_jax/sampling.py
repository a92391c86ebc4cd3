"""Generation: one prefill a prompt, then one jitted decode loop that ends when all rows have.

A prompt has so many rows; each decodes one of its samples, and where it ends begins the prompt's
next one (continuous batching), in the same slots of a ring cache, so that a long completion holds
up no other. No token goes to the host before the last.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from persrm_jax.matching import match_table
from persrm_jax.models.cache import KVCache
from persrm_jax.models.config import ComputeConfig, ModelConfig
from persrm_jax.models.decoder import (
    F32,
    Prefix,
    decode_step,
    prefill,
    unstack_layers,
    vocab_weight,
)
from persrm_jax.models.params import Params
from persrm_jax.sharding import constrain
from persrm_jax.tokenizer import Tokenizer
from persrm_jax.truncation import Truncation, truncate


@dataclass(frozen=True)
class SamplingConfig:
    """How completions are drawn."""

    max_new_tokens: int = 1024
    """Longest completion, in tokens, its end token included."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    truncation: Truncation = field(default_factory=Truncation)
    stop: tuple[str, ...] = ()
    """A completion also ends with the token that completes one of these; not in RFT, which would
    leave the end token untrained."""
    rows: int = 0
    """Samples of a prompt that are decoded at once; as one ends, the next takes its row. Fewer take
    less memory and less work, in more steps. 0: all."""
    answer_tokens: int = 0
    """Reasoning that is still open when only so many tokens are left is closed by force, so that
    they go to the answer; 0: never."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max-new-tokens {self.max_new_tokens}: must be at least 1")
        if self.temperature < 0:
            raise ValueError(f"temperature {self.temperature}: must be 0 or more")
        for name in ("rows", "answer_tokens"):
            if getattr(self, name) < 0:
                flag = name.replace("_", "-")
                raise ValueError(f"{flag} {getattr(self, name)}: must be 0 or more")


class Completions(NamedTuple):
    """B rows of at most T tokens; `mask` reaches up to and including the first end token."""

    tokens: Int[Array, "B T"]
    mask: Bool[Array, "B T"]
    logprobs: Float[Array, "B T"]
    forced: Bool[Array, "B T"]
    """Tokens that were not drawn, but put there to close the reasoning."""


class Ending(NamedTuple):
    """What ends completions, and what is said near the end."""

    end_ids: tuple[int, ...]
    pad_id: int
    stop: Int[np.ndarray, "states V"] | None = None
    """`match_table` of the stop strings."""
    closed: Int[np.ndarray, "states V"] | None = None
    """`match_table` of what closes the reasoning."""
    closing: tuple[int, ...] = ()
    """Tokens that close it by force."""


class _Loop(NamedTuple):
    """P prompts of R rows; G samples of each."""

    step: Int[Array, ""]
    sample: Int[Array, "P R"]
    """Which of its prompt's samples a row decodes."""
    length: Int[Array, "P R"]
    """Tokens drawn of it."""
    done: Bool[Array, "P R"]
    """Nothing is left for the row to do."""
    queue: Int[Array, " P"]
    """The next sample that no row has begun."""
    last: Int[Array, "P R"]
    stop_state: Int[Array, "P R"]
    closed_state: Int[Array, "P R"]
    forcing: Bool[Array, "P R"]
    cache: KVCache
    drawn: Completions
    """[P * R, steps]: what each row drew at each step."""
    where: Int[Array, "P G 3"]
    """Row, first step and length of each sample."""


Generate = Callable[..., Completions]


def sequence_keys(key: Key[Array, ""], num_sequences: int) -> Key[Array, " B"]:
    """One key a sequence, so that a sample depends neither on its batch-mates nor on the mesh."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num_sequences))


def make_ending(
    cfg: SamplingConfig, tokenizer: Tokenizer, *, closed_by: str = "", closing: str = ""
) -> Ending:
    """What ends completions of a tokenizer's model.

    Args:
        closed_by: what the model itself closes its reasoning with.
        closing: what is said in its place where `cfg.answer_tokens` are left.

    Raises:
        ValueError: there is no room for both.
    """
    plain = Ending(tokenizer.end_ids, tokenizer.pad_id)
    if not cfg.stop and not cfg.answer_tokens:
        return plain
    spellings = tokenizer.token_bytes()
    if cfg.stop:
        plain = plain._replace(stop=match_table(cfg.stop, spellings))
    if not cfg.answer_tokens:
        return plain
    forced = tuple(tokenizer.encode(closing))
    if cfg.answer_tokens + len(forced) > cfg.max_new_tokens:
        raise ValueError(
            f"answer-tokens {cfg.answer_tokens}: with the {len(forced)} tokens that close the "
            f"reasoning more than max-new-tokens {cfg.max_new_tokens}"
        )
    return plain._replace(closed=match_table([closed_by], spellings), closing=forced)


def make_generate(
    cfg: ModelConfig,
    sampling: SamplingConfig,
    ending: Ending,
    *,
    num_samples: int = 1,
    compute: ComputeConfig = F32,
) -> Generate:
    """Returns the jitted `generate(params, tokens [P, S], mask [P, S], keys [P * num_samples],
    prefix=None)`.

    Prompts are padded on the left; what all of them begin with may be given apart, as `prefix`, and
    is then read once. Rows of the result are grouped by prompt: row p * num_samples
    + g is sample g of prompt p. After its end token a row holds `pad_id` and log-probability 0.
    Log-probabilities are those of the temperature-scaled softmax (at temperature 0 of the plain
    one), whatever was left out of the drawing.
    """
    ends = jnp.asarray(ending.end_ids)
    max_new = sampling.max_new_tokens
    num_rows = min(sampling.rows or num_samples, num_samples)
    num_steps = -(-num_samples // num_rows) * max_new  # enough, however long the samples are

    def choose(
        logits: jax.Array, keys: jax.Array, lengths: jax.Array
    ) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
        """A token a row, and the log-probability of any."""
        if sampling.temperature == 0:
            tokens = jnp.argmax(logits, axis=-1)
        else:
            logits = logits / sampling.temperature
            allowed = truncate(logits, sampling.truncation)
            step_keys = jax.vmap(jax.random.fold_in)(keys, lengths)
            tokens = jax.vmap(jax.random.categorical)(step_keys, allowed)
        logprobs = jax.nn.log_softmax(logits)

        def of(tokens: jax.Array) -> jax.Array:
            return jnp.take_along_axis(logprobs, tokens[:, None], axis=-1)[:, 0]

        return tokens.astype(jnp.int32), of

    @jax.jit
    def generate(
        params: Params,
        tokens: jax.Array,
        mask: jax.Array,
        keys: jax.Array,
        prefix: Prefix | None = None,
    ) -> Completions:
        P, B = len(tokens), len(tokens) * num_rows
        weight = vocab_weight(params).astype(compute.dtype)
        layers = unstack_layers(params, cfg)
        key_data = jax.random.key_data(keys).reshape(P, num_samples, -1)

        def to_logits(hidden: jax.Array) -> jax.Array:
            logits = jnp.einsum("BD,VD->BV", hidden, weight, preferred_element_type=jnp.float32)
            return constrain(logits, "batch", "vocab")

        def add(loop: _Loop, hidden: jax.Array) -> _Loop:
            """One more token a row, drawn from what `hidden` predicts."""
            length = loop.length
            data = jnp.take_along_axis(key_data, loop.sample[:, :, None], axis=1)
            key = jax.random.wrap_key_data(data, impl=jax.random.key_impl(keys))
            drawn, logprob_of = choose(to_logits(hidden), key.reshape(B), length.reshape(B))
            chosen = drawn.reshape(P, num_rows)
            forcing = jnp.zeros_like(loop.done)
            if ending.closed is not None:
                first = max_new - sampling.answer_tokens - len(ending.closing)
                is_open = loop.closed_state < len(ending.closed) - 1
                forcing = jnp.where(length == first, is_open, loop.forcing)
                said = length - first
                forcing &= (said >= 0) & (said < len(ending.closing))
                closing = jnp.asarray(ending.closing)[jnp.clip(said, 0, len(ending.closing) - 1)]
                chosen = jnp.where(forcing, closing, chosen)
            column = Completions(
                jnp.where(loop.done, ending.pad_id, chosen),
                ~loop.done,
                jnp.where(loop.done, 0.0, logprob_of(chosen.reshape(B)).reshape(P, num_rows)),
                forcing & ~loop.done,
            )
            out = Completions(
                *(
                    jax.lax.dynamic_update_slice_in_dim(old, x.reshape(B, 1), loop.step, axis=1)
                    for old, x in zip(loop.drawn, column, strict=True)
                )
            )
            length += 1
            over = jnp.isin(chosen, ends) | (length == max_new)
            stop_state, closed_state = loop.stop_state, loop.closed_state
            if ending.stop is not None:
                stop_state = jnp.asarray(ending.stop)[stop_state, chosen]
                over |= stop_state == len(ending.stop) - 1
            if ending.closed is not None:
                closed_state = jnp.asarray(ending.closed)[closed_state, chosen]
            over &= ~loop.done
            new = loop._replace(
                step=loop.step + 1,
                length=length,
                last=column.tokens,
                stop_state=stop_state,
                closed_state=closed_state,
                forcing=forcing,
                drawn=out,
            )
            if num_rows == num_samples:
                return new._replace(done=loop.done | over)
            return refill(new, over)

        def refill(loop: _Loop, over: jax.Array) -> _Loop:
            """Rows whose sample is over begin their prompt's next."""
            row = jnp.broadcast_to(jnp.arange(num_rows), over.shape)
            found = jnp.stack([row, loop.step - loop.length, loop.length], axis=-1)
            its = (loop.sample[:, :, None] == jnp.arange(num_samples)) & over[:, :, None]
            recorded = jnp.sum(jnp.where(its[..., None], found[:, :, None, :], 0), axis=1)
            sample = loop.queue[:, None] + jnp.cumsum(over, axis=1) - 1
            fresh = over & (sample < num_samples)
            zero = jnp.zeros_like(loop.length)
            own = jnp.where(fresh, -1, loop.cache.lengths.reshape(P, num_rows))
            return loop._replace(
                sample=jnp.where(fresh, sample, loop.sample),
                length=jnp.where(fresh, zero, loop.length),
                done=loop.done | (over & ~fresh),
                queue=loop.queue + jnp.sum(fresh, axis=1),
                stop_state=jnp.where(fresh, zero, loop.stop_state),
                closed_state=jnp.where(fresh, zero, loop.closed_state),
                cache=loop.cache._replace(lengths=own.reshape(B)),
                where=loop.where + recorded,
            )

        first_hidden, cache = prefill(params, cfg, tokens, mask, num_rows, max_new, compute, prefix)
        first_hidden = jnp.repeat(first_hidden, num_rows, axis=0)

        def body(loop: _Loop) -> _Loop:
            last = loop.last.reshape(B)
            hidden, cache = decode_step(params, layers, cfg, last, loop.cache, compute)
            if num_rows < num_samples:
                begins = (loop.length == 0).reshape(B, 1)
                hidden = jnp.where(begins, first_hidden, hidden)
            return add(loop._replace(cache=cache), hidden)

        drawn = Completions(
            jnp.full((B, num_steps), ending.pad_id, jnp.int32),
            jnp.zeros((B, num_steps), bool),
            jnp.zeros((B, num_steps), jnp.float32),
            jnp.zeros((B, num_steps), bool),
        )
        zeros = jnp.zeros((P, num_rows), jnp.int32)
        start = _Loop(
            step=jnp.zeros((), jnp.int32),
            sample=zeros + jnp.arange(num_rows),
            length=zeros,
            done=zeros > 0,
            queue=jnp.full(P, num_rows),
            last=zeros,
            stop_state=zeros,
            closed_state=zeros,
            forcing=zeros > 0,
            cache=cache,
            drawn=Completions(*(constrain(x, "batch", "length") for x in drawn)),
            where=jnp.zeros((P, num_samples, 3), jnp.int32),
        )
        loop = jax.lax.while_loop(lambda loop: ~jnp.all(loop.done), body, add(start, first_hidden))
        if num_rows == num_samples:
            return loop.drawn
        return in_order(loop)

    def in_order(loop: _Loop) -> Completions:
        """Each sample's tokens, found where its row drew them."""
        P = len(loop.queue)
        row, first, length = (loop.where[:, :, i, None] for i in range(3))
        column = jnp.arange(max_new)
        at = jnp.minimum(row * num_steps + first + column, num_rows * num_steps - 1)
        keep = column < length
        fillings = (ending.pad_id, False, 0.0, False)

        def take(x: jax.Array, filling: jax.typing.ArrayLike) -> jax.Array:
            flat = x.reshape(P, num_rows * num_steps)
            found = jnp.take_along_axis(flat, at.reshape(P, -1), axis=1).reshape(at.shape)
            return jnp.where(keep, found, filling).reshape(P * num_samples, max_new)

        return Completions(*map(take, loop.drawn, fillings))

    return generate
