from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import (
    IMPLS,
    make_mesh,
    pull_back,
    random_inputs,
    relative_l2,
    running,
    softmax,
    surrogate,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from kernels.dispatch import Tuned, using
from kernels.grpo_loss import grpo_loss
from kernels.token_loss import KlEstimator, TokenInputs, TokenRule

ORACLE = Path(__file__).parents[1] / "data" / "grpo_oracle.npz"
RULE = TokenRule(0.2, 0.28, 0.04, "k3")


@pytest.fixture(autouse=True)
def small_chunks() -> Iterator[None]:
    """A few tokens of 101 logits."""
    with using(
        Tuned(
            min_tokens=1, forward_chunk=5 * 101, gradient_chunk=5 * 101, tokens=32, vocabulary=128
        )
    ):
        yield


def random_tokens(logprobs: np.ndarray, seed: int, *, old: bool, ref: bool) -> TokenInputs:
    """A third of them do not count, and hold infinities."""
    rng = np.random.default_rng(seed)
    N = len(logprobs)
    counts = rng.random(N) < 2 / 3
    before, reference = (logprobs + 0.4 * rng.standard_normal((2, N))).astype("f4")
    before[~counts], reference[~counts] = -np.inf, np.inf
    weights = np.where(counts, rng.random(N), 0).astype("f4")
    advantages = rng.standard_normal(N).astype("f4")
    given = TokenInputs(weights, advantages, before if old else None, reference if ref else None)
    return jax.tree.map(jnp.asarray, given)


def run(impl: str, arrays: Any, inputs: TokenInputs, rule: TokenRule, **options: Any) -> Any:
    with running(impl) as how:

        def loss(hidden: jax.Array, weight: jax.Array) -> Any:
            found = grpo_loss(hidden, weight, arrays[2], inputs, rule, impl=how, **options)
            return found.loss, found

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(*arrays[:2])


@pytest.mark.parametrize("impl", IMPLS)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    N=st.sampled_from([1, 5, 23]),
    estimator=st.sampled_from(["k1", "k2", "k3"]),
    old=st.booleans(),
    ref=st.booleans(),
    entropy_coef=st.sampled_from([0.0, 0.3]),
    temperature=st.floats(0.5, 2.0),
    seed=st.integers(0, 1000),
)
def test_equals_float64(
    impl: str,
    N: int,
    estimator: KlEstimator,
    old: bool,
    ref: bool,
    entropy_coef: float,
    temperature: float,
    seed: int,
) -> None:
    half = impl == "gpu"
    arrays = random_inputs(
        N,
        64 if half else 16,
        257 if half else 101,
        seed=seed,
        scale=2.0,
        dtype=jnp.bfloat16 if half else jnp.float32,
    )
    logp, entropy, _ = softmax(*arrays, temperature)
    inputs = random_tokens(logp, seed, old=old, ref=ref)
    rule = RULE._replace(kl_estimator=estimator)
    (loss, found), gradients = run(
        impl, arrays, inputs, rule, temperature=temperature, entropy_coef=entropy_coef
    )
    terms, slopes, sums = surrogate(logp, inputs, rule)
    weights = np.asarray(inputs.weights, np.float64)
    terms = terms - entropy_coef * weights * entropy
    assert abs(float(loss) - terms.sum()) < 1e-5 * max(np.abs(terms).sum(), 1e-2)
    for one, other in ((found.logprobs, logp), (found.entropy, entropy)):
        np.testing.assert_allclose(one, np.where(weights, other, 0), rtol=1e-5, atol=1e-5)
    for name, value in sums.items():
        assert float(getattr(found.sums, name)) == pytest.approx(value, rel=1e-4, abs=1e-5), name
    want = pull_back(*arrays, temperature, slopes, -entropy_coef * weights)
    for one, other in zip(gradients, want, strict=True):
        assert relative_l2(one, other) < (5e-3 if half else 1e-5) or np.abs(other).max() < 1e-6


@pytest.mark.parametrize("old", ["given", "self"])
@pytest.mark.parametrize("beta", ["0", "0.04"])
@pytest.mark.parametrize("case", ["main", "edge"])
@pytest.mark.parametrize("impl", IMPLS[:3])
def test_equals_trl(impl: str, case: str, beta: str, old: str) -> None:
    """Two words, and hidden states such that the first has the oracle's probability: then the
    gradient with respect to logit 0 is dloss/dlogp * (1 - p)."""
    with np.load(ORACLE) as oracle:
        mask = oracle[f"{case}/mask"] > 0
        logprobs = oracle[f"{case}/logps"].ravel()
        given, ref = (jnp.asarray(oracle[f"{case}/{n}"].ravel(), "f4") for n in ("old", "ref"))
        advantages = np.broadcast_to(oracle[f"{case}/adv_group"][:, None], mask.shape)
        want = f"trl/{case}/grpo/beta={beta}/old={old}"
        loss, gradient = oracle[f"{want}/loss"], oracle[f"{want}/grad"]
    logits = logprobs - np.log(-np.expm1(logprobs))
    arrays = (
        jnp.asarray(logits[:, None], "f4"),
        jnp.array([[1.0], [0.0]]),
        jnp.zeros(len(logits), jnp.int32),
    )
    weights = mask / np.maximum(mask.sum(axis=1, keepdims=True), 1) / len(mask)
    inputs = TokenInputs(
        jnp.asarray(weights.ravel(), "f4"),
        jnp.asarray(advantages.ravel(), "f4"),
        given if old == "given" else None,
        ref if float(beta) else None,
    )
    (found, _), (dh, _) = run(impl, arrays, inputs, RULE._replace(kl_coef=float(beta)))
    assert float(found) == pytest.approx(float(loss), abs=1e-6)
    assert relative_l2(dh[:, 0], gradient.ravel() * -np.expm1(logprobs)) < 2e-6


@pytest.mark.parametrize(("impl", "shape"), [("xla", "8x1"), ("xla", "4x2"), ("tpu", "4x2")])
def test_a_mesh_gives_what_one_device_does(impl: str, shape: str) -> None:
    arrays = random_inputs(56, 16, 104, scale=2.0)
    inputs = random_tokens(softmax(*arrays, 1.0)[0], 0, old=True, ref=True)
    mesh = make_mesh(shape)
    alone = run(impl, arrays, inputs, RULE)
    rows, matrix = (
        NamedSharding(mesh, PartitionSpec(spec)) for spec in ("data", ("model", "data"))
    )
    with jax.set_mesh(mesh):
        placed = jax.device_put(arrays, (rows, matrix, rows)), jax.device_put(inputs, rows)
        found = jax.jit(lambda *args: run(impl, *args, RULE))(*placed)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
        assert relative_l2(one, np.asarray(other, np.float64)) < 3e-6
