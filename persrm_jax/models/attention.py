"""Attention over whole sequences, always a library's; here is chosen which, and nothing else.

| name    | computed by                                | T x T in memory           |
|---------|--------------------------------------------|---------------------------|
| xla     | `jax.nn.dot_product_attention`; on a CPU   | yes                       |
|         | blocks of queries stop at their last key   |                           |
| chunked | the same, over blocks of queries           | no: `QUERY_BLOCK` x T     |
| cudnn   | the same, cuDNN's flash kernel (GPU)       | one mask for all heads    |
| splash  | Pallas splash attention of JAX (TPU)       | no                        |

One masked call does it all: merging a prefix part and an own part by their log-sum-exp is silently
wrong on GPUs, where cuDNN drops its cotangent.
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from kernels.dispatch import platform
from persrm_jax.models.config import Attention
from persrm_jax.sharding import ACTIVATION_RULES, partition

QUERY_BLOCK = 512
"""Queries that `chunked` takes at a time."""
CPU_BLOCK, CPU_BLOCKS = 128, 8
"""Queries of a block of `xla` on a CPU, at least; and blocks, at most."""
LONG = 2048
"""Positions above which T x T is kept out of memory."""
CUDNN_MAX_HEAD_WIDTH = 128
SPLASH_LANES = 128
"""Head widths and lengths that a TPU's kernel takes are multiples of this."""
SPLASH_BLOCK = 512


def attention(
    q: Float[Array, "B t N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"],
    impl: Attention = "auto",
    member_ids: Int[Array, "B T"] | None = None,
) -> Float[Array, "B t N H"]:
    """softmax(q k^T / sqrt(H)) v, where a token sees the earlier tokens of its own segment, and
    itself. Queries may be those of the last t tokens alone.

    Args:
        member_ids: parts of a segment: a token sees only those of member 0 and of its own.

    Raises:
        ValueError: `impl` cannot run here.
    """
    match resolve(impl, k.shape[1], q, has_members=member_ids is not None):
        case "chunked":
            return _chunked(q, k, v, segment_ids, member_ids)
        case "cudnn":
            if jax.default_backend() != "gpu":
                raise ValueError("--compute.attention cudnn: needs an NVIDIA GPU")
            if q.dtype not in (jnp.bfloat16, jnp.float16):
                raise ValueError("--compute.attention cudnn: needs --compute.dtype bfloat16")
            mask = segment_mask(segment_ids, q.shape[1], member_ids)
            return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")
        case "splash":
            if member_ids is not None:
                raise ValueError(
                    "--compute.attention splash: cannot keep the completions of a packed row apart "
                    "(--rft.pack-length); use chunked"
                )
            return splash_attention(q, k, v, segment_ids)
    num_blocks = 1
    if platform() == "cpu":
        num_blocks = min(max(q.shape[1] // CPU_BLOCK, 1), CPU_BLOCKS)
    return _causal_blocks(q, k, v, _ids(segment_ids, member_ids), num_blocks)


def _causal_blocks(
    q: jax.Array, k: jax.Array, v: jax.Array, ids: Int[Array, "B T 2"], num_blocks: int
) -> jax.Array:
    """Blocks of queries, each against the keys up to its last: of a long row, half the square."""
    first = k.shape[1] - q.shape[1]
    edges = [q.shape[1] * i // num_blocks for i in range(num_blocks + 1)]
    found = []
    for begin, stop in itertools.pairwise(edges):
        start, end = first + begin, first + stop
        mask = _block_mask(ids[:, start:end], ids[:, :end], start)
        queries = q[:, begin:stop]
        found.append(jax.nn.dot_product_attention(queries, k[:, :end], v[:, :end], mask=mask))
    return jnp.concatenate(found, axis=1)


def resolve(impl: Attention, length: int, q: jax.Array, *, has_members: bool = False) -> Attention:
    """`impl`, or where that is `auto` what suits the platform, keys of this length, and queries."""
    if impl != "auto":
        return impl
    return choose(platform(), length, q.shape[-1], str(q.dtype), has_members=has_members)


def choose(
    platform: str, length: int, head_width: int, dtype: str, *, has_members: bool = False
) -> Attention:
    """The implementation for a platform of JAX, a sequence length, a head width and a dtype."""
    if platform == "tpu" and length >= SPLASH_LANES and not has_members:
        return "splash"
    if length > LONG:
        return "chunked"
    if platform == "gpu" and dtype in ("bfloat16", "float16"):
        return "cudnn" if head_width <= CUDNN_MAX_HEAD_WIDTH and head_width % 8 == 0 else "xla"
    return "xla"


def segment_mask(
    segment_ids: Int[Array, "B T"],
    num_queries: int,
    member_ids: Int[Array, "B T"] | None = None,
) -> Bool[Array, "B 1 t T"]:
    """What each of the last t tokens sees, as `attention` has it."""
    start = segment_ids.shape[1] - num_queries
    keys = _ids(segment_ids, member_ids)
    return _block_mask(keys[:, start:], keys, start)


def _ids(segment_ids: jax.Array, member_ids: jax.Array | None) -> Int[Array, "B T 2"]:
    """Segment and member of each token."""
    members = jnp.zeros_like(segment_ids) if member_ids is None else member_ids
    return jnp.stack([segment_ids, members], axis=2)


def _block_mask(
    queries: Int[Array, "B t 2"], keys: Int[Array, "B S 2"], start: int | Int[Array, ""]
) -> Bool[Array, "B 1 t S"]:
    """The rows of the mask from `start` on, given both sides' segments and members."""
    same = queries[:, :, None, 0] == keys[:, None, :, 0]
    theirs = keys[:, None, :, 1]
    same &= (theirs == 0) | (queries[:, :, None, 1] == theirs)
    rows = start + jnp.arange(queries.shape[1])
    return (same & (rows[:, None] >= jnp.arange(keys.shape[1])))[:, None]


def _chunked(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    member_ids: jax.Array | None,
) -> jax.Array:
    """A loop over blocks of queries, each against all keys. The backward pass computes a block's
    weights again. (Unrolled blocks could stop at their last key, but compilers then overlap
    them, and hold the square after all.)"""
    B, T, N, H = q.shape
    first = k.shape[1] - T
    pad = -T % QUERY_BLOCK
    num_blocks = (T + pad) // QUERY_BLOCK
    ids = _ids(segment_ids, member_ids)

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, pad), *((0, 0),) * (x.ndim - 2)))
        return x.reshape(B, num_blocks, QUERY_BLOCK, *x.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint
    def block(xs: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        queries, mine, start = xs
        mask = _block_mask(mine, ids, start)
        return jax.nn.dot_product_attention(queries, k, v, mask=mask)

    starts = first + QUERY_BLOCK * jnp.arange(num_blocks)
    out = jax.lax.map(block, (split(q), split(ids[:, first:]), starts))
    return out.swapaxes(0, 1).reshape(B, T + pad, N, H)[:, :T]


def splash_attention(
    q: Float[Array, "B t N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"],
    *,
    interpret: bool = False,
) -> Float[Array, "B t N H"]:
    """JAX's splash attention, sharded by hand over the mesh in force, since TPU kernels are not
    partitioned for us. Lengths and head widths are padded to what the kernel takes."""
    (_, t, _, H), T = q.shape, k.shape[1]
    first = T - t
    block_q, block_kv = (
        min(SPLASH_BLOCK, -(-length // SPLASH_LANES) * SPLASH_LANES) for length in (t, T)
    )

    def fill(x: jax.Array, block: int) -> tuple[tuple[int, int], tuple[int, int]]:
        return (0, 0), (0, -x.shape[1] % block)

    def pad(x: jax.Array, block: int) -> jax.Array:
        width = ((0, 0), (0, -H % SPLASH_LANES))
        return jnp.pad(x, (*fill(x, block), *width)).swapaxes(1, 2)

    args = (pad(q * H**-0.5, block_q), pad(k, block_kv), pad(v, block_kv))
    # Nobody sees the padding of keys; that of queries sees something, for no softmax may be empty.
    keys = segment_ids.astype(jnp.int32)
    queries = keys[:, first:]
    segments = (
        jnp.pad(queries, fill(queries, block_q), mode="edge"),
        jnp.pad(keys, fill(keys, block_kv), constant_values=-1),
    )

    def local(
        q: jax.Array, k: jax.Array, v: jax.Array, mine: jax.Array, all_: jax.Array
    ) -> Float[Array, "b n t H"]:
        causal = splash_mask.CausalMask((q.shape[2], k.shape[2]), offset=first)
        kernel = splash.make_splash_mha_single_device(
            splash_mask.MultiHeadMask([causal] * q.shape[1]),
            block_sizes=splash.BlockSizes(
                block_q=block_q,
                block_kv=block_kv,
                block_kv_compute=block_kv,
                block_q_dkv=block_q,
                block_kv_dkv=block_kv,
                block_kv_dkv_compute=block_kv,
                block_q_dq=block_q,
                block_kv_dq=block_kv,
            ),
            interpret=interpret,
        )
        return jax.vmap(kernel)(q, k, v, splash.SegmentIds(mine, all_))

    out = _over_mesh(local, *args, *segments)
    return out.swapaxes(1, 2)[:, :t, :, :H].astype(q.dtype)


def _over_mesh(local: Callable[..., jax.Array], *args: jax.Array) -> jax.Array:
    """Runs `local` on each device's own rows and heads; without a mesh, as it is."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local(*args)
    q, k, v, *segments = args
    if k.shape[1] % mesh.shape["model"]:
        # The model axis divides the query heads but not the key-value heads: one copy for each.
        k, v = (jnp.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))

    def spec(x: jax.Array, *axes: str) -> PartitionSpec:
        return partition(x.shape, axes, ACTIVATION_RULES, mesh)

    heads = [spec(x, "batch", "heads", "length", "head_width") for x in (q, k, v)]
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(*heads, *(spec(s, "batch", "length") for s in segments)),
        out_specs=heads[0],
        check_vma=False,
    )(q, k, v, *segments)
