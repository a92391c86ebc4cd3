from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import IMPLS, make_mesh, pull_back, random_inputs, relative_l2, running, softmax
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.collectives import collectives
from kernels.dispatch import Tuned, using
from kernels.linear_loss import linear_loss


@pytest.fixture(autouse=True)
def small_chunks() -> Iterator[None]:
    """At most 5 tokens of 101 logits."""
    with using(Tuned(min_tokens=1, forward_chunk=5 * 101, gradient_chunk=5 * 101)):
        yield


def bent(logprobs: jax.Array, entropy: jax.Array, weights: jax.Array) -> jax.Array:
    """A loss whose derivatives depend on both: w (logp^2 / 2 + logp H)."""
    return weights * (logprobs**2 / 2 + logprobs * entropy)


def bent_slopes(logp: np.ndarray, entropy: np.ndarray, weights: np.ndarray) -> Any:
    return weights * (logp + entropy), weights * logp


def nll(logprobs: jax.Array, entropy: jax.Array, weights: jax.Array) -> jax.Array:
    return -weights * logprobs


def gradients(impl: str, inputs: Any, weights: jax.Array, **options: Any) -> Any:
    with running(impl) as how:

        def loss(hidden: jax.Array, weight: jax.Array) -> Any:
            value, *rest = linear_loss(
                bent, hidden, weight, inputs[2], weights, uses_entropy=True, impl=how, **options
            )
            return value, rest

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(*inputs[:2])


@pytest.mark.parametrize("impl", IMPLS[:3])
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    N=st.sampled_from([1, 5, 23]),
    V=st.sampled_from([2, 101]),
    temperature=st.floats(0.3, 3.0),
    seed=st.integers(0, 1000),
)
def test_equals_float64(impl: str, N: int, V: int, temperature: float, seed: int) -> None:
    inputs = random_inputs(N, 16, V, seed=seed, scale=3.0)
    weights = np.random.default_rng(seed).random(N).astype("f4")
    weights[::3] = 0
    (loss, rest), found = gradients(impl, inputs, jnp.asarray(weights), temperature=temperature)
    logp, entropy, _ = softmax(*inputs, temperature)
    terms = weights * (logp**2 / 2 + logp * entropy)
    assert abs(float(loss) - terms.sum()) < 1e-5 * max(np.abs(terms).sum(), 1e-3)
    for one, other in zip(rest, (logp, entropy), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    want = pull_back(*inputs, temperature, *bent_slopes(logp, entropy, weights))
    for one, other in zip(found, want, strict=True):
        assert relative_l2(one, other) < 1e-5 or np.abs(other).max() < 1e-6


@pytest.mark.parametrize(("accumulator", "bound"), [("float32", 5e-3), ("bfloat16", 1e-2)])
def test_bfloat16(accumulator: Any, bound: float) -> None:
    inputs = random_inputs(50, 64, 101, scale=3.0, dtype=jnp.bfloat16)
    weights = jnp.ones(50)
    _, found = gradients("xla", inputs, weights, accumulator=accumulator)
    logp, entropy, _ = softmax(*inputs, 1.0)
    want = pull_back(*inputs, 1.0, *bent_slopes(logp, entropy, np.ones(50)))
    for one, other in zip(found, want, strict=True):
        assert one.dtype == jnp.bfloat16
        assert relative_l2(one, other) < bound


def test_without_gradients_the_value_is_the_same() -> None:
    inputs = random_inputs(23, 16, 101)
    weights = jnp.ones(23)
    with_gradients = gradients("xla", inputs, weights)[0][0]
    value = linear_loss(bent, *inputs, weights, uses_entropy=True)[0]
    np.testing.assert_allclose(value, with_gradients, rtol=1e-6)


def test_a_scaled_loss_has_scaled_gradients() -> None:
    hidden, weight, labels = random_inputs(23, 16, 101)

    def loss(scale: float, hidden: jax.Array) -> jax.Array:
        return scale * linear_loss(nll, hidden, weight, labels, jnp.ones(23))[0]

    one, three = (jax.grad(partial(loss, scale))(hidden) for scale in (1.0, 3.0))
    np.testing.assert_allclose(three, 3 * one, rtol=1e-6)


def test_what_fills_the_last_chunk_adds_nothing() -> None:
    """23 tokens in chunks of 5; the terms of tokens that are not there would be 1."""
    inputs = random_inputs(23, 16, 101)
    loss, *_ = linear_loss(lambda logp, entropy, given: 0 * logp + 1, *inputs, jnp.ones(23))
    assert float(loss) == 23


def _counted(
    counts: np.ndarray, *inputs: jax.Array, impl: Any = "auto"
) -> tuple[Any, tuple[jax.Array, jax.Array]]:
    def loss(hidden: jax.Array, weight: jax.Array) -> Any:
        value, *rest = linear_loss(
            bent,
            hidden,
            weight,
            inputs[2],
            jnp.ones(len(counts)),
            uses_entropy=True,
            counts=jnp.asarray(counts),
            impl=impl,
        )
        return value, rest

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(*inputs[:2])


@pytest.mark.parametrize("impl", ["auto", "reference"])
@settings(max_examples=20, deadline=None, derandomize=True)
@given(counts=st.lists(st.booleans(), min_size=23, max_size=23), seed=st.integers(0, 99))
def test_only_tokens_that_count_do(impl: str, counts: list[bool], seed: int) -> None:
    """They get what the loss of them alone gives them, wherever they stand; the others 0."""
    inputs = random_inputs(23, 16, 101, seed=seed, scale=3.0)
    mask = np.array(counts)
    (loss, rest), (dh, dw) = _counted(mask, *inputs, impl=impl)
    logp, entropy, _ = softmax(*inputs, 1.0)
    assert float(loss) == pytest.approx((mask * (logp**2 / 2 + logp * entropy)).sum(), rel=1e-5)
    for one, other in zip(rest, (logp, entropy), strict=True):
        np.testing.assert_allclose(one, np.where(mask, other, 0), rtol=1e-5, atol=1e-5)
    want = pull_back(*inputs, 1.0, *bent_slopes(logp, entropy, mask.astype("f4")))
    for one, other in zip((dh, dw), want, strict=True):
        assert relative_l2(one, other) < 1e-5 or np.abs(other).max() < 1e-6


def test_chunks_without_tokens_that_count_are_left_out() -> None:
    """A state that is not a number reaches the weight's gradient in its chunk, if that is
    computed: 0 times it is none. Seven tokens that count take two chunks of five."""
    hidden, weight, labels = random_inputs(23, 16, 101)
    counts = np.zeros(23, bool)
    counts[[1, 4, 9, 10, 17, 20, 22]] = True
    broken = hidden.at[jnp.asarray([3, 8, 14])].set(jnp.nan)
    # The stable order puts tokens 0, 2 and 3 behind the seven, in the second chunk.
    sound = broken.at[3].set(0.0)
    assert np.isnan(_counted(counts, broken, weight, labels)[1][1]).any()
    want = _counted(counts, hidden, weight, labels)
    found = _counted(counts, sound, weight, labels)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, want)


def test_a_weight_that_is_not_differentiated_has_no_gradient() -> None:
    hidden, weight, labels = random_inputs(23, 16, 101)

    def loss(hidden: jax.Array, weight: jax.Array) -> jax.Array:
        return linear_loss(nll, hidden, weight, labels, jnp.ones(23))[0]

    def compiled(of: Any) -> Any:
        return jax.jit(jax.grad(loss, of)).lower(hidden, weight).compile()

    alone, both = (compiled(of) for of in (0, (0, 1)))
    np.testing.assert_allclose(alone(hidden, weight), both(hidden, weight)[0], rtol=1e-6, atol=1e-7)
    assert alone.as_text().count(" dot(") < both.as_text().count(" dot(")
    only = jax.grad(loss, 1)(hidden, weight)
    np.testing.assert_allclose(only, both(hidden, weight)[1], rtol=1e-6, atol=1e-7)


def test_no_array_of_all_logits_exists() -> None:
    hidden, weight, labels = random_inputs(23, 16, 101)

    def arrays(impl: Any) -> str:
        def loss(hidden: jax.Array, weight: jax.Array) -> jax.Array:
            return linear_loss(nll, hidden, weight, labels, jnp.ones(23), impl=impl)[0]

        return str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(hidden, weight))

    assert "f32[23,101]" in arrays("reference")
    for impl in ("auto", "xla"):
        assert "f32[5,101]" in arrays(impl) and "[5,5,101]" not in arrays(impl)
        assert "[23,101]" not in arrays(impl)


@pytest.mark.parametrize("shape", ["8x1", "4x2", "2x4", "1x8"])
@pytest.mark.parametrize("N", [56, 21])  # tokens that every mesh divides, and that none does
@pytest.mark.parametrize("all_count", [True, False])
def test_a_mesh_gives_what_one_device_does(shape: str, N: int, all_count: bool) -> None:
    data, model = map(int, shape.split("x"))
    mesh = make_mesh(shape)
    hidden, weight, labels = random_inputs(N, 16, 104, scale=3.0)
    labels = labels.at[:2].set(jnp.array([0, 103]))
    weights = jnp.asarray(np.random.default_rng(1).random(N), "f4")
    counts = None if all_count else jnp.arange(N) % 5 < jnp.where(jnp.arange(N) < N // 2, 4, 1)

    def run(hidden: jax.Array, weight: jax.Array) -> Any:
        return gradients("xla", (hidden, weight, labels), weights, temperature=0.7, counts=counts)

    alone = jax.jit(run)(hidden, weight)
    rows = PartitionSpec("data" if N % data == 0 else None)
    places = [NamedSharding(mesh, spec) for spec in (rows, PartitionSpec(("model", "data")))]
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, p) for x, p in zip((hidden, weight), places, strict=True)]
        compiled = jax.jit(run).lower(*placed).compile()
        found = compiled(*placed)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
        assert relative_l2(one, np.asarray(other, np.float64)) < 3e-6
    assert found[1][1].sharding.is_equivalent_to(places[1], 2)
    gathers = [c for c in collectives(compiled.as_text()) if c.kind == "all-gather"]
    # The local part of the weight, once: the gradients form in the same pass.
    parts = ((104 // model, 16), (104 // model // data, 16))
    assert all(s in parts for c in gathers for s in c.shapes)
    assert len(gathers) == (data > 1)
