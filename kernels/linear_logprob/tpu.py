"""`linear_logprob`'s forward pass for TPUs (Pallas, Mosaic): logits never leave the chip's VMEM.

The grid goes over blocks of tokens and, for each, over tiles of the vocabulary: a tile's logits are
one product h W^T, folded into the running statistics of `kernels.softmax` (log-sum-exp online,
arXiv 1805.02867; fused with the projection as in Cut Cross-Entropy, arXiv 2411.09009).

Roofline, for T tokens, bfloat16: 2 T D V operations, and W read once for each block of tokens:
2 V D T / block bytes. At T = 32,768, D = 3,584, V = 151,936 on a v6e: 39 ms of operations, and with
blocks of 1,024 tokens 21 ms of memory, which a second buffer hides; with 256 tokens it would be 85.
Written to HBM: four numbers a token.

In a last, ragged tile what lies outside the arrays is undefined. Rows of h and of W outside spoil
only rows and columns of their own: the former are never written, the latter are masked.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import softmax
from kernels.dispatch import Ref, target, tuned
from kernels.softmax import FLOOR

MIB = 2**20
VMEM_MIB = {"TPU v4": 16, "TPU v5 lite": 128, "TPU v5": 128, "TPU v6 lite": 128, "TPU7x": 64}
TILES = ((1024, 512), (1024, 256), (512, 512), (512, 256), (256, 256), (256, 128), (128, 128))
"""Tokens and vocabulary of a tile, the best first: traffic falls with the tokens."""


def tile(width: int, itemsize: int) -> tuple[int, int]:
    """The largest tile that the chip's VMEM has room for, or the one that was tuned."""
    if tuned().tokens:
        return tuned().tokens, tuned().vocabulary
    for tokens, vocabulary in TILES:
        if _needs(tokens, vocabulary, width, itemsize) <= 0.9 * _vmem():
            break
    return tokens, vocabulary


def _vmem() -> int:
    return VMEM_MIB.get(target().kind, 16) * MIB


def _needs(tokens: int, vocabulary: int, width: int, itemsize: int) -> int:
    """Bytes of VMEM: two buffers of each input, and some four float32 arrays of the tile's size."""
    return 2 * (tokens + vocabulary) * width * itemsize + 4 * tokens * vocabulary * 4


def statistics(
    hidden: jax.Array, weight: jax.Array, labels: jax.Array, temperature: float
) -> softmax.Statistics:
    """Of tokens [n, D] over a part of the vocabulary [v, D], in one dtype."""
    (num_tokens, width), vocab_size = hidden.shape, len(weight)
    tokens, vocabulary = tile(width, hidden.dtype.itemsize)
    out = pl.pallas_call(
        partial(_kernel, temperature, vocab_size),
        out_shape=jax.ShapeDtypeStruct((num_tokens, 4), jnp.float32),
        grid=(pl.cdiv(num_tokens, tokens), pl.cdiv(vocab_size, vocabulary)),
        in_specs=[
            pl.BlockSpec((tokens, width), lambda i, j: (i, 0)),
            pl.BlockSpec((vocabulary, width), lambda i, j: (j, 0)),
            pl.BlockSpec((tokens, 1), lambda i, j: (i, 0)),
        ],
        out_specs=pl.BlockSpec((tokens, 4), lambda i, j: (i, 0)),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=_vmem()
        ),
        interpret=target().interpret,
        name="linear_logprob",
    )(hidden, weight, labels[:, None])
    return softmax.Statistics(*out.T)


def _kernel(
    temperature: float,
    vocab_size: int,
    h: Ref,
    w: Ref,
    label: Ref,
    out: Ref,
) -> None:
    j = pl.program_id(1)

    @pl.when(j == 0)
    def _start() -> None:
        out[:, 0:1] = jnp.full((out.shape[0], 1), FLOOR, jnp.float32)
        out[:, 1:4] = jnp.zeros((out.shape[0], 3), jnp.float32)

    # Float32 operands would be rounded to bfloat16.
    precision = jax.lax.Precision.HIGHEST if h.dtype == jnp.float32 else None
    z = jax.lax.dot_general(
        h[...],
        w[...],
        (((1,), (1,)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    ids = j * w.shape[0] + jax.lax.broadcasted_iota(jnp.int32, z.shape, 1)
    z = jnp.where(ids < vocab_size, z / temperature, FLOOR)
    seen = softmax.Statistics(*(out[:, i : i + 1] for i in range(4)))
    found = softmax.fold(seen, z, ids == label[...], keepdims=True, widen=lambda x: x)
    for i, x in enumerate(found):
        out[:, i : i + 1] = x
