from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from benchmarks.collectives import collectives
from kernels.linear_logprob import api, linear_logprob, reference, xla

Inputs = tuple[jax.Array, jax.Array, jax.Array]


def random_inputs(B: int, T: int, D: int, V: int, *, seed: int = 0, scale: float = 1.0) -> Inputs:
    """Hidden states, weight and labels; the logits' standard deviation is `scale`."""
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((B, T, D))
    weight = scale / D**0.5 * rng.standard_normal((V, D))
    labels = rng.integers(0, V, (B, T))
    return jnp.asarray(hidden, "f4"), jnp.asarray(weight, "f4"), jnp.asarray(labels, "i4")


def in_float64(
    hidden: jax.Array, weight: jax.Array, labels: jax.Array, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    logits = np.asarray(hidden, np.float64) @ np.asarray(weight, np.float64).T / temperature
    logits -= logits.max(axis=-1, keepdims=True)
    logp = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    chosen = np.take_along_axis(logp, np.asarray(labels)[..., None], axis=-1)[..., 0]
    return chosen, -(np.exp(logp) * logp).sum(axis=-1)


def gradients_in_float64(
    hidden: jax.Array,
    weight: jax.Array,
    labels: jax.Array,
    temperature: float,
    on_logprob: np.ndarray,
    on_entropy: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """d logp_y / d z = onehot - p and d H / d z = -p (log p + H), z = hidden weight^T / t."""
    h, w = np.asarray(hidden, np.float64), np.asarray(weight, np.float64)
    logits = h @ w.T / temperature
    logits -= logits.max(axis=-1, keepdims=True)
    logp = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    p = np.exp(logp)
    entropy = -(p * logp).sum(axis=-1, keepdims=True)
    onehot = np.eye(len(w))[np.asarray(labels)]
    dz = on_logprob[..., None] * (onehot - p) - on_entropy[..., None] * p * (logp + entropy)
    dz /= temperature
    return dz @ w, np.einsum("btv,btd->vd", dz, h)


def relative_l2(found: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(found, np.float64) - want) / np.linalg.norm(want))


@pytest.mark.parametrize(
    ("chunk", "temperature"), [(1, 0.7), (4, 1.0), (7, 2.5), (11, 0.7), (None, 0.7), (None, 2.5)]
)
def test_values_equal_float64(chunk: int | None, temperature: float) -> None:
    inputs = random_inputs(2, 11, 16, 101)  # 11 and 101 are prime: no chunk but 1 and 11 divides
    found = (
        reference.linear_logprob(*inputs, temperature)
        if chunk is None
        else xla.linear_logprob(*inputs, temperature, chunk)
    )
    for one, want in zip(found, in_float64(*inputs, temperature), strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, want, rtol=0, atol=3e-6)


@pytest.mark.parametrize("impl", ["reference", "xla"])
def test_large_logits(impl: api.Impl) -> None:
    inputs = random_inputs(2, 5, 16, 101, scale=30.0)
    found, entropy = linear_logprob(*inputs, impl=impl)
    want, want_entropy = in_float64(*inputs, 1.0)
    assert want.min() < -60 and want_entropy.min() < 0.01
    np.testing.assert_allclose(found, want, rtol=1e-6, atol=3e-5)
    np.testing.assert_allclose(entropy, want_entropy, rtol=0, atol=3e-5)
    assert (np.asarray(found) <= 0).all()


@pytest.mark.parametrize("impl", ["reference", "xla"])
def test_logits_beyond_the_range_of_exp(impl: api.Impl) -> None:
    hidden, weight, labels = random_inputs(1, 4, 16, 101)
    found, entropy = linear_logprob(hidden * 1e3, weight, labels, impl=impl)
    want, want_entropy = in_float64(hidden * 1e3, weight, labels, 1.0)
    np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-3)
    np.testing.assert_allclose(entropy, want_entropy, rtol=0, atol=1e-3)


@pytest.mark.parametrize("impl", ["reference", "xla"])
def test_labels_in_the_first_and_the_last_column(impl: api.Impl) -> None:
    hidden, weight, _ = random_inputs(1, 6, 8, 53)
    labels = jnp.array([[0, 52, 52, 0, 51, 1]])
    found, _ = linear_logprob(hidden, weight, labels, impl=impl)
    np.testing.assert_allclose(found, in_float64(hidden, weight, labels, 1.0)[0], atol=3e-6)


def test_hand_worked() -> None:
    """Logits (log 3, 0): probabilities 3/4 and 1/4."""
    hidden = jnp.full((1, 1, 1), np.log(3.0))
    weight = jnp.array([[1.0], [0.0]])
    for label, p in ((0, 0.75), (1, 0.25)):
        logprob, entropy = linear_logprob(hidden, weight, jnp.full((1, 1), label))
        assert float(logprob[0, 0]) == pytest.approx(np.log(p), abs=1e-6)
        assert float(entropy[0, 0]) == pytest.approx(0.562335, abs=1e-6)
    warm, _ = linear_logprob(hidden, weight, jnp.zeros((1, 1), int), temperature=2.0)
    assert float(warm[0, 0]) == pytest.approx(np.log(3**0.5 / (1 + 3**0.5)), abs=1e-6)


@pytest.mark.parametrize("chunk", [3, None])
def test_gradients_equal_float64(chunk: int | None) -> None:
    hidden, weight, labels = random_inputs(2, 7, 16, 101, scale=3.0)
    rng = np.random.default_rng(1)
    on_logprob, on_entropy = rng.standard_normal((2, 2, 7)).astype(np.float32)

    def run(hidden: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
        if chunk is None:
            return reference.linear_logprob(hidden, weight, labels, 0.7)
        return xla.linear_logprob(hidden, weight, labels, 0.7, chunk)

    _, pull_back = jax.vjp(run, hidden, weight)
    found = pull_back((jnp.asarray(on_logprob), jnp.asarray(on_entropy)))
    want = gradients_in_float64(hidden, weight, labels, 0.7, on_logprob, on_entropy)
    for one, other in zip(found, want, strict=True):
        assert relative_l2(one, other) < 2e-6


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    B=st.integers(1, 3),
    T=st.integers(1, 9),
    V=st.integers(2, 40),
    chunk=st.integers(1, 10),
    temperature=st.floats(0.3, 3.0),
    seed=st.integers(0, 1000),
)
def test_chunks_equal_the_reference(
    B: int, T: int, V: int, chunk: int, temperature: float, seed: int
) -> None:
    @jax.jit
    def both(*inputs: jax.Array) -> tuple[tuple[jax.Array, jax.Array], ...]:
        found = xla.linear_logprob(*inputs, temperature, chunk)
        return found, reference.linear_logprob(*inputs, temperature)

    found, want = both(*random_inputs(B, T, 4, V, seed=seed))
    for one, other in zip(found, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def test_auto_bounds_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """With more logits than allowed, no array of all of them is ever made, nor kept for later."""
    monkeypatch.setattr(api, "MAX_LOGITS", 2 * 3 * 101)
    inputs = random_inputs(2, 12, 16, 101)

    def loss(hidden: jax.Array, weight: jax.Array, impl: api.Impl) -> jax.Array:
        logprobs, entropy = linear_logprob(hidden, weight, inputs[2], impl=impl)
        return logprobs.sum() + entropy.sum()

    def arrays(impl: api.Impl) -> str:
        return str(jax.make_jaxpr(jax.grad(partial(loss, impl=impl), (0, 1)))(*inputs[:2]))

    assert "[2,12,101]" in arrays("reference")
    for impl in ("auto", "xla"):
        code = arrays(impl)
        assert "f32[6,101]" in code  # two rows of three positions
        assert "[2,12,101]" not in code and "[4,6,101]" not in code


def test_bfloat16_states_give_float32_sums() -> None:
    hidden, weight, labels = random_inputs(2, 5, 64, 101)
    half = hidden.astype(jnp.bfloat16)
    found = linear_logprob(half, weight, labels)
    want = in_float64(half, weight.astype(jnp.bfloat16), labels, 1.0)
    for one, other in zip(found, want, strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", ["8x1", "4x2", "2x4", "1x8"])
@pytest.mark.parametrize("B", [8, 3])  # rows that every mesh divides, and rows that none does
def test_a_mesh_gives_what_one_device_does(shape: str, B: int) -> None:
    data, model = map(int, shape.split("x"))
    devices = np.array(jax.devices()[:8]).reshape(data, model)
    mesh = jax.sharding.Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    hidden, weight, labels = random_inputs(B, 7, 16, 104, scale=3.0)
    labels = labels.at[0, :2].set(jnp.array([0, 103]))
    g, e = np.random.default_rng(1).standard_normal((2, B, 7)).astype(np.float32)

    def run(hidden: jax.Array, weight: jax.Array) -> Any:
        out, pull_back = jax.vjp(
            lambda h, w: xla.linear_logprob(h, w, labels, 0.7, 3), hidden, weight
        )
        return out, pull_back((jnp.asarray(g), jnp.asarray(e)))

    (logprobs, entropy), (dh, dw) = jax.jit(run)(hidden, weight)
    rows = PartitionSpec("data" if data and B % data == 0 else None)
    places = [NamedSharding(mesh, spec) for spec in (rows, PartitionSpec(("model", "data")))]
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, p) for x, p in zip((hidden, weight), places, strict=True)]
        found = jax.jit(run)(*placed)
        text = jax.jit(run).lower(*placed).compile().as_text()
    want = in_float64(hidden, weight, labels, 0.7)
    for one, alone, true in zip(found[0], (logprobs, entropy), want, strict=True):
        np.testing.assert_allclose(one, alone, rtol=1e-6, atol=2e-6)
        np.testing.assert_allclose(one, true, rtol=1e-5, atol=5e-6)
    true = gradients_in_float64(hidden, weight, labels, 0.7, g, e)
    for one, alone, other in zip(found[1], (dh, dw), true, strict=True):
        assert relative_l2(one, alone) < 2e-6 and relative_l2(one, other) < 3e-6
    assert found[1][1].sharding.is_equivalent_to(places[1], 2)
    gathers = [c for c in collectives(text) if c.kind == "all-gather"]
    # The weight's own part along `data`, once forward and once backward (XLA may share them).
    assert len(gathers) <= 2
    assert all(
        s in ((104 // model, 16), (104 // model // data, 16)) for c in gathers for s in c.shapes
    )
