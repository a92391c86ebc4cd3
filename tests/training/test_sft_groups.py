"""Traces that share exemplars, computed in groups, beside the same traces one by one."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_model import small_model

from persrm_jax.data.batches import Row, Rows, sft_batch
from persrm_jax.data.feed import Feed, make_feed
from persrm_jax.models.config import ComputeConfig
from persrm_jax.models.params import Params, init_params
from persrm_jax.sharding import MeshShape, make_mesh
from persrm_jax.training.optimizer import OptimizerConfig, make_optimizer
from persrm_jax.training.sft import SftConfig, make_sft_loss, make_sft_step
from persrm_jax.training.step import init_state
from persrm_jax.types import Groups

MODEL = small_model(vocab_size=64, max_positions=128)
COMPUTE = ComputeConfig()


def _traces(rng: np.random.Generator, counts: list[int]) -> tuple[list[Row], list[int]]:
    """So many traces for each person, whose prompts begin alike."""
    rows, alike = [], []
    for person, count in enumerate(counts):
        start = rng.integers(3, 64, 4 + 5 * person).tolist()
        for i in range(count):
            # Some are longer than a bucket of lengths.
            own = rng.integers(3, 64, 1 + rng.integers(9) ** 2).tolist()
            # The first token tells a person's prompts apart: what they share is `start`.
            rows.append(([*start, 3 + i, *own], rng.integers(3, 64, 1 + rng.integers(5)).tolist()))
            alike.append(person)
    mixed = rng.permutation(len(rows)).tolist()
    return [rows[i] for i in mixed], [alike[i] for i in mixed]


def _feed(rows: list[Row], alike: list[int], size: int, batch_size: int, seed: int = 3) -> Feed:
    return make_feed(
        Rows(rows.__getitem__, len(rows)),
        alike,
        batch_size=batch_size,
        pack_length=0,
        group_size=size,
        pad_id=0,
        seed=seed,
    )


def _groups(feed: Feed, step: int, batch_size: int) -> Groups:
    batch = feed(step).make(list(range(batch_size)))
    assert isinstance(batch, Groups)
    return batch


def _read_back(groups: Groups) -> list[Row]:
    """The traces in a batch of groups."""
    found = []
    for start, known, members, masks in zip(*groups[:4], strict=True):
        for tokens, mask in zip(members, masks, strict=True):
            if mask.any():
                scored = np.flatnonzero(mask)
                assert (np.diff(scored) == 1).all(), "a response is in one piece"
                first, end = scored[0], scored[-1] + 1
                assert not tokens[end:].any(), "padding comes last"
                prompt = [*start[known].tolist(), *tokens[:first].tolist()]
                found.append((prompt, tokens[first:end].tolist()))
    return found


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(2, 5), st.integers(0, 2**32)
)
def test_an_epoch_holds_each_trace_once(counts: list[int], size: int, seed: int) -> None:
    rows, alike = _traces(np.random.default_rng(seed), counts)
    num_groups = sum(-(-count // size) for count in counts)
    feed, found, lengths = _feed(rows, alike, size, 1), [], []
    shapes = set()
    for step in range(num_groups):
        fed, groups = feed(step), _groups(feed, step, 1)
        here = _read_back(groups)
        found += here
        shapes.add((groups.prompt_tokens.shape, groups.tokens.shape))
        assert fed.num_traces == len(here)
        assert fed.lengths.sum() + fed.after[1:].sum() - fed.lengths[0] == sum(
            len(p) + len(r) for p, r in here
        ), "each trace is its own tokens and those before"
        assert fed.after[0] == 0 and set(fed.after[1:].tolist()) == {fed.lengths[0]}
        lengths.append(len(here))
        assert feed.row_length == groups.prompt_tokens.shape[1] + size * groups.tokens.shape[2]

    def key(row: Row) -> tuple[tuple[int, ...], ...]:
        return tuple(row[0]), tuple(row[1])

    assert Counter(map(key, found)) == Counter(map(key, rows))
    assert len(shapes) == 1
    smallest = min(count // -(-count // size) for count in counts)
    assert smallest <= min(lengths) and max(lengths) <= size, "groups are of about the same size"
    again = _feed(rows, alike, size, 1)
    np.testing.assert_array_equal(_groups(again, 1, 1).tokens, _groups(feed, 1, 1).tokens)


def test_what_prompts_share_is_read_once() -> None:
    rows, alike = _traces(np.random.default_rng(0), [6, 6])
    fed = _feed(rows, alike, 3, 4)(0)
    assert sorted(fed.lengths[:4].tolist()) == [4, 4, 9, 9]
    assert fed.num_traces == 12 and len(fed.lengths) == 16


def _gradients(params: Params, batch: object) -> tuple[float, Params]:
    loss = make_sft_loss(MODEL, COMPUTE)
    placed = jax.tree.map(jnp.asarray, batch)
    (value, _), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, placed)
    return float(value), grads


@pytest.mark.parametrize("seed", range(4))
def test_the_loss_and_every_gradient_are_those_of_single_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, alike = _traces(rng, rng.integers(1, 7, 3).tolist())
    num_groups = sum(-(-count // 3) for count in Counter(alike).values())
    params = init_params(MODEL, jax.random.key(seed), make_mesh(MeshShape(1, 1)))
    groups = _groups(_feed(rows, alike, 3, num_groups), 0, num_groups)
    loss, grads = _gradients(params, groups)
    wanted, wanted_grads = _gradients(params, sft_batch(rows, pad_id=0))
    assert loss == pytest.approx(wanted, rel=1e-5)
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(wanted_grads))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * scale),
        grads,
        wanted_grads,
    )


@pytest.mark.parametrize("shape", ["1x1", "8x1", "4x2"])
def test_a_step_is_the_same_on_a_mesh_and_in_parts(shape: str) -> None:
    rows, alike = _traces(np.random.default_rng(5), [7, 12, 9, 12])
    optimizer = OptimizerConfig(learning_rate=1e-3, warmup_steps=0)
    whole = SftConfig(steps=1, batch_size=16, group_size=3, optimizer=optimizer)
    feed = _feed(rows, alike, 3, 16)
    size = MeshShape(*map(int, shape.split("x")))

    def one(cfg: SftConfig, mesh_shape: MeshShape) -> tuple[dict[str, float], Params]:
        mesh = make_mesh(mesh_shape)
        with jax.set_mesh(mesh):
            params = init_params(MODEL, jax.random.key(0), mesh)
            state = init_state(params, make_optimizer(cfg.optimizer, 1), jax.random.key(1), mesh)
            step_fn = make_sft_step(feed, MODEL, COMPUTE, cfg, mesh=mesh)
            state, log = step_fn(state, 0)
            return log.scalars, jax.device_get(state.params)

    wanted, params = one(whole, MeshShape(1, 1))
    parts = SftConfig(steps=1, batch_size=16, group_size=3, optimizer=optimizer, accumulate=2)
    found, there = one(parts, size)
    for tag in ("loss/total", "entropy/mean", "length/response", "length/padding"):
        assert found[tag] == pytest.approx(wanted[tag], rel=1e-5), tag
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4), there, params)


def test_groups_and_bins_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="--sft.pack-length 64 and --sft.group-size 2"):
        SftConfig(pack_length=64, group_size=2)
    with pytest.raises(ValueError, match="--sft.group-size 0"):
        SftConfig(group_size=0)
