from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import IMPLS, make_mesh, relative_l2, running, surrogate
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from kernels.token_loss import (
    KlEstimator,
    Surrogate,
    TokenInputs,
    TokenRule,
    TokenSums,
    clipped_surrogate,
    kl_estimate,
    token_loss,
)

ORACLE = Path(__file__).parents[1] / "data" / "grpo_oracle.npz"
RULE = TokenRule(0.2, 0.28, 0.04, "k3")
PALLAS = IMPLS[2:]


def random_tokens(
    N: int, seed: int, *, old: bool = True, ref: bool = True, sampler: bool = False
) -> tuple[Any, Any]:
    """Log-probabilities, and inputs of which a third do not count and hold infinities."""
    rng = np.random.default_rng(seed)
    counts = rng.random(N) < 2 / 3
    logprobs, before, reference, drawn = -rng.random((4, N)).astype("f4") * 2
    weights = np.where(counts, rng.random(N), 0).astype("f4")
    advantages = rng.standard_normal(N).astype("f4")
    before[~counts], reference[~counts], logprobs[~counts] = -np.inf, np.inf, -400.0
    inputs = TokenInputs(
        weights,
        advantages,
        before if old else None,
        reference if ref else None,
        drawn if sampler else None,
    )
    return jnp.asarray(logprobs), jax.tree.map(jnp.asarray, inputs)


def run(impl: str, logprobs: jax.Array, inputs: TokenInputs, rule: TokenRule) -> Any:
    with running(impl) as how:
        return jax.value_and_grad(lambda x: token_loss(x, inputs, rule, impl=how), has_aux=True)(
            logprobs
        )


def check(found: Any, logprobs: jax.Array, inputs: TokenInputs, rule: TokenRule) -> None:
    (loss, sums), gradient = found
    terms, slopes, want = surrogate(np.asarray(logprobs, np.float64), inputs, rule)
    assert abs(float(loss) - terms.sum()) < 1e-6 * max(1.0, np.abs(terms).sum())
    assert relative_l2(gradient, slopes) < 2e-6 or np.abs(slopes).max() == 0
    assert (np.asarray(gradient)[np.asarray(inputs.weights) == 0] == 0).all()
    for name, value in want.items():
        assert float(getattr(sums, name)) == pytest.approx(value, rel=1e-5, abs=1e-5), name


@pytest.mark.parametrize("impl", IMPLS[1:])
@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    N=st.sampled_from([1, 77, 128, 2500]),
    estimator=st.sampled_from(["k1", "k2", "k3"]),
    surrogate=st.sampled_from(["clip", "cispo", "none"]),
    old=st.booleans(),
    ref=st.booleans(),
    sampler=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_float64(
    impl: str,
    N: int,
    estimator: KlEstimator,
    surrogate: Surrogate,
    old: bool,
    ref: bool,
    sampler: bool,
    seed: int,
) -> None:
    logprobs, inputs = random_tokens(N, seed, old=old, ref=ref, sampler=sampler)
    rule = RULE._replace(kl_estimator=estimator, surrogate=surrogate)
    check(run(impl, logprobs, inputs, rule), logprobs, inputs, rule)


@pytest.mark.parametrize("impl", IMPLS[1:])
def test_where_nothing_counts_everything_is_zero(impl: str) -> None:
    logprobs, inputs = random_tokens(200, 0)
    inputs = inputs._replace(weights=jnp.zeros(200))
    (loss, sums), gradient = run(impl, logprobs, inputs, RULE)
    assert float(loss) == 0 and (np.asarray(gradient) == 0).all()
    assert sums._replace(ratio_min=0.0) == TokenSums(*[0.0] * 8)


@pytest.mark.parametrize("impl", ["xla", *PALLAS])
@pytest.mark.parametrize("N", [2000, 77])
def test_a_mesh_gives_what_one_device_does(impl: str, N: int) -> None:
    logprobs, inputs = random_tokens(N, 3)
    mesh = make_mesh("4x2")
    place = NamedSharding(mesh, PartitionSpec("data" if N % 4 == 0 else None))
    with jax.set_mesh(mesh):
        placed = jax.device_put((logprobs, inputs), place)
        found = jax.jit(lambda *args: run(impl, *args, RULE))(*placed)
    check(found, logprobs, inputs, RULE)


@pytest.mark.parametrize("old", ["given", "self"])
@pytest.mark.parametrize("beta", ["0", "0.04"])
@pytest.mark.parametrize("case", ["main", "edge"])
@pytest.mark.parametrize("impl", IMPLS[1:])
def test_equals_trl(impl: str, case: str, beta: str, old: str) -> None:
    with np.load(ORACLE) as oracle:
        mask = oracle[f"{case}/mask"] > 0
        logprobs, given, ref = (
            jnp.asarray(oracle[f"{case}/{name}"], "f4").ravel() for name in ("logps", "old", "ref")
        )
        advantages = oracle[f"{case}/adv_group"][:, None]
        want = f"trl/{case}/grpo/beta={beta}/old={old}"
        loss, gradient = oracle[f"{want}/loss"], oracle[f"{want}/grad"]
    weights = mask / np.maximum(mask.sum(axis=1, keepdims=True), 1) / len(mask)
    inputs = TokenInputs(
        jnp.asarray(weights, "f4").ravel(),
        jnp.asarray(np.broadcast_to(advantages, mask.shape), "f4").ravel(),
        given if old == "given" else None,
        ref if float(beta) else None,
    )
    (found, _), slopes = run(impl, logprobs, inputs, RULE._replace(kl_coef=float(beta)))
    assert float(found) == pytest.approx(float(loss), abs=1e-6)
    assert relative_l2(slopes, gradient.ravel()) < 1e-6


def test_kl_estimators_by_hand() -> None:
    """ref / policy = 2, 1/2 and 1: d = log 2, -log 2 and 0."""
    logprobs = jnp.zeros(3) - 3.0
    ref = logprobs + jnp.log(jnp.array([2.0, 0.5, 1.0]))
    d = np.log(2.0)
    want = {"k1": [-d, d, 0], "k2": [d**2 / 2, d**2 / 2, 0], "k3": [1 - d, d - 0.5, 0]}
    for name, values in want.items():
        np.testing.assert_allclose(kl_estimate(logprobs, ref, name), values, atol=1e-6)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_unbiased_estimators_average_to_the_divergence(estimator: KlEstimator) -> None:
    policy, ref = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    values = kl_estimate(*(jnp.asarray(np.log(x), "f4") for x in (policy, ref)), estimator)
    divergence = (policy * np.log(policy / ref)).sum()
    assert (policy * np.asarray(values)).sum() == pytest.approx(divergence, abs=1e-6)


def test_surrogate_by_hand() -> None:
    """Ratios 0.5, 1, 1.25, 2 with clip 0.8 .. 1.28, once with A = 1 and once with A = -2."""
    old = jnp.full((2, 4), -1.0)
    logprobs = jnp.log(jnp.array([[0.5, 1.0, 1.25, 2.0]] * 2)) - 1
    advantages = jnp.broadcast_to(jnp.array([[1.0], [-2.0]]), (2, 4))

    def of(x: jax.Array) -> jax.Array:
        return clipped_surrogate(x, old, advantages, clip_low=0.2, clip_high=0.28)

    want = [[-0.5, -1.0, -1.25, -1.28], [1.6, 2.0, 2.5, 4.0]]
    np.testing.assert_allclose(of(logprobs), want, rtol=1e-6)
    # d(r A)/d logp = r A where the unclipped term is the smaller.
    grad = jax.grad(lambda x: of(x).sum())(logprobs)
    np.testing.assert_allclose(grad, [[-0.5, -1.0, -1.25, 0], [0, 2.0, 2.5, 4.0]], rtol=1e-6)


def test_an_explicit_impl_that_cannot_run_raises() -> None:
    logprobs, inputs = random_tokens(8, 0)
    with pytest.raises(ValueError, match="token_loss: impl pallas cannot run here"):
        token_loss(logprobs, inputs, RULE, impl="pallas")
