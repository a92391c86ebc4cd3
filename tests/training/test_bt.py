"""The Bradley-Terry reward model: its loss by hand and by finite differences, on a mesh, after a
kill, and on pairs that anybody tells apart."""

import dataclasses
import functools
import json
import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from small_model import hidden_states, random_params, small_model

from persrm_jax.checkpoint import Checkpoints
from persrm_jax.data.pair_rows import PairRow, alike, group_pairs
from persrm_jax.metrics import MetricsWriter
from persrm_jax.models.config import ComputeConfig
from persrm_jax.models.load import Model, load_model, save_model
from persrm_jax.models.params import Params, init_params, param_shardings
from persrm_jax.models.reward import HEAD, init_head, load_reward_model, rewards
from persrm_jax.models.trainable import TrainableConfig, merge, split
from persrm_jax.sharding import MeshShape, make_mesh
from persrm_jax.tokenizer import train_tokenizer
from persrm_jax.training.bt import BtConfig, count_pairs, make_bt_loss, make_bt_step
from persrm_jax.training.guard import StepLog
from persrm_jax.training.loop import StepFn, Watch, train
from persrm_jax.training.optimizer import OptimizerConfig, make_optimizer
from persrm_jax.training.step import TrainState, init_state
from persrm_jax.types import Groups

MODEL = small_model(vocab_size=64, max_positions=128)
COMPUTE = ComputeConfig()
CFG = BtConfig(
    steps=40,
    batch_size=8,
    group_size=2,
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=1),
    save_every=4,
)
RNG = np.random.default_rng(0)


BEGINNINGS = [[7], [8, 9], [10, 11, 12]]


def pair_rows(count: int) -> list[PairRow]:
    """A chosen text holds the token 5, a rejected one does not; nothing else tells them apart."""
    found = []
    for i in range(count):
        chosen, rejected = (RNG.integers(6, 64, RNG.integers(3, 10)).tolist() for _ in range(2))
        chosen[int(RNG.integers(len(chosen)))] = 5
        found.append(PairRow(BEGINNINGS[i % len(BEGINNINGS)], (chosen, rejected)))
    return found


ROWS = pair_rows(400)


def apart(rows: list[PairRow]) -> Groups:
    """A group a pair."""
    return jax.tree.map(jnp.asarray, group_pairs([[row] for row in rows], 1, (32, 32), 0))


def together(rows: list[PairRow], size: int) -> Groups:
    """Those that begin alike, with room for more."""
    groups = [[rows[i] for i in members] for members in alike(rows)]
    return jax.tree.map(jnp.asarray, group_pairs(groups, size, (32, 32), 0))


def whole_texts(rows: list[PairRow]) -> list[list[int]]:
    return [[*row.before, *ids] for row in rows for ids in row.texts]


def with_head(params: Params, scale: float = 0.1) -> Params:
    weight = scale * np.random.default_rng(1).standard_normal(MODEL.width)
    return {**params, HEAD: {"weight": jnp.asarray(weight, jnp.float32)}}


def one_by_one(params: Params, ids: list[int]) -> float:
    """The reward of a prompt, in NumPy from the hidden state on."""
    return float(last_state(params, ids) @ np.asarray(params[HEAD]["weight"], np.float64))


def last_state(params: Params, ids: list[int]) -> np.ndarray:
    """Of a prompt alone. What comes after it nothing before sees: one length, so that one program
    is compiled."""
    row = np.array([[*ids, *[9] * (16 - len(ids))]])
    return np.asarray(hidden_states(params, MODEL, row)[0, len(ids) - 1], np.float64)


def test_rewards_are_the_heads_of_the_last_hidden_states() -> None:
    params = with_head(random_params(MODEL))
    run, rows = jax.jit(rewards, static_argnums=1), ROWS[:5]
    expected = [one_by_one(params, ids) for ids in whole_texts(rows)]
    found = np.asarray(run(params, MODEL, apart(rows)))
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-4, atol=1e-5)
    shared = np.asarray(run(params, MODEL, together(rows, 3)))
    for group, members in zip(shared, [[0, 3], [1, 4], [2]], strict=True):
        wanted = np.reshape(expected, (5, 2))[members].ravel()
        np.testing.assert_allclose(group[: len(wanted)], wanted, rtol=1e-4, atol=1e-5)


def test_the_loss_equals_the_hand_worked_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards 2 and 1, 0 and 0, -1 and 0.5: -log sigmoid of 1, 0 and -1.5."""
    given = [[2.0, 1.0], [0.0, 0.0], [-1.0, 0.5]]
    missing = [9.0, -9.0]
    in_one_group = [given[0] + given[1] + given[2] + missing]
    rows = [row._replace(before=[7]) for row in ROWS[:3]]
    for batch, found in ((apart(rows), given), (together(rows, 4), in_one_group)):
        patch = jnp.array(found)
        monkeypatch.setattr("persrm_jax.training.bt.rewards", lambda *args, patch=patch: patch)
        loss, metrics = make_bt_loss(MODEL, COMPUTE)({}, batch)
        assert float(loss) == pytest.approx((0.3132617 + 0.6931472 + 1.7014133) / 3, rel=1e-6)
        assert float(metrics["reward/accuracy"]) == pytest.approx(1.5 / 3)
        assert float(metrics["reward/margin"]) == pytest.approx(-0.5 / 3)


def test_the_gradient_equals_finite_differences() -> None:
    params = with_head(random_params(MODEL))
    rows = ROWS[:4]
    batch = together(rows, 2)
    loss = jax.jit(lambda p: make_bt_loss(MODEL, COMPUTE)(p, batch)[0])
    gradient = jax.jit(jax.grad(loss))(params)
    norm = float(jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient))))

    def moved(step: float) -> float:
        """Along the gradient, whose slope is its norm."""
        return float(loss(jax.tree.map(lambda p, g: p + step * g / norm, params, gradient)))

    assert (moved(1e-2) - moved(-1e-2)) / 2e-2 == pytest.approx(norm, rel=2e-2)
    texts = whole_texts(rows)
    rewards_by_hand = np.array([one_by_one(params, ids) for ids in texts])
    margins = rewards_by_hand[::2] - rewards_by_hand[1::2]
    assert moved(0.0) == pytest.approx(np.log1p(np.exp(-margins)).mean(), rel=1e-4)
    # d loss / d w = mean of -(1 - sigmoid(margin)) (h_chosen - h_rejected)
    states = np.array([last_state(params, ids) for ids in texts])
    gaps = states[::2] - states[1::2]
    by_hand = -np.mean(gaps / (1 + np.exp(margins))[:, None], axis=0)
    np.testing.assert_allclose(gradient[HEAD]["weight"], by_hand, rtol=1e-3, atol=1e-5)


@functools.cache
def first_state(mesh: Mesh) -> TrainState:
    key = jax.random.key(0)
    params = {**init_params(MODEL, key, mesh), **init_head(MODEL, key, mesh)}
    return init_state(params, make_optimizer(CFG.optimizer, CFG.steps), key, mesh)


def start(mesh: Mesh) -> TrainState:
    """A copy, since steps take the state's buffers."""
    return jax.tree.map(jnp.copy, first_state(mesh))


@functools.cache
def step_of(mesh: Mesh) -> StepFn:
    return make_bt_step(ROWS, MODEL, COMPUTE, CFG, pad_id=0, seed=3, mesh=mesh)


def run(mesh: Mesh, num_steps: int) -> tuple[TrainState, list[dict[str, float]]]:
    state, step_fn, logs = start(mesh), step_of(mesh), []
    with jax.set_mesh(mesh):
        for step in range(num_steps):
            state, log = step_fn(state, step)
            logs.append(dict(log.scalars))
    return state, logs


def test_parts_of_a_batch_add_up() -> None:
    params = with_head(random_params(MODEL))
    batch = together([ROWS[i] for i in (0, 3, 1, 2, 4)] + [ROWS[6]._replace(before=[13])], 3)
    loss, totals = jax.jit(make_bt_loss(MODEL, COMPUTE)), count_pairs(batch)
    _, whole = loss(params, batch, totals)
    halves = [
        loss(params, jax.tree.map(lambda x, i=i: x[i::2], batch), totals)[1] for i in range(2)
    ]
    for tag, value in whole.items():
        assert sum(float(half[tag]) for half in halves) == pytest.approx(float(value), rel=1e-4)


def test_a_mesh_trains_as_one_device_does(mesh: Mesh) -> None:
    state, logs = run(mesh, 3)
    other, found = run(make_mesh(MeshShape(8, 1)), 3)
    for one, two in zip(logs, found, strict=True):
        for tag in ("loss/total", "loss/grad_norm", "reward/accuracy", "reward/margin"):
            assert two[tag] == pytest.approx(one[tag], rel=1e-3, abs=1e-6), tag
    ours, theirs = (
        [np.asarray(x, np.float64) for x in jax.tree.leaves(s.params)] for s in (state, other)
    )
    gap = sum(np.sum((a - b) ** 2) for a, b in zip(ours, theirs, strict=True))
    assert np.sqrt(gap / sum(np.sum(a**2) for a in ours)) <= 1e-4
    assert logs[0]["loss/total"] == pytest.approx(np.log(2)), "every reward is 0 at first"
    assert 0 <= logs[0]["length/padding"] < 1


def test_it_learns_what_tells_the_texts_apart(mesh: Mesh) -> None:
    state, logs = run(mesh, CFG.steps)
    assert logs[0]["reward/accuracy"] == 0.5
    assert np.mean([log["reward/accuracy"] for log in logs[-5:]]) > 0.9
    fresh = [
        last_state(state.params, ids) @ np.asarray(state.params[HEAD]["weight"])
        for ids in whole_texts(pair_rows(50))
    ]
    assert np.mean(np.array(fresh[::2]) > np.array(fresh[1::2])) > 0.9


def trained(folder: Path, mesh: Mesh, step_fn: StepFn) -> TrainState:
    checkpoints = Checkpoints(folder / "checkpoints")
    try:
        with jax.set_mesh(mesh):
            return train(
                "bt",
                start(mesh),
                step_fn,
                num_steps=6,
                save_every=CFG.save_every,
                checkpoints=checkpoints,
                writer=lambda first: MetricsWriter(folder, first),
                show="reward/accuracy",
                watch=Watch(every=0, evaluate=lambda params: 0.0),
            )
    finally:
        checkpoints.close()


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [(row["step"], row["loss/total"]) for row in map(json.loads, lines)]


def test_a_stopped_run_resumes_bit_for_bit(tmp_path: Path, mesh: Mesh) -> None:
    step_fn, seen = step_of(mesh), []

    def interrupted(state: TrainState, step: int) -> tuple[TrainState, StepLog]:
        seen.append(step)
        if step == 2 and len(seen) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step_fn(state, step)

    whole = trained(tmp_path / "whole", mesh, step_fn)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", mesh, interrupted)
    resumed = trained(tmp_path / "cut", mesh, interrupted)
    assert seen == list(range(6)), "no step is done twice"
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
    jax.tree.map(np.testing.assert_array_equal, resumed.opt_state, whole.opt_state)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


@pytest.mark.slow
def test_adapters_and_the_head_are_all_that_trains_with_lora(mesh: Mesh, tmp_path: Path) -> None:
    lora, key = TrainableConfig(lora_rank=2), jax.random.key(0)
    base = init_params(MODEL, key, mesh)
    adapters, frozen = split(base, MODEL, lora, key, mesh)
    params = {**adapters, **init_head(MODEL, key, mesh)}
    cfg = dataclasses.replace(CFG, steps=2)
    state = init_state(params, make_optimizer(cfg.optimizer, cfg.steps), key, mesh)
    step_fn = make_bt_step(
        ROWS, MODEL, COMPUTE, cfg, pad_id=0, seed=3, mesh=mesh, trainable=lora, frozen=frozen
    )
    for step in range(2):
        state, _ = step_fn(state, step)
    assert float(jnp.abs(state.params[HEAD]["weight"]).max()) > 0
    whole = merge(state.params, frozen, lora)
    np.testing.assert_array_equal(whole["embed"]["weight"], base["embed"]["weight"])
    assert not np.array_equal(whole["layers"]["q"]["kernel"], base["layers"]["q"]["kernel"])

    tokenizer = train_tokenizer(["some text"], 259)
    model = dataclasses.replace(MODEL, vocab_size=320)
    whole = with_head(init_params(model, key, mesh))
    save_model(tmp_path / "model", Model(model, whole, tokenizer))
    many = make_mesh(MeshShape(4, 2))
    loaded = load_reward_model(tmp_path / "model", many, "float32")
    jax.tree.map(np.testing.assert_array_equal, loaded.params, whole)
    assert (
        loaded.params["layers"]["q"]["kernel"].sharding
        == (param_shardings(model, many)["layers"]["q"]["kernel"])
    )
    with pytest.raises(ValueError, match=r"not a checkpoint of this model.*reward"):
        load_model(tmp_path / "model", mesh, "float32")


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(ValueError, match=r"--bt.batch-size 0: must be at least 1"):
        BtConfig(batch_size=0)
    with pytest.raises(ValueError, match=r"--bt.group-size 0: must be at least 1"):
        BtConfig(group_size=0)
    with pytest.raises(ValueError, match=r"--bt.patience 3: needs --bt.eval-every"):
        BtConfig(patience=3)
