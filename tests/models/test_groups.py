"""A prompt computed once for its group gives what it gives with each completion."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from small_model import FAMILIES, SMALL, random_params

from persrm_jax.data.packed_groups import pack_groups
from persrm_jax.models import attention
from persrm_jax.models.config import ComputeConfig, ModelConfig
from persrm_jax.models.groups import completion_states, plain_rows
from persrm_jax.models.params import Params, param_shardings
from persrm_jax.sharding import MeshShape, batch_sharding, make_mesh
from persrm_jax.types import Groups


def random_groups(P: int, S: int, G: int, T: int, seed: int = 0) -> Groups:
    """Prompts and completions of all lengths, of one token too."""
    rng = np.random.default_rng(seed)
    prompt = np.arange(S) >= S - rng.integers(1, S + 1, P)[:, None]
    mask = np.arange(T) < rng.integers(1, T + 1, (P, G))[..., None]
    tokens, completions = rng.integers(3, 300, (P, S)), rng.integers(3, 300, (P, G, T))
    arrays = (tokens * prompt, prompt, completions * mask, mask)
    return Groups(*(jnp.asarray(x, t) for x, t in zip(arrays, ("i4", "?", "i4", "?"), strict=True)))


def states_and_gradients(
    params: Params, cfg: ModelConfig, groups: Groups, shared: bool, **compute: Any
) -> tuple[jax.Array, Params]:
    """States of real tokens, and the gradients of a function that looks at each of them."""
    weights = jnp.asarray(np.random.default_rng(9).standard_normal(groups.tokens.shape))[..., None]

    @jax.jit
    def run(params: Params, groups: Groups) -> Any:
        def loss(params: Params) -> tuple[jax.Array, jax.Array]:
            hidden = completion_states(params, cfg, groups, ComputeConfig(**compute), shared=shared)
            hidden = jnp.where(groups.mask[..., None], hidden, 0.0)
            return jnp.sum(weights * jnp.sin(hidden)), hidden

        (_, hidden), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return hidden, gradients

    return run(params, groups)


def assert_same(found: Any, want: Any) -> None:
    assert float(jnp.abs(want[0]).max()) > 0.1
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        gap = np.linalg.norm(np.asarray(one, np.float64) - np.asarray(other, np.float64))
        assert gap <= 1e-5 * max(np.linalg.norm(other), 1e-6)


@settings(max_examples=3, deadline=None, derandomize=True)
@given(
    P=st.integers(1, 3),
    S=st.integers(1, 9),
    G=st.integers(1, 4),
    T=st.integers(1, 7),
    seed=st.integers(0, 1000),
)
def test_states_and_gradients_are_the_same(P: int, S: int, G: int, T: int, seed: int) -> None:
    groups = random_groups(P, S, G, T, seed)
    params = random_params(SMALL)
    found, want = (states_and_gradients(params, SMALL, groups, s) for s in (True, False))
    assert_same(found, want)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_every_family(family: str) -> None:
    cfg = FAMILIES[family]
    params, groups = random_params(cfg), random_groups(2, 7, 3, 5)
    assert_same(*(states_and_gradients(params, cfg, groups, s) for s in (True, False)))


@pytest.mark.parametrize("how", ["chunked", "splash", "full", "dots"])
def test_however_it_is_computed(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With attention a block at a time, as on TPUs, and with recomputation."""
    params, groups = random_params(SMALL), random_groups(2, 7, 3, 5)
    want = states_and_gradients(params, SMALL, groups, False)
    monkeypatch.setattr(attention, "QUERY_BLOCK", 3)
    plain = attention.splash_attention
    monkeypatch.setattr(attention, "splash_attention", lambda *args: plain(*args, interpret=True))
    compute = {"remat": how} if how in ("full", "dots") else {"attention": how}
    assert_same(states_and_gradients(params, SMALL, groups, True, **compute), want)


@pytest.mark.parametrize("shape", ["8x1", "4x2"])
def test_on_a_mesh(shape: str) -> None:
    params, groups = random_params(SMALL), random_groups(8, 7, 3, 5)
    want = states_and_gradients(params, SMALL, groups, False)
    mesh = make_mesh(MeshShape.parse(shape))
    with jax.set_mesh(mesh):
        found = states_and_gradients(
            jax.device_put(params, param_shardings(SMALL, mesh)),
            SMALL,
            jax.device_put(groups, batch_sharding(mesh)),
            True,
        )
    assert found[0].sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec("data")), 4)
    assert_same(found, want)


def packed_too(groups: Groups, length: int, **split: int) -> Groups:
    """With their tokens laid side by side as well."""
    packed = pack_groups(jax.tree.map(np.asarray, groups), length, **split)
    return groups._replace(packed=jax.tree.map(jnp.asarray, packed))


@settings(max_examples=3, deadline=None, derandomize=True)
@given(
    P=st.integers(1, 4),
    S=st.integers(1, 9),
    G=st.integers(1, 4),
    T=st.integers(1, 7),
    rows=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_several_groups_in_a_row_are_the_same(
    P: int, S: int, G: int, T: int, rows: int, seed: int
) -> None:
    groups = random_groups(P, S, G, T, seed)
    params = random_params(SMALL)
    packed = packed_too(groups, rows * (S + G * T))
    found = states_and_gradients(params, SMALL, packed, True)
    assert_same(found, states_and_gradients(params, SMALL, groups, False))


@pytest.mark.parametrize("how", ["chunked", "full"])
def test_packed_rows_however_they_are_computed(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "QUERY_BLOCK", 8)
    params, groups = random_params(SMALL), random_groups(3, 7, 3, 5)
    packed = packed_too(groups, 50)
    assert packed.packed is not None and packed.packed.tokens.shape[1] < 3
    compute = {"remat": how} if how == "full" else {"attention": how}
    found = states_and_gradients(params, SMALL, packed, True, **compute)
    assert_same(found, states_and_gradients(params, SMALL, groups, False))


def test_splash_cannot_pack() -> None:
    packed = packed_too(random_groups(2, 7, 3, 5), 50)
    with pytest.raises(ValueError, match=r"--compute.attention splash.*--rft.pack-length.*chunked"):
        states_and_gradients(random_params(SMALL), SMALL, packed, True, attention="splash")


@pytest.mark.parametrize(("shape", "num_parts"), [("8x1", 2), ("4x2", 1)])
def test_packed_rows_on_a_mesh(shape: str, num_parts: int) -> None:
    """Each device's groups lie in its own rows: nothing but weights is gathered."""
    size = MeshShape.parse(shape)
    params, groups = random_params(SMALL), random_groups(16, 7, 3, 5)
    want = states_and_gradients(params, SMALL, groups, False)
    packed = packed_too(groups, 50, num_devices=size.data, num_parts=num_parts)
    mesh = make_mesh(size)
    with jax.set_mesh(mesh):
        args = (
            jax.device_put(params, param_shardings(SMALL, mesh)),
            jax.device_put(packed, batch_sharding(mesh)),
        )
        found = states_and_gradients(args[0], SMALL, args[1], True)
        text = (
            jax.jit(lambda p, g: completion_states(p, SMALL, g, ComputeConfig(), shared=True))
            .lower(*args)
            .compile()
            .as_text()
        )
    assert found[0].sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec("data")), 4)
    assert_same(found, want)
    # Gathered states would be [16 x 3 x 5, D] or [rows, 50, D].
    gathered = re.findall(r"= \w+\[([\d,]+)\]\S* all-gather", text)
    assert gathered and not [dims for dims in gathered if "50" in dims.split(",")]


def test_it_takes_less_memory_and_work() -> None:
    """Eight completions of 16 tokens after a prompt of 256."""
    params, groups = random_params(SMALL), random_groups(2, 256, 8, 16)

    def cost(shared: bool) -> tuple[float, float]:
        def loss(params: Params) -> jax.Array:
            return jnp.sum(completion_states(params, SMALL, groups, ComputeConfig(), shared=shared))

        compiled = jax.jit(jax.grad(loss)).lower(params).compile()
        flops = compiled.cost_analysis()["flops"]
        return compiled.memory_analysis().temp_size_in_bytes, flops

    (memory, flops), (plain_memory, plain_flops) = cost(True), cost(False)
    assert memory < plain_memory / 2.5
    assert flops < plain_flops / 3


def test_plain_rows_by_hand() -> None:
    groups = Groups(
        jnp.array([[0, 0, 11, 12], [21, 22, 23, 24]]),
        jnp.array([[0, 0, 1, 1], [1, 1, 1, 1]], bool),
        jnp.array([[[13, 2, 0], [14, 15, 16]], [[25, 26, 27], [2, 0, 0]]]),
        jnp.array([[[1, 1, 0], [1, 1, 1]], [[1, 1, 1], [1, 0, 0]]], bool),
    )
    rows = plain_rows(groups)
    assert rows.tokens.tolist() == [
        [0, 0, 11, 12, 13, 2, 0],
        [0, 0, 11, 12, 14, 15, 16],
        [21, 22, 23, 24, 25, 26, 27],
        [21, 22, 23, 24, 2, 0, 0],
    ]
    assert rows.segment_ids.tolist() == [
        [0, 0, 1, 1, 1, 1, 0],
        [0, 0, *[1] * 5],
        [1] * 7,
        [*[1] * 5, 0, 0],
    ]
    assert rows.loss_mask.astype(int).tolist() == [
        [0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1, 1, 1],
        [0, 0, 0, 0, 1, 1, 1],
        [0, 0, 0, 0, 1, 0, 0],
    ]
    assert rows.positions[0][2:6].tolist() == [0, 1, 2, 3]
    assert rows.positions[2].tolist() == [0, 1, 2, 3, 4, 5, 6]
