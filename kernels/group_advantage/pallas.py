"""`group_advantage` in one kernel (Pallas): two passes over the pairs of a block's members.

A block of members is compared with all, first for the size of each one's group and its mean
difference from it, then for the squares; equal rewards cancel exactly, as in the reference.

Roofline: 4,096 rewards are 49 KB, 0.02 us of an H100, and 17 million comparisons: the launch takes
longer, and nothing is claimed over XLA. (A GPU's threads read the other members one by one.)
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from kernels.dispatch import Ref, gpu_interpreter, target
from kernels.sharding import over_mesh

BLOCK = 128
TINY = 1e-37
"""Below the variance of any rewards that differ."""
PAIRS = 1 << 19
"""That a TPU's block holds at once: 2 MiB of float32 for each array of them."""


def group_advantage(
    rewards: jax.Array,
    group_ids: jax.Array,
    mask: jax.Array | None,
    baseline: str,
    scale_by_std: bool,
    eps: float,
) -> jax.Array:
    """As the reference."""
    num = len(rewards)
    counts = jnp.ones(num, jnp.int32) if mask is None else mask.astype(jnp.int32)
    rewards = jnp.where(counts > 0, rewards, 0.0).astype(jnp.float32)
    fill = (0, -num % BLOCK)
    arrays = [jnp.pad(x, fill) for x in (rewards, group_ids.astype(jnp.int32), counts)]
    run = _on_tpu if target().platform == "tpu" else _on_gpu
    finish = partial(_finish, baseline, scale_by_std, eps)
    # Every device of a mesh computes them all: they are few.
    whole = PartitionSpec()
    return over_mesh(partial(run, finish), (whole,) * 3, whole)(*arrays)[:num]


def _finish(
    baseline: str,
    scale_by_std: bool,
    eps: float,
    size: jax.Array,
    centered: jax.Array,
    squares: jax.Array,
    counts: jax.Array,
) -> jax.Array:
    others = jnp.maximum(size - 1, 1)
    advantage = centered * size / others if baseline == "leave_one_out" else centered
    if scale_by_std:
        variance = squares / others
        # The square root, which Mosaic GPU has only from jax 0.11 on.
        std = variance * lax.rsqrt(jnp.maximum(variance, TINY))
        advantage = advantage / (std + eps)
    return jnp.where(counts > 0, advantage, jnp.zeros_like(advantage))


def _on_tpu(
    finish: partial[jax.Array], rewards: jax.Array, ids: jax.Array, counts: jax.Array
) -> jax.Array:
    num = len(rewards)
    block = max(8, min(BLOCK, PAIRS // num // 8 * 8))
    column, row = (
        pl.BlockSpec((block, 1), lambda i: (i, 0)),
        pl.BlockSpec((1, num), lambda i: (0, 0)),
    )
    out = pl.pallas_call(
        partial(_tpu_kernel, finish),
        out_shape=jax.ShapeDtypeStruct((num, 1), jnp.float32),
        grid=(num // block,),
        in_specs=[column] * 3 + [row] * 3,
        out_specs=column,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        interpret=target().interpret,
        name="group_advantage",
    )(*(x[:, None] for x in (rewards, ids, counts)), *(x[None] for x in (rewards, ids, counts)))
    return out[:, 0]


def _tpu_kernel(finish: partial[jax.Array], *refs: Ref) -> None:
    r, g, counts, r_all, g_all, counts_all, out = refs
    same = (g[...] == g_all[...]) & (counts_all[...] > 0)
    differences = r[...] - r_all[...]

    def add(terms: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(same, terms, 0.0), axis=1, keepdims=True)

    size = jnp.maximum(add(jnp.ones_like(differences)), 1.0)
    centered = add(differences) / size
    deviations = centered - differences
    out[...] = finish(size, centered, add(deviations * deviations), counts[...])


def _on_gpu(
    finish: partial[jax.Array], rewards: jax.Array, ids: jax.Array, counts: jax.Array
) -> jax.Array:
    return plgpu.kernel(
        partial(_gpu_kernel, finish),
        out_type=jax.ShapeDtypeStruct(rewards.shape, jnp.float32),
        grid=(len(rewards) // BLOCK,),
        grid_names=("block",),
        compiler_params=plgpu.CompilerParams(),
        **gpu_interpreter(),
    )(rewards, ids, counts)


def _gpu_kernel(finish: partial[jax.Array], *refs: Ref) -> None:
    rewards, ids, counts, out = refs
    here = pl.ds(lax.axis_index("block") * BLOCK, BLOCK)
    r, g = rewards[here], ids[here]
    num = rewards.shape[0]
    layout = plgpu.Layout.WG_STRIDED((BLOCK,), 1)
    nothing = plgpu.layout_cast(jnp.zeros((BLOCK,), jnp.float32), layout)

    def same(j: jax.Array) -> jax.Array:
        return (g == ids[j]) & (jnp.full_like(g, counts[j]) > 0)

    def first(j: jax.Array, seen: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        size, sums = seen
        return (
            size + jnp.where(same(j), jnp.ones_like(r), nothing),
            sums + jnp.where(same(j), r - rewards[j], nothing),
        )

    size, sums = lax.fori_loop(0, num, first, (nothing, nothing))
    size = jnp.maximum(size, jnp.ones_like(size))
    centered = sums / size

    def second(j: jax.Array, squares: jax.Array) -> jax.Array:
        deviation = centered - (r - rewards[j])
        return squares + jnp.where(same(j), deviation * deviation, nothing)

    squares = lax.fori_loop(0, num, second, nothing)
    out[here] = finish(size, centered, squares, counts[here])
