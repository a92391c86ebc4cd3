from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import IMPLS, make_mesh, pull_back, random_inputs, relative_l2, running, softmax
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.collectives import collectives
from kernels.dispatch import Tuned, imitate, using
from kernels.linear_logprob import gpu, linear_logprob, tpu

SETTINGS = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(autouse=True)
def small_tiles() -> Iterator[None]:
    """So small that small arrays take several."""
    with using(Tuned(min_tokens=1, forward_chunk=0, gradient_chunk=0, tokens=32, vocabulary=128)):
        yield


def width(impl: str) -> tuple[int, Any]:
    """What the GPU's kernel takes, and small arrays for the others."""
    return (64, jnp.bfloat16) if impl == "gpu" else (16, jnp.float32)


@pytest.mark.parametrize("impl", IMPLS)
@SETTINGS
@given(
    N=st.sampled_from([1, 7, 130]),
    V=st.sampled_from([2, 101, 257, 384]),
    temperature=st.floats(0.3, 3.0),
    scale=st.sampled_from([1.0, 30.0]),
    seed=st.integers(0, 1000),
)
def test_values_equal_float64(
    impl: str, N: int, V: int, temperature: float, scale: float, seed: int
) -> None:
    D, dtype = width(impl)
    V = max(V, gpu.VOCABULARY) if impl == "gpu" else V
    inputs = random_inputs(N, D, V, seed=seed, scale=scale, dtype=dtype)
    with running(impl) as how:
        found = linear_logprob(*inputs, temperature=temperature, impl=how)
    want = softmax(*inputs, temperature)[:2]
    for one, other in zip(found, want, strict=True):
        assert one.dtype == jnp.float32
        assert relative_l2(one, other) < (1e-4 if scale > 1 else 1e-5) or (
            np.abs(np.asarray(one) - other).max() < 2e-6 * scale / temperature
        )


@pytest.mark.parametrize("impl", IMPLS)
def test_logits_beyond_the_range_of_exp(impl: str) -> None:
    D, dtype = width(impl)
    hidden, weight, labels = random_inputs(4, D, 257, dtype=dtype)
    with running(impl) as how:
        found, entropy = linear_logprob(hidden * 1024, weight, labels, impl=how)
    want, want_entropy, _ = softmax(hidden * 1024, weight, labels, 1.0)
    assert want.min() < -1000
    np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-3)
    np.testing.assert_allclose(entropy, want_entropy, rtol=0, atol=1e-3)


def test_hand_worked() -> None:
    """Logits (log 3, 0): probabilities 3/4 and 1/4."""
    hidden = jnp.full((1, 1), np.log(3.0))
    weight = jnp.array([[1.0], [0.0]])
    for label, p in ((0, 0.75), (1, 0.25)):
        logprob, entropy = linear_logprob(hidden, weight, jnp.full(1, label))
        assert float(logprob[0]) == pytest.approx(np.log(p), abs=1e-6)
        assert float(entropy[0]) == pytest.approx(0.562335, abs=1e-6)
    warm, _ = linear_logprob(hidden, weight, jnp.zeros(1, int), temperature=2.0)
    assert float(warm[0]) == pytest.approx(np.log(3**0.5 / (1 + 3**0.5)), abs=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_gradients_equal_float64(impl: str) -> None:
    D, dtype = width(impl)
    inputs = random_inputs(75, D, 257, scale=3.0, dtype=dtype)
    cotangents = np.random.default_rng(1).standard_normal((2, 75)).astype(np.float32)
    with running(impl) as how:
        run = partial(linear_logprob, labels=inputs[2], temperature=0.7, impl=how)
        _, pull = jax.vjp(run, *inputs[:2])
        found = pull(tuple(jnp.asarray(x) for x in cotangents))
    want = pull_back(*inputs, 0.7, *cotangents)
    for one, other in zip(found, want, strict=True):
        assert relative_l2(one, other) < (5e-3 if dtype == jnp.bfloat16 else 1e-5)


def test_bfloat16_states_give_float32_sums() -> None:
    hidden, weight, labels = random_inputs(5, 64, 101)
    half = hidden.astype(jnp.bfloat16)
    found = linear_logprob(half, weight, labels)
    want = softmax(half, weight.astype(jnp.bfloat16), labels, 1.0)
    for one, other in zip(found, want[:2], strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_no_array_of_all_logits_exists() -> None:
    inputs = random_inputs(24, 16, 101)

    def loss(hidden: jax.Array, weight: jax.Array, impl: Any) -> jax.Array:
        logprobs, entropy = linear_logprob(hidden, weight, inputs[2], impl=impl)
        return logprobs.sum() + entropy.sum()

    def arrays(impl: Any) -> str:
        return str(jax.make_jaxpr(jax.grad(partial(loss, impl=impl), (0, 1)))(*inputs[:2]))

    assert "f32[24,101]" in arrays("reference")
    for impl in ("auto", "xla"):
        code = arrays(impl)
        assert "f32[1,101]" in code
        assert "[24,101]" not in code and "[24,1,101]" not in code


# 56 tokens are what every mesh divides, 21 what none does. A TPU's imitation is slow, and a GPU's
# runs on one device only: its bookkeeping of barriers is not told apart by devices.
MESHES = [(shape, N) for shape in ("8x1", "4x2", "2x4", "1x8") for N in (56, 21)]
ON_MESHES = [("xla", *case) for case in MESHES] + [("tpu", "4x2", 56), ("tpu", "2x4", 21)]


@pytest.mark.parametrize(("impl", "shape", "N"), ON_MESHES)
def test_a_mesh_gives_what_one_device_does(impl: str, shape: str, N: int) -> None:
    data, model = map(int, shape.split("x"))
    mesh = make_mesh(shape)
    D, V = 16, 104
    hidden, weight, labels = random_inputs(N, D, V, scale=3.0)
    labels = labels.at[:2].set(jnp.array([0, V - 1]))
    g, e = np.random.default_rng(1).standard_normal((2, N)).astype(np.float32)

    def run(hidden: jax.Array, weight: jax.Array) -> Any:
        with running(impl) as how:
            out, pull = jax.vjp(
                lambda h, w: linear_logprob(h, w, labels, temperature=0.7, impl=how), hidden, weight
            )
        return out, pull((jnp.asarray(g), jnp.asarray(e)))

    alone = jax.jit(run)(hidden, weight)
    rows = PartitionSpec("data" if N % data == 0 else None)
    places = [NamedSharding(mesh, spec) for spec in (rows, PartitionSpec(("model", "data")))]
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, p) for x, p in zip((hidden, weight), places, strict=True)]
        compiled = jax.jit(run).lower(*placed).compile()
        found = compiled(*placed)
    want = softmax(hidden, weight, labels, 0.7)
    for one, other, true in zip(found[0], alone[0], want, strict=False):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=4e-6)
        np.testing.assert_allclose(one, true, rtol=1e-5, atol=5e-6)
    true = pull_back(hidden, weight, labels, 0.7, g, e)
    for one, other, want in zip(found[1], alone[1], true, strict=True):
        assert relative_l2(one, np.asarray(other, np.float64)) < 2e-6
        assert relative_l2(one, want) < 3e-6
    assert found[1][1].sharding.is_equivalent_to(places[1], 2)
    gathers = [c for c in collectives(compiled.as_text()) if c.kind == "all-gather"]
    # The weight's own part along `data`, once forward and once backward (XLA may share them).
    assert len(gathers) <= 2
    parts = ((V // model, D), (V // model // data, D))
    assert all(s in parts for c in gathers for s in c.shapes)


def test_an_explicit_impl_that_cannot_run_raises() -> None:
    inputs = random_inputs(4, 16, 300)
    with pytest.raises(ValueError, match="TPUs and Hopper GPUs, and this is cpu; use auto"):
        linear_logprob(*inputs, impl="pallas")
    with running("gpu") as how:
        with pytest.raises(ValueError, match="float32 to 11 bits"):
            linear_logprob(*inputs, impl=how)
        half = [x.astype(jnp.bfloat16) for x in inputs[:2]]
        with pytest.raises(ValueError, match="width 16 is not a multiple of 64"):
            linear_logprob(*half, inputs[2], impl=how)
        few = random_inputs(4, 64, 255, dtype=jnp.bfloat16)
        with pytest.raises(ValueError, match="255, is below 256"):
            linear_logprob(*few, impl=how)
        # What was tuned for the chip does not raise where it does not fit.
        with using(Tuned(linear_logprob="pallas")):
            found, _ = linear_logprob(*inputs)
    np.testing.assert_allclose(found, softmax(*inputs, 1.0)[0], atol=3e-6)


def test_a_tile_fits_the_chip() -> None:
    tiles = {}
    for kind in tpu.VMEM_MIB:
        for D in (3584, 8192):
            with imitate(kind, "tpu"), using(Tuned()):
                tiles[kind, D] = tpu.tile(D, 2)
    # `make aot` compiles them.
    assert tiles["TPU v4", 3584] == (512, 256) > tiles["TPU v4", 8192]
    assert tiles["TPU v6 lite", 3584] == tiles["TPU7x", 8192] == (1024, 512)
