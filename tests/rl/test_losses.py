from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from persrm_jax.rl.advantages import AdvantageConfig, group_relative
from persrm_jax.rl.losses import VARIANTS, LossConfig, rollout_loss, token_weights
from persrm_jax.types import Totals

ORACLE = Path(__file__).parents[1] / "data" / "grpo_oracle.npz"
CASES = ("main", "edge")


@pytest.fixture(scope="module")
def oracle() -> dict[str, np.ndarray]:
    """TRL's values in float64."""
    with np.load(ORACLE) as arrays:
        return {k: arrays[k] for k in arrays if k.startswith((*CASES, "trl"))}


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
        rewards, int(oracle[f"{case}/group_size"]), AdvantageConfig(scale=scale, eps=1e-4)
    )
    np.testing.assert_allclose(found, oracle[f"{case}/{name}"], rtol=1e-5, atol=1e-6)


def states_of(logprobs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Hidden states, weight and labels of two words, the first with these log-probabilities."""
    logp = np.asarray(logprobs, np.float64)
    logits = jnp.asarray(logp - np.log(-np.expm1(logp)), jnp.float32)
    return logits[..., None], jnp.array([[1.0], [0.0]]), jnp.zeros(logits.shape, jnp.int32)


def loss_of(
    logprobs: jax.Array,
    old: jax.Array | None,
    ref: jax.Array | None,
    advantages: jax.Array,
    mask: jax.Array,
    cfg: LossConfig,
) -> Any:
    totals = Totals(jnp.asarray(len(mask)), jnp.sum(mask))
    return rollout_loss(
        *states_of(logprobs),
        mask,
        advantages,
        cfg,
        old=old,
        ref=ref,
        temperature=1.0,
        totals=totals,
    )


# What TRL computes under these names, with its clip of 0.2 / 0.28 throughout.
CLIP = {"clip_low": 0.2, "clip_high": 0.28}
TRL = {
    "grpo": LossConfig(**CLIP),
    "dr_grpo": replace(VARIANTS["dr_grpo"], **CLIP),
    "dapo": VARIANTS["dapo"],
    "gspo": replace(VARIANTS["gspo"], **CLIP),
    "cispo": VARIANTS["cispo"],
    "grpo_tis": LossConfig(**CLIP, tis_cap=2.0),
}


@pytest.mark.parametrize("old", ["given", "self"])
@pytest.mark.parametrize("beta", ["0", "0.04"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", TRL)
def test_loss_and_gradient_equal_those_of_trl(
    oracle: dict[str, np.ndarray], variant: str, case: str, beta: str, old: str
) -> None:
    logprobs, given, ref = (float32(oracle[f"{case}/{name}"]) for name in ("logps", "old", "ref"))
    mask = jnp.asarray(oracle[f"{case}/mask"] > 0)
    advantages = float32(oracle[f"{case}/adv_group"])
    cfg = replace(TRL[variant], kl_coef=float(beta))
    hidden, weight, labels = states_of(logprobs)
    # TRL's truncated weights are of the rollout's old log-probabilities, also where old = self.
    before = given if old == "given" else logprobs
    sampler = before - jnp.log(float32(oracle[f"{case}/tis"]))

    @jax.jit
    def loss(hidden: jax.Array) -> tuple[jax.Array, Any]:
        value, metrics, _ = rollout_loss(
            hidden,
            weight,
            labels,
            mask,
            advantages,
            cfg,
            old=given if old == "given" else None,
            ref=ref if cfg.kl_coef else None,
            sampler=sampler,
            temperature=1.0,
            totals=Totals(jnp.asarray(len(mask)), jnp.sum(mask)),
        )
        return value, metrics

    (value, metrics), grad = jax.value_and_grad(loss, has_aux=True)(hidden)

    want = f"trl/{case}/{variant}/beta={beta}/old={old}"
    assert float(value) == pytest.approx(float(oracle[f"{want}/loss"]), abs=1e-6)
    # d log p / d logit = 1 - p
    chained = oracle[f"{want}/grad"] * -np.expm1(oracle[f"{case}/logps"])
    assert relative_l2(grad[..., 0], chained) < 2e-6
    assert (np.asarray(grad)[~np.asarray(mask)] == 0).all()
    assert float(metrics["loss/total"]) == float(value)


def test_on_policy_a_sequences_ratio_is_its_tokens() -> None:
    """With old = policy the one pass over tokens has the gradients of the rule for sequences."""
    logprobs = -jnp.abs(jax.random.normal(jax.random.key(0), (4, 6))) - 0.1
    mask = jnp.arange(6) < jnp.array([[1], [3], [6], [0]])
    advantages = jnp.array([1.0, -0.5, 2.0, 1.0])
    hidden, weight, labels = states_of(logprobs)
    for name in ("gspo", "rloo"):

        def loss(hidden: jax.Array, old: jax.Array | None, name: str = name) -> jax.Array:
            return rollout_loss(
                hidden,
                weight,
                labels,
                mask,
                advantages,
                VARIANTS[name],
                old=old,
                temperature=1.0,
                totals=Totals(jnp.asarray(4), jnp.sum(mask)),
            )[0]

        found, want = jax.grad(loss)(hidden, None), jax.grad(loss)(hidden, logprobs)
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)
        assert float(jnp.abs(want).max()) > 0.1


def test_rloo_by_hand() -> None:
    """-A exp(sum of log-ratios), a mean over completions: ratios 2 * 1.5 and 0.5 (a masked 9)."""
    ratio = jnp.array([[2.0, 1.5], [0.5, 9.0]])
    mask = jnp.array([[True, True], [True, False]])
    old = jnp.full((2, 2), -3.0)
    loss, metrics, _ = loss_of(
        jnp.log(ratio) + old, old, None, jnp.array([1.0, -2.0]), mask, VARIANTS["rloo"]
    )
    assert float(loss) == pytest.approx((-3.0 + 1.0) / 2, rel=1e-5)
    assert float(metrics["ratio/max"]) == pytest.approx(3.0, rel=1e-5)


def test_what_is_masked_changes_nothing(oracle: dict[str, np.ndarray]) -> None:
    names = ("logps", "old", "ref")
    arrays = [float32(oracle[f"edge/{name}"]) for name in names]
    advantages = float32(oracle["edge/adv_group"])
    mask = jnp.asarray(oracle["edge/mask"] > 0)
    assert not mask.any(axis=1).all(), "a row with an empty mask"
    noise = [jnp.where(mask, x, shift) for x, shift in zip(arrays, (-50, 3, 7), strict=True)]
    found, other = (loss_of(*x, advantages, mask, LossConfig()) for x in (arrays, noise))
    assert float(found[0]) == float(other[0])
    for tag, value in found[1].items():
        assert float(value) == float(other[1][tag]), tag


def test_metrics_by_hand() -> None:
    """Of 9 tokens in the mask, 1 is clipped from below (A < 0) and 2 from above (A > 0)."""
    ratio = jnp.array([[0.5, 1.0, 1.25, 2.0, 3.0], [0.5, 1.0, 1.25, 2.0, 9.0]])
    mask = jnp.array([[True] * 5, [True] * 4 + [False]])
    cfg = LossConfig(clip_low=0.2, clip_high=0.28, kl_coef=0.0)
    advantages = jnp.array([1.0, -2.0])
    old = jnp.full((2, 5), -3.0)
    _, metrics, logprobs = loss_of(jnp.log(ratio) + old, old, None, advantages, mask, cfg)
    assert float(metrics["ratio/clip_fraction_low"]) == pytest.approx(1 / 9)
    assert float(metrics["ratio/clip_fraction_high"]) == pytest.approx(2 / 9)
    assert float(metrics["ratio/max"]) == pytest.approx(3.0)
    assert float(metrics["ratio/min"]) == pytest.approx(0.5)
    # -min terms: row 0 is -(0.5 + 1 + 1.25 + 1.28 + 1.28) / 5, row 1 (1.6 + 2 + 2.5 + 4) / 4.
    assert float(metrics["loss/policy"]) == pytest.approx((-1.062 + 2.525) / 2, rel=1e-5)
    assert float(metrics["loss/scale"]) == pytest.approx((1.062 + 2.525) / 2, rel=1e-5)
    p = np.asarray(jnp.exp(logprobs))[mask]
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    assert float(metrics["entropy/mean"]) == pytest.approx(entropy.mean(), rel=1e-5)
    assert "kl/mean" not in metrics


@pytest.mark.parametrize("kl_coef", [0.5, 2.0])
def test_the_estimator_and_the_coefficients_of_the_config_are_used(kl_coef: float) -> None:
    logprobs, ref = jnp.array([[-1.0, -2.0]]), jnp.array([[-1.5, -1.0]])
    mask = jnp.ones((1, 2), bool)
    # d = -0.5, 1
    want = {"k1": -0.25, "k2": 0.3125, "k3": (np.exp(-0.5) - 0.5 + np.e - 2) / 2}
    for name, value in want.items():
        cfg = LossConfig(kl_coef=kl_coef, kl_estimator=name, entropy_coef=0.1)
        loss, metrics, _ = loss_of(logprobs, None, ref, jnp.zeros(1), mask, cfg)
        assert float(metrics["kl/mean"]) == pytest.approx(value, abs=1e-6)
        entropy = float(metrics["entropy/mean"])
        assert float(loss) == pytest.approx(kl_coef * value - 0.1 * entropy, abs=1e-6)


def test_weights_by_hand() -> None:
    mask = jnp.array([[True, True, True], [True, False, False], [False, False, False]])
    totals = Totals(jnp.asarray(6), jnp.asarray(8))  # of a batch of which this is half
    rows = {
        "sequence_mean": [1 / 18, 1 / 6],
        "token_mean": [1 / 8, 1 / 8],
        "constant": [1 / 18, 1 / 18],
        "sequence_sum": [1 / 6, 1 / 6],
    }
    for aggregate, (first, second) in rows.items():
        want = [[first] * 3, [second, 0, 0], [0, 0, 0]]
        np.testing.assert_allclose(token_weights(mask, aggregate, totals), want, rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"clip_low": -0.1}, "clip-low -0.1"),
        ({"clip_low": 1.0}, "clip-low 1.0"),
        ({"clip_high": -0.1}, "clip-high -0.1"),
        ({"kl_coef": -1e-3}, "kl-coef -0.001"),
        ({"tis_cap": -1.0}, "tis-cap -1.0"),
        ({"surrogate": "cispo", "ratio": "sequence"}, "ratio sequence: cispo"),
    ],
)
def test_a_config_out_of_range_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LossConfig(**fields)


def test_configs_at_the_edge_are_accepted() -> None:
    LossConfig(clip_low=0.0, clip_high=0.0, kl_coef=0.0)
    LossConfig(clip_low=0.99, clip_high=5.0)
