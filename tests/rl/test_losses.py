from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from persrm_jax.rl.advantages import AdvantageConfig, group_relative, varied_groups
from persrm_jax.rl.losses import (
    KlEstimator,
    LossConfig,
    clipped_surrogate,
    grpo_loss,
    kl_estimate,
    sequence_mean,
)

ORACLE = Path(__file__).parents[1] / "data" / "grpo_oracle.npz"
CASES = ("main", "edge")


@pytest.fixture(scope="module")
def oracle() -> dict[str, np.ndarray]:
    """TRL's values in float64."""
    with np.load(ORACLE) as arrays:
        return {k: arrays[k] for k in arrays if k.startswith(CASES) or "/grpo/beta" in k}


def float32(x: np.ndarray) -> jax.Array:
    return jnp.asarray(x, jnp.float32)


def relative_l2(found: jax.Array, want: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(found, np.float64) - want) / np.linalg.norm(want))


@pytest.mark.parametrize(("scale", "name"), [("std", "adv_group"), ("none", "adv_none")])
@pytest.mark.parametrize("case", CASES)
def test_advantages_equal_those_of_trl(
    oracle: dict[str, np.ndarray], case: str, scale: Any, name: str
) -> None:
    rewards = float32(oracle[f"{case}/rewards"])
    found = group_relative(
        rewards, int(oracle[f"{case}/group_size"]), AdvantageConfig(scale, eps=1e-4)
    )
    np.testing.assert_allclose(found, oracle[f"{case}/{name}"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("old", ["given", "self"])
@pytest.mark.parametrize("beta", ["0", "0.04"])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_equal_those_of_trl(
    oracle: dict[str, np.ndarray], case: str, beta: str, old: str
) -> None:
    logprobs, given, ref, rewards = (
        float32(oracle[f"{case}/{name}"]) for name in ("logps", "old", "ref", "rewards")
    )
    mask = jnp.asarray(oracle[f"{case}/mask"] > 0)
    group_size = int(oracle[f"{case}/group_size"])
    advantages = group_relative(rewards, group_size, AdvantageConfig("std", eps=1e-4))
    cfg = LossConfig(clip_low=0.2, clip_high=0.28, kl_coef=float(beta), kl_estimator="k3")

    def loss(logprobs: jax.Array) -> tuple[jax.Array, Any]:
        before = given if old == "given" else jax.lax.stop_gradient(logprobs)
        return grpo_loss(logprobs, before, ref if cfg.kl_coef else None, advantages, mask, cfg)

    (value, metrics), grad = jax.value_and_grad(loss, has_aux=True)(logprobs)

    want = f"trl/{case}/grpo/beta={beta}/old={old}"
    assert float(value) == pytest.approx(float(oracle[f"{want}/loss"]), abs=1e-6)
    assert relative_l2(grad, oracle[f"{want}/grad"]) < 1e-6
    assert (np.asarray(grad)[~np.asarray(mask)] == 0).all()
    assert float(metrics["loss/total"]) == float(value)


def test_what_is_masked_changes_nothing(oracle: dict[str, np.ndarray]) -> None:
    names = ("logps", "old", "ref")
    arrays = [float32(oracle[f"edge/{name}"]) for name in names]
    advantages = float32(oracle["edge/adv_group"])
    mask = jnp.asarray(oracle["edge/mask"] > 0)
    assert not mask.any(axis=1).all(), "a row with an empty mask"
    cfg = LossConfig()
    noise = [jnp.where(mask, x, shift) for x, shift in zip(arrays, (-50, 3, 7), strict=True)]
    loss, metrics = grpo_loss(*arrays, advantages, mask, cfg)
    noisy_loss, noisy_metrics = grpo_loss(*noise, advantages, mask, cfg)
    assert float(loss) == float(noisy_loss)
    assert {k: float(v) for k, v in metrics.items()} == {
        k: float(v) for k, v in noisy_metrics.items()
    }


def test_overflow_where_masked_does_not_reach_the_gradient() -> None:
    logprobs, old, ref = jnp.array([[[-1.0, -200.0]], [[-1.1, -400.0]], [[-1.2, 0.0]]])
    mask = jnp.array([[True, False]])
    grad = jax.grad(lambda x: grpo_loss(x, old, ref, jnp.ones(1), mask, LossConfig())[0])(logprobs)
    assert np.isfinite(grad).all() and grad[0, 0] != 0 and grad[0, 1] == 0


def test_kl_estimators_by_hand() -> None:
    """ref / policy = 2, 1/2 and 1: d = log 2, -log 2 and 0."""
    logprobs = jnp.zeros((1, 3)) - 3.0
    ref = logprobs + jnp.log(jnp.array([[2.0, 0.5, 1.0]]))
    d = np.log(2.0)
    want = {"k1": [-d, d, 0], "k2": [d**2 / 2, d**2 / 2, 0], "k3": [1 - d, d - 0.5, 0]}
    for name, values in want.items():
        np.testing.assert_allclose(kl_estimate(logprobs, ref, name)[0], values, atol=1e-6)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_unbiased_estimators_average_to_the_divergence(estimator: KlEstimator) -> None:
    policy, ref = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    values = kl_estimate(float32(np.log(policy))[None], float32(np.log(ref))[None], estimator)[0]
    divergence = (policy * np.log(policy / ref)).sum()
    assert (policy * np.asarray(values)).sum() == pytest.approx(divergence, abs=1e-6)


def test_the_estimator_of_the_config_is_used() -> None:
    logprobs, ref = jnp.array([[-1.0, -2.0]]), jnp.array([[-1.5, -1.0]])
    mask = jnp.ones((1, 2), bool)
    # d = -0.5, 1
    want = {"k1": -0.25, "k2": 0.3125, "k3": (np.exp(-0.5) - 0.5 + np.e - 2) / 2}
    for name, value in want.items():
        cfg = LossConfig(kl_coef=0.5, kl_estimator=name)
        loss, metrics = grpo_loss(logprobs, logprobs, ref, jnp.zeros(1), mask, cfg)
        assert float(metrics["kl/mean"]) == pytest.approx(value, abs=1e-6)
        assert float(loss) == pytest.approx(0.5 * value, abs=1e-6)


def test_surrogate_by_hand() -> None:
    """Ratios 0.5, 1, 1.25, 2 with clip 0.8 .. 1.28, once with A = 1 and once with A = -2."""
    ratios = jnp.log(jnp.array([[0.5, 1.0, 1.25, 2.0]] * 2))
    found = clipped_surrogate(
        ratios - 1, jnp.full((2, 4), -1.0), jnp.array([1.0, -2.0]), clip_low=0.2, clip_high=0.28
    )
    want = [[-0.5, -1.0, -1.25, -1.28], [1.6, 2.0, 2.5, 4.0]]
    np.testing.assert_allclose(found, want, rtol=1e-6)


def test_clipped_tokens_have_no_gradient() -> None:
    old = jnp.full((2, 4), -1.0)
    logprobs = jnp.log(jnp.array([[0.5, 1.0, 1.25, 2.0]] * 2)) - 1
    surrogate = partial(clipped_surrogate, clip_low=0.2, clip_high=0.28)
    grad = jax.grad(lambda x: surrogate(x, old, jnp.array([1.0, -2.0])).sum())(logprobs)
    # d(r A)/d logp = r A where the unclipped term is the smaller.
    np.testing.assert_allclose(grad, [[-0.5, -1.0, -1.25, 0], [0, 2.0, 2.5, 4.0]], rtol=1e-6)


def test_clip_fractions_by_hand() -> None:
    """Of 9 tokens in the mask, 1 is clipped from below (A < 0) and 2 from above (A > 0)."""
    ratio = jnp.array([[0.5, 1.0, 1.25, 2.0, 3.0], [0.5, 1.0, 1.25, 2.0, 9.0]])
    mask = jnp.array([[True] * 5, [True] * 4 + [False]])
    cfg = LossConfig(clip_low=0.2, clip_high=0.28, kl_coef=0.0)
    advantages = jnp.array([1.0, -2.0])
    _, metrics = grpo_loss(jnp.log(ratio), jnp.zeros((2, 5)), None, advantages, mask, cfg)
    assert float(metrics["ratio/clip_fraction_low"]) == pytest.approx(1 / 9)
    assert float(metrics["ratio/clip_fraction_high"]) == pytest.approx(2 / 9)
    assert float(metrics["ratio/max"]) == pytest.approx(3.0)
    # -min terms: row 0 is -(0.5 + 1 + 1.25 + 1.28 + 1.28) / 5, row 1 (1.6 + 2 + 2.5 + 4) / 4.
    assert float(metrics["loss/policy"]) == pytest.approx((-1.062 + 2.525) / 2, rel=1e-6)
    assert float(metrics["loss/scale"]) == pytest.approx((1.062 + 2.525) / 2, rel=1e-6)
    assert "kl/mean" not in metrics


def test_sequence_mean_weighs_rows_alike() -> None:
    x = jnp.array([[1.0, 2.0, 3.0], [10.0, 0.0, 0.0], [5.0, 5.0, 5.0]])
    mask = jnp.array([[True, True, True], [True, False, False], [False, False, False]])
    assert float(sequence_mean(x, mask)) == pytest.approx((2 + 10 + 0) / 3)


def test_varied_groups() -> None:
    rewards = jnp.array([1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.5, 0.4])
    assert float(varied_groups(rewards, 2)) == 0.5
    assert float(varied_groups(rewards, 4)) == 1.0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"clip_low": -0.1}, "clip-low -0.1"),
        ({"clip_low": 1.0}, "clip-low 1.0"),
        ({"clip_high": -0.1}, "clip-high -0.1"),
        ({"kl_coef": -1e-3}, "kl-coef -0.001"),
    ],
)
def test_a_config_out_of_range_is_refused(fields: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LossConfig(**fields)


def test_configs_at_the_edge_are_accepted() -> None:
    LossConfig(clip_low=0.0, clip_high=0.0, kl_coef=0.0)
    LossConfig(clip_low=0.99, clip_high=5.0)
