"""Hidden states of a group's completions, their prompt computed once.

A group of G completions of C tokens after a prompt of P costs P + G C tokens instead of G (P + C),
forward and backward. It is exact: a prompt's states do not depend on what follows, its keys and
values serve every completion, and the gradients of all completions add up in them. (The idea is
Prefix Grouper's, arXiv 2506.05433.)

All tokens of a group lie side by side in one row, prompt first, so that every matrix is multiplied
once. Only attention takes them apart: the prompt's queries see the prompt; a completion's see the
prompt and the completion, in one softmax: where XLA computes it, without a copy of the prompt for
each. (To merge two softmaxes of a library's by their log-sum-exp is silently wrong on GPUs, where
cuDNN drops its cotangent.) `packed_states` has several groups in a row, and no
padding between them; there a mask takes them apart.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from persrm_jax.models.attention import attention, resolve
from persrm_jax.models.cache import LayerCache, group_attention
from persrm_jax.models.config import ComputeConfig, ModelConfig
from persrm_jax.models.decoder import forward_tokens
from persrm_jax.models.logprobs import token_states
from persrm_jax.models.params import Params
from persrm_jax.types import Batch, Groups


def group_states(
    params: Params, cfg: ModelConfig, groups: Groups, compute: ComputeConfig
) -> Float[Array, "P G T D"]:
    """The hidden state before each token of each completion, after the final norm."""
    (P, S), (_, G, T) = groups.prompt_tokens.shape, groups.tokens.shape
    prompt_mask = jnp.asarray(groups.prompt_mask)
    prompt_segments = prompt_mask.astype(jnp.int32)
    own_segments = jnp.concatenate(
        [jnp.repeat(prompt_segments, G, axis=0), jnp.ones((P * G, T), jnp.int32)], axis=1
    )

    causal = jnp.tile(jnp.tril(jnp.ones((T, T), bool)), (P * G, 1, 1))

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
        def prompt(x: jax.Array) -> jax.Array:
            return x[:, :S]

        def own(x: jax.Array) -> jax.Array:
            return x[:, S:].reshape(P * G, T, *x.shape[2:])

        def both(x: jax.Array) -> jax.Array:
            return jnp.concatenate([jnp.repeat(prompt(x), G, axis=0), own(x)], axis=1)

        impl = compute.attention
        first = attention(prompt(q), prompt(k), prompt(v), prompt_segments, impl)
        if resolve(impl, S + T, q) == "xla":
            parts = (prompt(k), prompt(v), own(k), own(v))
            layer = LayerCache(*(x.swapaxes(1, 2) for x in parts))
            rest = group_attention(own(q), layer, prompt_mask, causal)
        else:
            rest = attention(own(q), both(k), both(v), own_segments, impl)
        return jnp.concatenate([first, rest.reshape(P, G * T, *rest.shape[2:])], axis=1), None

    lengths = jnp.sum(prompt_mask, axis=1)
    positions = jnp.concatenate(
        [
            jnp.maximum(jnp.cumsum(prompt_mask, axis=1) - 1, 0),
            jnp.tile(lengths[:, None] + jnp.arange(T), (1, G)),
        ],
        axis=1,
    )
    tokens = jnp.concatenate([groups.prompt_tokens, groups.tokens.reshape(P, G * T)], axis=1)
    hidden = forward_tokens(params, cfg, tokens, positions, attend, compute)
    last = jnp.broadcast_to(hidden[:, None, S - 1 : S], (P, G, 1, hidden.shape[2]))
    own_states = hidden[:, S:].reshape(P, G, T, hidden.shape[2])
    return jnp.concatenate([last, own_states[:, :, :-1]], axis=2)


def packed_states(
    params: Params, cfg: ModelConfig, groups: Groups, compute: ComputeConfig
) -> Float[Array, "P G T D"]:
    """The same from rows that hold several groups each, in one masked attention."""
    assert groups.packed is not None
    rows, (P, G, T) = groups.packed, groups.tokens.shape
    N, R, L = rows.tokens.shape

    def flat(x: jax.Array) -> jax.Array:
        return jnp.reshape(x, (N * R, L))

    group_ids, member_ids = flat(rows.group_ids), flat(rows.member_ids)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
        return attention(q, k, v, group_ids, compute.attention, member_ids), None

    hidden = forward_tokens(params, cfg, flat(rows.tokens), flat(rows.positions), attend, compute)
    # A device's prompts go to its blocks in turn, so that each finds its tokens on that device.
    num_devices = jax.sharding.get_abstract_mesh().shape.get("data", 1)
    blocks = N // num_devices
    block = jnp.arange(P) % blocks
    index = block[:, None, None] * (R * L) + rows.sources
    picked = jnp.take_along_axis(
        hidden.reshape(num_devices, blocks * R * L, -1),
        index.reshape(num_devices, -1, 1),
        axis=1,
    )
    return picked.reshape(P, G, T, -1)


def plain_rows(groups: Groups) -> Batch:
    """Prompt and completion side by side in a row each, [P * G, S + T]; padding is left of the
    prompt and right of the end."""
    P, G, T = groups.tokens.shape

    def row(prompt: jax.Array, own: jax.Array) -> jax.Array:
        return jnp.concatenate([jnp.repeat(prompt, G, axis=0), own.reshape(P * G, T)], axis=1)

    valid = row(groups.prompt_mask, groups.mask)
    loss_mask = valid.at[:, : groups.prompt_mask.shape[1]].set(False)
    positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
    tokens = row(groups.prompt_tokens, groups.tokens)
    return Batch(tokens, positions, valid.astype(jnp.int32), loss_mask)


def completion_states(
    params: Params, cfg: ModelConfig, groups: Groups, compute: ComputeConfig, *, shared: bool
) -> Float[Array, "P G T D"]:
    """The hidden state before each token of each completion.

    Args:
        shared: whether a prompt is computed once for its group, or with each completion. Packed
            groups always share it.
    """
    if groups.packed is not None:
        return packed_states(params, cfg, groups, compute)
    if shared:
        return group_states(params, cfg, groups, compute)
    rows, S = plain_rows(groups), groups.prompt_tokens.shape[1]
    hidden, _ = token_states(params, cfg, rows, compute, start=S)
    return hidden.reshape(*groups.tokens.shape, -1)
