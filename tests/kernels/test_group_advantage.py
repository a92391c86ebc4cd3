from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import IMPLS, make_mesh, running
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.group_advantage import Baseline, group_advantage

EPS = 1e-4


def in_float64(
    rewards: np.ndarray,
    ids: np.ndarray,
    *,
    scale_by_std: bool,
    mask: np.ndarray | None = None,
    baseline: Baseline = "mean",
) -> np.ndarray:
    """Group by group, with NumPy's own mean and standard deviation."""
    out = np.zeros(len(rewards))
    counts = np.ones(len(rewards), bool) if mask is None else mask
    for group in set(ids[counts].tolist()):
        here = (ids == group) & counts
        r = rewards[here].astype(np.float64)
        n = len(r)
        mean = np.full(n, r.mean())
        if baseline == "leave_one_out":
            mean = (r.sum() - r) / (n - 1) if n > 1 else r
        std = r.std(ddof=1) if n > 1 else 0.0
        out[here] = (r - mean) / (std + EPS if scale_by_std else 1.0)
    return out


def advantages(
    rewards: np.ndarray,
    ids: np.ndarray,
    *,
    scale_by_std: bool = True,
    impl: str = "xla",
    **options: Any,
) -> np.ndarray:
    with running(impl) as how:
        return np.asarray(
            group_advantage(
                jnp.asarray(rewards, jnp.float32),
                jnp.asarray(ids, jnp.int32),
                scale_by_std=scale_by_std,
                eps=EPS,
                impl=how,
                **options,
            )
        )


@pytest.mark.parametrize("impl", IMPLS[1:])
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    num=st.sampled_from([1, 5, 128, 200]),
    groups=st.sampled_from([1, 3, 40]),
    levels=st.sampled_from([1, 3, 1000]),
    masked=st.booleans(),
    scale_by_std=st.booleans(),
    baseline=st.sampled_from(["mean", "leave_one_out"]),
    seed=st.integers(0, 1000),
)
def test_equals_float64_in_every_way(
    impl: str,
    num: int,
    groups: int,
    levels: int,
    masked: bool,
    scale_by_std: bool,
    baseline: Baseline,
    seed: int,
) -> None:
    """Ragged groups in any order, some of one, some of equal rewards, some with masked members,
    whose rewards are not numbers."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, groups, num) * 7 - 3
    rewards = (rng.integers(0, levels, num) * 0.1 - 1).astype(np.float32)
    mask = rng.random(num) < 0.7 if masked else None
    if mask is not None:
        rewards[~mask] = np.nan
    options = {"scale_by_std": scale_by_std, "baseline": baseline}
    given = None if mask is None else jnp.asarray(mask)
    found = advantages(rewards, ids, mask=given, impl=impl, **options)
    want = in_float64(rewards, ids, mask=mask, **options)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)
    if levels == 1:
        assert (found == 0).all()
    if mask is not None:
        assert (found[~mask] == 0).all()


@pytest.mark.parametrize("impl", IMPLS[1:3])
def test_on_a_mesh(impl: str) -> None:
    rewards, ids = np.linspace(-1, 1, 24).astype("f4"), np.arange(24) // 3
    with jax.set_mesh(make_mesh("4x2")):
        found = advantages(rewards, ids, impl=impl)
    np.testing.assert_allclose(
        found, in_float64(rewards, ids, scale_by_std=True), rtol=1e-5, atol=1e-6
    )


def test_hand_worked() -> None:
    """Rewards 1, 0, 0, 1: mean 1/2, deviations +-1/2, std sqrt(4 * 1/4 / 3) = 0.57735."""
    want = 0.5 / (3**-0.5 + EPS)
    found = advantages(np.array([1, 0, 0, 1]), np.zeros(4))
    np.testing.assert_allclose(found, [want, -want, -want, want], rtol=1e-6)
    found = advantages(np.array([1, 0, 0, 1]), np.zeros(4), scale_by_std=False)
    np.testing.assert_allclose(found, [0.5, -0.5, -0.5, 0.5], rtol=1e-6)


@pytest.mark.parametrize("scale_by_std", [True, False])
def test_ragged_groups_in_any_order(scale_by_std: bool) -> None:
    rng = np.random.default_rng(0)
    ids = rng.permutation(np.repeat([7, 3, 11, 5, 2], [1, 2, 5, 8, 3]))
    rewards = rng.standard_normal(len(ids)).astype(np.float32)
    found = advantages(rewards, ids, scale_by_std=scale_by_std)
    want = in_float64(rewards, ids, scale_by_std=scale_by_std)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    groups=st.lists(
        st.lists(st.sampled_from([-1.0, 0.0, 0.1, 0.5, 1.0, 1.1]), min_size=1, max_size=6),
        min_size=1,
        max_size=5,
    ),
    scale_by_std=st.booleans(),
)
def test_equals_float64_and_sums_to_zero(groups: list[list[float]], scale_by_std: bool) -> None:
    size = 32  # one shape, one compilation; what fills it is one more group
    ids = np.repeat(np.arange(len(groups)), [len(g) for g in groups])
    ids = np.pad(ids, (0, size - len(ids)), constant_values=99)
    rewards = np.zeros(size, np.float32)
    rewards[ids < 99] = np.concatenate(groups)
    found = advantages(rewards, ids, scale_by_std=scale_by_std)
    want = in_float64(rewards, ids, scale_by_std=scale_by_std)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=2e-6)
    for group, members in enumerate(groups):
        assert found[ids == group].sum() == pytest.approx(0, abs=1e-5)
        if len(set(members)) == 1:
            assert (found[ids == group] == 0).all()
    assert (found[ids == 99] == 0).all()


@pytest.mark.parametrize("scale_by_std", [True, False])
@pytest.mark.parametrize("reward", [0.1, 0.7, 1e-3, -1234.567, 3e7])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_group_of_one_or_of_equal_rewards_gets_exactly_zero(
    size: int, reward: float, scale_by_std: bool
) -> None:
    rewards = np.append(np.full(size, reward, np.float32), [0.0, 1.0])
    ids = np.append(np.zeros(size), [1, 1])
    found = advantages(rewards, ids, scale_by_std=scale_by_std)
    np.testing.assert_array_equal(found[:size], np.zeros(size))
    assert found[size] == -found[size + 1] != 0


def test_a_constant_added_to_the_rewards_changes_nothing() -> None:
    rewards, ids = np.array([0.0, 0.5, 1.0, 1.0]), np.zeros(4)
    np.testing.assert_allclose(advantages(rewards + 8, ids), advantages(rewards, ids), rtol=1e-6)


def test_jit_and_vmap_give_the_same() -> None:
    rng = np.random.default_rng(1)
    rewards = jnp.asarray(rng.standard_normal((3, 6)), jnp.float32)
    ids = jnp.asarray([0, 0, 0, 1, 1, 1])

    def one(r: jax.Array) -> jax.Array:
        return group_advantage(r, ids, scale_by_std=True, eps=EPS)

    found = jax.jit(jax.vmap(one))(rewards)
    np.testing.assert_allclose(found, np.stack([one(r) for r in rewards]), rtol=1e-6)
