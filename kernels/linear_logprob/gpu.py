"""`linear_logprob`'s forward pass for Hopper GPUs (Pallas, Mosaic GPU): logits stay in registers.

A block of threads takes 128 tokens and goes over tiles of 256 rows of the vocabulary. One warpgroup
fetches 64 columns of both at a time into a ring of shared memory (TMA); two others, with 64 tokens
each, multiply them (wgmma) into 64 x 256 accumulators, and fold a finished tile into the running
statistics of `kernels.softmax` while the next is being fetched. Blocks of threads that run together
go over the same tiles, so that the vocabulary is read from the L2 cache. With few tokens, several
blocks share the vocabulary of the same tokens, and their statistics combine afterwards.

Roofline on an H100 at T = 32,768, D = 3,584, V = 151,936 in bfloat16: 35.7 TFLOP, 36 ms at the data
sheet's peak and 45 at what is reached in practice. A step of 2 x 128 x 256 x 64 operations takes
48 KiB from L2, 87 operations a byte: at some 5.5 TB/s that bounds the kernel by about 480 TFLOP/s,
74 ms. (Blocks in clusters that share what they fetch would halve that; nobody has measured yet.)

The last tile begins early enough to end with the vocabulary, and masks what the one before had.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels import softmax
from kernels.dispatch import Ref, gpu_interpreter, target
from kernels.softmax import FLOOR

GROUPS = 2
"""Warpgroups that multiply."""
ROWS = 64
"""Tokens of each."""
BLOCK = GROUPS * ROWS
VOCABULARY = 256
COLUMNS = 64
"""Of the hidden width: 128 bytes, what shared memory is swizzled by."""
STAGES = 4
"""Of the ring: 192 KiB of shared memory."""
TILED = (plgpu.TilingTransform((8, COLUMNS)), plgpu.SwizzleTransform(128))
LAYOUT = plgpu.Layout.WGMMA


def unfit(width: int, vocab_size: int, dtype: str) -> str | None:
    """Why the kernel cannot take such arrays; None where it can."""
    if dtype not in ("bfloat16", "float16"):
        return f"Hopper's matrix units round {dtype} to 11 bits; hidden states must be bfloat16"
    if width % COLUMNS:
        return f"the hidden width {width} is not a multiple of {COLUMNS}"
    if vocab_size < VOCABULARY:
        return f"a device's part of the vocabulary, {vocab_size}, is below {VOCABULARY}"
    return None


def statistics(
    hidden: jax.Array, weight: jax.Array, labels: jax.Array, temperature: float
) -> softmax.Statistics:
    """Of tokens [n, D] over a part of the vocabulary [v, D], in one dtype of 16 bits."""
    num_tokens, vocab_size = len(hidden), len(weight)
    fill = -num_tokens % BLOCK
    hidden = jnp.pad(hidden, ((0, fill), (0, 0)))
    labels = jnp.pad(labels.astype(jnp.int32), (0, fill))
    num_blocks = (num_tokens + fill) // BLOCK
    num_tiles = pl.cdiv(vocab_size, VOCABULARY)
    splits = min(num_tiles, max(1, target().num_cores // num_blocks))
    out = plgpu.kernel(
        partial(_kernel, temperature, pl.cdiv(num_tiles, splits)),
        out_type=jax.ShapeDtypeStruct((4, splits, num_tokens + fill), jnp.float32),
        scratch_types=[
            plgpu.SMEM((STAGES, BLOCK, COLUMNS), hidden.dtype, transforms=TILED),
            plgpu.SMEM((STAGES, VOCABULARY, COLUMNS), hidden.dtype, transforms=TILED),
            plgpu.SMEM((GROUPS, ROWS), jnp.int32),
            plgpu.SMEM((GROUPS, 4, ROWS), jnp.float32),
            plgpu.Barrier(num_arrivals=2, num_barriers=STAGES),
            plgpu.Barrier(num_arrivals=GROUPS, num_barriers=STAGES),
            plgpu.Barrier(num_barriers=GROUPS),
        ],
        grid=(num_blocks, splits),
        grid_names=("block", "split"),
        num_threads=GROUPS + 1,
        thread_name="group",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        **gpu_interpreter(),
    )(hidden, weight, labels)
    return softmax.combine(softmax.Statistics(*out[:, :, :num_tokens]))


def _kernel(
    temperature: float,
    tiles_each: int,
    hidden: Ref,
    weight: Ref,
    labels: Ref,
    out: Ref,
    h_ring: Ref,
    w_ring: Ref,
    label_here: Ref,
    out_here: Ref,
    full: Ref,
    empty: Ref,
    label_full: Ref,
) -> None:
    vocab_size, width = weight.shape
    steps = width // COLUMNS
    group, split = lax.axis_index("group"), lax.axis_index("split")
    row = lax.axis_index("block") * BLOCK
    first = split * tiles_each
    last = jnp.minimum(first + tiles_each, pl.cdiv(vocab_size, VOCABULARY))

    def start(tile: jax.Array) -> jax.Array:
        return jnp.minimum(tile * VOCABULARY, vocab_size - VOCABULARY)

    @pl.when(group == GROUPS)
    def _fetch_all() -> None:
        plgpu.set_max_registers(40, action="decrease")

        @pl.loop(0, (last - first) * steps)
        def _fetch(n: jax.Array) -> None:
            slot = lax.rem(n, STAGES)
            pl.when(n >= STAGES)(lambda: plgpu.barrier_wait(empty.at[slot]))
            part = pl.ds(lax.rem(n, steps) * COLUMNS, COLUMNS)
            ids = pl.ds(start(first + lax.div(n, steps)), VOCABULARY)
            plgpu.copy_gmem_to_smem(
                hidden.at[pl.ds(row, BLOCK), part], h_ring.at[slot], full.at[slot]
            )
            plgpu.copy_gmem_to_smem(weight.at[ids, part], w_ring.at[slot], full.at[slot])

    @pl.when(group < GROUPS)
    def _multiply_all() -> None:
        plgpu.set_max_registers(232, action="increase")
        mine = pl.ds(row + group * ROWS, ROWS)
        plgpu.copy_gmem_to_smem(labels.at[mine], label_here.at[group], label_full.at[group])
        plgpu.barrier_wait(label_full.at[group])
        label = plgpu.layout_cast(label_here[group], LAYOUT.reduce(1))

        def multiply(tile: jax.Array, acc: Any) -> jax.Array:
            begin = (tile - first) * steps

            @pl.loop(0, steps)
            def _step(k: jax.Array) -> None:
                slot = lax.rem(begin + k, STAGES)
                plgpu.barrier_wait(full.at[slot])
                rows = pl.ds(group * ROWS, ROWS)
                plgpu.wgmma(acc, h_ring.at[slot, rows], w_ring.at[slot].transpose((1, 0)))
                plgpu.wgmma_wait(1)  # That of the step before is done, and its slot free.
                before = lax.rem(begin + k - 1 + STAGES, STAGES)
                pl.when(k > 0)(lambda: plgpu.barrier_arrive(empty.at[before]))

            z = acc[...]
            plgpu.barrier_arrive(empty.at[lax.rem(begin + steps - 1, STAGES)])
            return z

        def one_tile(tile: jax.Array, seen: softmax.Statistics) -> softmax.Statistics:
            accumulator = plgpu.ACC((ROWS, VOCABULARY), jnp.float32)
            z = pl.run_scoped(partial(multiply, tile), accumulator) * (1 / temperature)

            def widen(x: jax.Array) -> jax.Array:
                return lax.broadcast_in_dim(x, z.shape, [0])

            here = plgpu.broadcasted_iota(jnp.int32, z.shape, 1, layout=LAYOUT)
            ids = start(tile) + here
            new = ids >= tile * VOCABULARY
            return softmax.fold(
                seen,
                jnp.where(new, z, FLOOR),
                new & (ids == widen(label)),
                keepdims=False,
                widen=widen,
            )

        def column(value: float) -> jax.Array:
            return plgpu.layout_cast(jnp.full((ROWS,), value, jnp.float32), LAYOUT.reduce(1))

        nothing = softmax.Statistics(column(FLOOR), column(0.0), column(0.0), column(0.0))
        for i, x in enumerate(lax.fori_loop(first, last, one_tile, nothing)):
            out_here[group, i] = x
        plgpu.commit_smem()
        for i in range(4):
            plgpu.copy_smem_to_gmem(out_here.at[group, i], out.at[i, split, mine])
        plgpu.wait_smem_to_gmem(0)
