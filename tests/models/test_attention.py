import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from persrm_jax.models import attention as module
from persrm_jax.models.attention import attention, choose, segment_mask, splash_attention
from persrm_jax.models.config import Attention
from persrm_jax.sharding import MeshShape, make_mesh

B, T, N, K, H = 4, 40, 4, 2, 8
IMPLS: tuple[Attention, ...] = ("xla", "chunked", "splash")


def naive(q: np.ndarray, k: np.ndarray, v: np.ndarray, segment_ids: np.ndarray) -> np.ndarray:
    """float64, one query at a time."""
    out = np.zeros(q.shape)
    for b in range(q.shape[0]):
        for t in range(q.shape[1]):
            seen = [s for s in range(t + 1) if segment_ids[b, s] == segment_ids[b, t]]
            for n in range(q.shape[2]):
                m = n * k.shape[2] // q.shape[2]
                scores = k[b, seen, m].astype(np.float64) @ q[b, t, n] / np.sqrt(q.shape[3])
                weights = np.exp(scores - scores.max())
                out[b, t, n] = weights / weights.sum() @ v[b, seen, m]
    return out


def inputs(seed: int = 0) -> tuple[np.ndarray, ...]:
    """Rows with one segment, padding on the left, padding on the right, and two segments."""
    rng = np.random.default_rng(seed)
    q = 2 * rng.standard_normal((B, T, N, H)).astype(np.float32)
    k, v = (rng.standard_normal((B, T, K, H)).astype(np.float32) for _ in range(2))
    segments = np.ones((B, T), np.int32)
    segments[1, :11] = 0
    segments[2, 29:] = 0
    segments[3, 17:] = 2
    return q, k, v, segments


def run(impl: Attention, *args: jax.Array) -> jax.Array:
    if impl == "splash":
        return splash_attention(*args, interpret=True)
    return attention(*args, impl)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that T takes several blocks, the last of them ragged."""
    monkeypatch.setattr(module, "QUERY_BLOCK", 16)
    monkeypatch.setattr(module, "CPU_BLOCK", 12)


@pytest.mark.parametrize("impl", IMPLS)
def test_equals_attention_written_out(impl: Attention) -> None:
    args = inputs()
    np.testing.assert_allclose(run(impl, *map(jnp.asarray, args)), naive(*args), atol=2e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_gradients_are_those_of_one_block(impl: Attention, monkeypatch: pytest.MonkeyPatch) -> None:
    *qkv, segments = map(jnp.asarray, inputs(1))

    def loss(impl: Attention, qkv: list[jax.Array]) -> jax.Array:
        return jnp.sum(jnp.sin(run(impl, *qkv, segments)))

    found = jax.grad(functools.partial(loss, impl))(qkv)
    monkeypatch.setattr(module, "CPU_BLOCKS", 1)
    want = jax.grad(functools.partial(loss, "xla"))(qkv)
    for a, b in zip(found, want, strict=True):
        assert np.linalg.norm(a - b) < 1e-5 * np.linalg.norm(b)


@pytest.mark.parametrize("impl", ["xla", "chunked"])
def test_the_last_queries_alone_and_members_of_a_segment(
    impl: Attention, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v, segments = map(jnp.asarray, inputs(3))
    members = jnp.asarray(np.random.default_rng(3).integers(0, 3, (B, T)), jnp.int32)
    found = attention(q[:, 7:], k, v, segments, impl, members)
    monkeypatch.setattr(module, "CPU_BLOCKS", 1)
    whole = attention(q, k, v, segments, "xla", members)
    np.testing.assert_allclose(found, whole[:, 7:], atol=2e-6)
    assert not np.allclose(whole, attention(q, k, v, segments, "xla"))


@pytest.mark.parametrize("side", [2, 4])
@pytest.mark.parametrize("impl", IMPLS)
def test_any_mesh_gives_the_same(impl: Attention, side: int) -> None:
    """Over 4, the two key-value heads are not divided and each device needs its own."""
    args = tuple(map(jnp.asarray, inputs(2)))
    with jax.set_mesh(make_mesh(MeshShape(2, side))):
        found = jax.jit(functools.partial(run, impl))(*args)
    np.testing.assert_allclose(found, run("xla", *args), atol=2e-6)


def temporaries(impl: Attention, length: int) -> int:
    """Bytes that attention and its gradient hold, of one row."""
    qkv = [jax.ShapeDtypeStruct((1, length, heads, H), "float32") for heads in (N, K, K)]
    segments = jax.ShapeDtypeStruct((1, length), "int32")

    def loss(qkv: list[jax.Array], segments: jax.Array) -> jax.Array:
        return jnp.sum(run(impl, *qkv, segments))

    stats = jax.jit(jax.grad(loss)).lower(qkv, segments).compile().memory_analysis()
    return stats.temp_size_in_bytes


def test_chunked_attention_holds_no_square(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUERY_BLOCK", 512)
    monkeypatch.setattr(module, "CPU_BLOCKS", 1)
    square = 8192 * 8192 * N * 4
    assert temporaries("xla", 8192) > square
    # Four arrays of one block's size, [512, 8192] for each head, and the operands.
    assert temporaries("chunked", 8192) < square / 3


@pytest.mark.parametrize(
    ("platform", "length", "head_width", "dtype", "want"),
    [
        ("cpu", 512, 64, "float32", "xla"),
        ("cpu", 8192, 64, "float32", "chunked"),
        ("gpu", 512, 64, "bfloat16", "cudnn"),
        ("gpu", 512, 64, "float32", "xla"),
        ("gpu", 512, 256, "bfloat16", "xla"),
        ("gpu", 8192, 64, "bfloat16", "chunked"),
        ("tpu", 8192, 64, "bfloat16", "splash"),
        ("tpu", 64, 64, "bfloat16", "xla"),
    ],
)
def test_who_computes(
    platform: str, length: int, head_width: int, dtype: str, want: Attention
) -> None:
    assert choose(platform, length, head_width, dtype) == want


def test_members_are_not_for_splash() -> None:
    assert choose("tpu", 1024, 64, "bfloat16", has_members=True) == "xla"
    assert choose("tpu", 8192, 64, "bfloat16", has_members=True) == "chunked"


def test_a_member_sees_its_segments_first_and_itself() -> None:
    segments = jnp.array([[1, 1, 1, 1, 2, 2, 0]])
    members = jnp.array([[0, 1, 1, 2, 0, 1, 0]])
    want = np.array(
        [
            [1, 0, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0, 0],
            [1, 0, 0, 1, 0, 0, 0],
            [0, 0, 0, 0, 1, 0, 0],
            [0, 0, 0, 0, 1, 1, 0],
            [0, 0, 0, 0, 0, 0, 1],
        ],
        bool,
    )
    np.testing.assert_array_equal(segment_mask(segments, 7, members)[0, 0], want)
    np.testing.assert_array_equal(segment_mask(segments, 3, members)[0, 0], want[4:])


def test_what_cannot_run_here_says_so() -> None:
    args = tuple(map(jnp.asarray, inputs()))
    with pytest.raises(ValueError, match="cudnn: needs an NVIDIA GPU"):
        attention(*args, "cudnn")


def test_only_one_file_chooses() -> None:
    package = Path(module.__file__).parents[1]
    users = [p.name for p in package.rglob("*.py") if "dot_product_attention" in p.read_text()]
    assert users == ["attention.py"]


def test_splash_lowers_for_a_tpu_without_one() -> None:
    shapes = [jax.ShapeDtypeStruct((2, 256, heads, 64), "bfloat16") for heads in (N, K, K)]
    segments = jax.ShapeDtypeStruct((2, 256), "int32")

    def loss(qkv: list[jax.Array], segments: jax.Array) -> jax.Array:
        return jnp.sum(splash_attention(*qkv, segments).astype("float32"))

    exported = jax.export.export(jax.jit(jax.grad(loss)), platforms=["tpu"])(shapes, segments)
    # Forward, and two of the backward pass.
    assert exported.mlir_module().count("tpu_custom_call") >= 3
