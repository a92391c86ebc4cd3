"""Attention over whole sequences, always a library's; here is chosen which, and nothing else.

| name    | computed by                                | T x T in memory           |
|---------|--------------------------------------------|---------------------------|
| xla     | `jax.nn.dot_product_attention`             | yes                       |
| chunked | the same, over blocks of queries           | no: `QUERY_BLOCK` x T     |
| cudnn   | the same, cuDNN's flash kernel (GPU)       | one mask for all heads    |
| splash  | Pallas splash attention of JAX (TPU)       | no                        |

One masked call does it all: merging a prefix part and an own part by their log-sum-exp is silently
wrong on GPUs, where cuDNN drops its cotangent.
"""

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
LONG = 2048
"""Positions above which T x T is kept out of memory."""
CUDNN_MAX_HEAD_WIDTH = 128
SPLASH_LANES = 128
"""Head widths and lengths that a TPU's kernel takes are multiples of this."""
SPLASH_BLOCK = 512


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"],
    impl: Attention = "auto",
) -> Float[Array, "B T N H"]:
    """softmax(q k^T / sqrt(H)) v, where a token sees the earlier tokens of its own segment, and
    itself.

    Raises:
        ValueError: `impl` cannot run here.
    """
    if impl == "auto":
        impl = choose(platform(), q.shape[1], q.shape[3], str(q.dtype))
    match impl:
        case "chunked":
            return _chunked(q, k, v, segment_ids)
        case "cudnn":
            if jax.default_backend() != "gpu":
                raise ValueError("--compute.attention cudnn: needs an NVIDIA GPU")
            if q.dtype not in (jnp.bfloat16, jnp.float16):
                raise ValueError("--compute.attention cudnn: needs --compute.dtype bfloat16")
            mask = segment_mask(segment_ids)
            return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")
        case "splash":
            return splash_attention(q, k, v, segment_ids)
    return jax.nn.dot_product_attention(q, k, v, mask=segment_mask(segment_ids))


def choose(platform: str, length: int, head_width: int, dtype: str) -> Attention:
    """The implementation for a platform of JAX, a sequence length, a head width and a dtype."""
    if platform == "tpu" and length >= SPLASH_LANES:
        return "splash"
    if length > LONG:
        return "chunked"
    if platform == "gpu" and dtype in ("bfloat16", "float16"):
        return "cudnn" if head_width <= CUDNN_MAX_HEAD_WIDTH and head_width % 8 == 0 else "xla"
    return "xla"


def segment_mask(segment_ids: Int[Array, "B T"]) -> Bool[Array, "B 1 T T"]:
    """A token sees the earlier tokens of its own segment, and itself."""
    return _block_mask(segment_ids, segment_ids, 0)


def _block_mask(
    queries: Int[Array, "B t"], keys: Int[Array, "B S"], start: int | Int[Array, ""]
) -> Bool[Array, "B 1 t S"]:
    """The rows of the mask from `start` on, given both sides' segments."""
    same = queries[:, :, None] == keys[:, None, :]
    rows = start + jnp.arange(queries.shape[1])
    return (same & (rows[:, None] >= jnp.arange(keys.shape[1])))[:, None]


def _chunked(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """A loop over blocks of queries, each against all keys. The backward pass computes a block's
    weights again. (Unrolled blocks could stop at their last key, but compilers then overlap
    them, and hold the square after all.)"""
    B, T, N, H = q.shape
    pad = -T % QUERY_BLOCK
    num_blocks = (T + pad) // QUERY_BLOCK

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, pad), *((0, 0),) * (x.ndim - 2)))
        return x.reshape(B, num_blocks, QUERY_BLOCK, *x.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint
    def block(xs: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        queries, segments, start = xs
        mask = _block_mask(segments, segment_ids, start)
        return jax.nn.dot_product_attention(queries, k, v, mask=mask)

    starts = QUERY_BLOCK * jnp.arange(num_blocks)
    out = jax.lax.map(block, (split(q), split(segment_ids), starts))
    return out.swapaxes(0, 1).reshape(B, T + pad, N, H)[:, :T]


def splash_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"],
    *,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """JAX's splash attention, sharded by hand over the mesh in force, since TPU kernels are not
    partitioned for us. Lengths and head widths are padded to what the kernel takes."""
    _, T, N, H = q.shape
    block = min(SPLASH_BLOCK, -(-T // SPLASH_LANES) * SPLASH_LANES)
    pad_t, pad_h = -T % block, -H % SPLASH_LANES

    def pad(x: jax.Array) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, pad_t), (0, 0), (0, pad_h))).swapaxes(1, 2)

    # Padding is a segment of its own, so that no row of the softmax is empty.
    segments = jnp.pad(segment_ids.astype(jnp.int32), ((0, 0), (0, pad_t)), constant_values=-1)
    args = (pad(q * H**-0.5), pad(k), pad(v), segments)

    def local(
        q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array
    ) -> Float[Array, "b n T H"]:
        causal = splash_mask.CausalMask((q.shape[2], q.shape[2]))
        kernel = splash.make_splash_mha_single_device(
            splash_mask.MultiHeadMask([causal] * q.shape[1]),
            block_sizes=splash.BlockSizes(
                block_q=block,
                block_kv=block,
                block_kv_compute=block,
                block_q_dkv=block,
                block_kv_dkv=block,
                block_kv_dkv_compute=block,
                block_q_dq=block,
                block_kv_dq=block,
            ),
            interpret=interpret,
        )
        return jax.vmap(kernel)(q, k, v, splash.SegmentIds(segments, segments))

    out = _over_mesh(local, *args)
    return out.swapaxes(1, 2)[:, :T, :, :H].astype(q.dtype)


def _over_mesh(local: Callable[..., jax.Array], *args: jax.Array) -> jax.Array:
    """Runs `local` on each device's own rows and heads; without a mesh, as it is."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local(*args)
    q, k, v, segments = args
    if k.shape[1] % mesh.shape["model"]:
        # The model axis divides the query heads but not the key-value heads: one copy for each.
        k, v = (jnp.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))

    def spec(x: jax.Array, *axes: str) -> PartitionSpec:
        return partition(x.shape, axes, ACTIVATION_RULES, mesh)

    heads = [spec(x, "batch", "heads", "length", "head_width") for x in (q, k, v)]
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(*heads, spec(segments, "batch", "length")),
        out_specs=heads[0],
        check_vma=False,
    )(q, k, v, segments)
