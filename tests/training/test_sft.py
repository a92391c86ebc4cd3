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
from small_model import hidden_states, small_model

from persrm_jax.checkpoint import Checkpoints
from persrm_jax.data.batches import Rows, sft_batch
from persrm_jax.data.feed import make_feed
from persrm_jax.metrics import MetricsWriter
from persrm_jax.models.config import ComputeConfig
from persrm_jax.models.decoder import vocab_weight
from persrm_jax.models.params import Params, init_params
from persrm_jax.training.guard import StepLog
from persrm_jax.training.loop import Watch, train
from persrm_jax.training.optimizer import OptimizerConfig, make_optimizer
from persrm_jax.training.sft import SftConfig, make_sft_loss, make_sft_step
from persrm_jax.training.step import TrainState, init_state

MODEL = small_model(vocab_size=64, max_positions=128)
CFG = SftConfig(
    steps=6,
    batch_size=4,
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=1),
    save_every=4,
)
NO_WATCH = Watch(every=0, evaluate=lambda params: 0.0)
RNG = np.random.default_rng(0)
ROWS = [
    (RNG.integers(3, 64, 3 + i % 5).tolist(), RNG.integers(3, 64, 2 + i % 4).tolist())
    for i in range(10)
]


@functools.cache
def _start(mesh: Mesh) -> TrainState:
    params = init_params(MODEL, jax.random.key(0), mesh)
    return init_state(params, make_optimizer(CFG.optimizer, CFG.steps), jax.random.key(1), mesh)


def _state(mesh: Mesh) -> TrainState:
    """A copy, since steps take the state's buffers."""
    return jax.tree.map(jnp.copy, _start(mesh))


@functools.cache
def _step(mesh: Mesh):  # noqa: ANN202
    feed = make_feed(
        Rows(ROWS.__getitem__, len(ROWS)),
        range(len(ROWS)),
        batch_size=CFG.batch_size,
        pack_length=0,
        group_size=1,
        pad_id=0,
        seed=3,
    )
    return make_sft_step(feed, MODEL, ComputeConfig(), CFG, mesh=mesh)


def test_the_loss_is_the_mean_nll_of_response_tokens(mesh: Mesh) -> None:
    params = _state(mesh).params
    nll, entropies = [], []
    for prompt, response in ROWS[:5]:
        ids = np.array([[*prompt, *response]])
        hidden = hidden_states(params, MODEL, ids)
        logits = np.asarray(hidden[0] @ vocab_weight(params).T, np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        for i in range(len(prompt), ids.shape[1]):
            nll.append(-logprobs[i - 1, ids[0, i]])
            entropies.append(-(np.exp(logprobs[i - 1]) * logprobs[i - 1]).sum())
    batch = jax.tree.map(jnp.asarray, sft_batch(ROWS[:5], pad_id=0))
    loss, metrics = jax.jit(make_sft_loss(MODEL, ComputeConfig()))(params, batch)
    assert float(loss) == pytest.approx(np.mean(nll), rel=1e-5)
    assert float(metrics["loss/total"]) == float(loss)
    assert float(metrics["entropy/mean"]) == pytest.approx(np.mean(entropies), rel=1e-5)
    assert float(metrics["length/response"]) == pytest.approx(len(nll) / 5)


def test_a_few_steps_lower_the_loss(mesh: Mesh) -> None:
    state, step_fn = _state(mesh), _step(mesh)
    losses = []
    for step in range(CFG.steps):
        state, log = step_fn(state, step)
        losses.append(log.scalars["loss/total"])
    assert int(state.step) == CFG.steps
    assert np.mean(losses[-2:]) < np.mean(losses[:2]) - 0.1
    batch = jax.tree.map(jnp.asarray, sft_batch(ROWS, pad_id=0))
    loss_fn = jax.jit(make_sft_loss(MODEL, ComputeConfig()))
    before = loss_fn(_state(mesh).params, batch)[0]
    assert loss_fn(state.params, batch)[0] < before - 0.1


def _train(folder: Path, mesh: Mesh, step_fn, watch: Watch = NO_WATCH) -> TrainState:  # noqa: ANN001
    checkpoints = Checkpoints(folder / "checkpoints")
    try:
        return train(
            "sft",
            _state(mesh),
            step_fn,
            num_steps=CFG.steps,
            save_every=CFG.save_every,
            checkpoints=checkpoints,
            writer=lambda first: MetricsWriter(folder, first),
            show="loss/total",
            watch=watch,
        )
    finally:
        checkpoints.close()


def _interrupting(step_fn, at: int, number: int, seen: list[int]):  # noqa: ANN001, ANN202
    def wrapped(state: TrainState, step: int) -> tuple[TrainState, StepLog]:
        seen.append(step)
        if step == at:
            os.kill(os.getpid(), number)
        return step_fn(state, step)

    return wrapped


def _losses(folder: Path) -> list[tuple[int, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [(row["step"], row["loss/total"]) for row in map(json.loads, lines)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, mesh: Mesh) -> tuple[TrainState, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return _train(folder, mesh, _step(mesh)), folder


def _assert_same(first: TrainState, second: TrainState) -> None:
    first, second = (s.replace(key=jax.random.key_data(s.key)) for s in (first, second))
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_resumes_bit_for_bit(
    whole: tuple[TrainState, Path], tmp_path: Path, mesh: Mesh, number: int
) -> None:
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    seen: list[int] = []
    step_fn = _step(mesh)
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path, mesh, _interrupting(step_fn, 2, number, seen))
    assert seen == [0, 1, 2], "the step under way is finished"
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers

    state = _train(tmp_path, mesh, _interrupting(step_fn, -1, number, seen))
    assert seen == [0, 1, 2, 3, 4, 5], "no step is done twice"
    _assert_same(state, whole[0])
    assert _losses(tmp_path) == _losses(whole[1])
    assert [step for step, _ in _losses(tmp_path)] == list(range(6))


def test_a_killed_run_resumes_at_its_last_checkpoint(
    whole: tuple[TrainState, Path], tmp_path: Path, mesh: Mesh
) -> None:
    step_fn = _step(mesh)

    def dying(state: TrainState, step: int) -> tuple[TrainState, StepLog]:
        if step == 5:
            raise RuntimeError("out of memory")
        return step_fn(state, step)

    with pytest.raises(RuntimeError, match="out of memory"):
        _train(tmp_path, mesh, dying)
    assert [step for step, _ in _losses(tmp_path)] == [0, 1, 2, 3, 4]
    seen: list[int] = []
    state = _train(tmp_path, mesh, _interrupting(step_fn, -1, signal.SIGINT, seen))
    assert seen == [4, 5]
    _assert_same(state, whole[0])
    assert _losses(tmp_path) == _losses(whole[1])


def test_a_second_signal_ends_at_once(tmp_path: Path, mesh: Mesh) -> None:
    step_fn = _step(mesh)

    def impatient(state: TrainState, step: int) -> tuple[TrainState, StepLog]:
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("the second signal should have ended the step")
        return step_fn(state, step)

    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path, mesh, impatient)
    assert [step for step, _ in _losses(tmp_path)] == [0]


def test_a_stop_during_the_last_step_is_not_lost(
    whole: tuple[TrainState, Path], tmp_path: Path, mesh: Mesh
) -> None:
    step_fn, seen = _step(mesh), []
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path, mesh, _interrupting(step_fn, CFG.steps - 1, signal.SIGINT, seen))
    state = _train(tmp_path, mesh, _interrupting(step_fn, -1, signal.SIGINT, seen))
    assert seen == list(range(CFG.steps))
    _assert_same(state, whole[0])
    assert _losses(tmp_path) == _losses(whole[1])


def test_training_ends_once_the_watched_accuracy_is_reached(tmp_path: Path, mesh: Mesh) -> None:
    step_fn, seen, looks = _step(mesh), [], []

    def accuracy(params: Params) -> float:
        looks.append(len(seen))
        return len(seen) / 10

    watch = Watch(every=2, evaluate=accuracy, stop_at=0.4)
    state = _train(tmp_path, mesh, _interrupting(step_fn, -1, signal.SIGINT, seen), watch)
    assert seen == [0, 1, 2, 3] and looks == [2, 4] and int(state.step) == 4
    rows = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [row.get("eval/dev_accuracy") for row in rows] == [None, 0.2, None, 0.4]

    again = _train(tmp_path, mesh, _interrupting(step_fn, -1, signal.SIGINT, seen), watch)
    assert seen == [0, 1, 2, 3], "a run that was cut off before its end trains no further"
    _assert_same(again, state)


def test_patience_ends_with_the_best_and_a_resumed_run_too(tmp_path: Path, mesh: Mesh) -> None:
    accuracies = {1: 0.3, 2: 0.6, 3: 0.5, 4: 0.6, 5: 0.9}
    step_fn, seen = _step(mesh), []
    watch = Watch(every=1, evaluate=lambda params: accuracies[len(seen)], patience=2)
    state = _train(tmp_path, mesh, _interrupting(step_fn, -1, signal.SIGINT, seen), watch)
    assert seen == [0, 1, 2, 3], "the two after the best are no better"
    assert int(state.step) == 2
    again = _train(tmp_path, mesh, _interrupting(step_fn, -1, signal.SIGINT, seen), watch)
    assert seen == [0, 1, 2, 3]
    _assert_same(again, state)


def test_updates_that_are_not_finite_end_the_run_and_leave_its_checkpoints(
    tmp_path: Path, mesh: Mesh
) -> None:
    real = _step(mesh)

    def breaking(state: TrainState, step: int) -> tuple[TrainState, StepLog]:
        if step < 4:
            return real(state, step)
        _, log = real(jax.tree.map(jnp.copy, state), step)
        return state, dataclasses.replace(log, scalars={**log.scalars, "guard/skipped": 1.0})

    with pytest.raises(ValueError, match="3 updates in a row") as error:
        checkpoints = Checkpoints(tmp_path / "checkpoints")
        try:
            train(
                "sft",
                _state(mesh),
                breaking,
                num_steps=20,
                save_every=4,
                checkpoints=checkpoints,
                writer=lambda first: MetricsWriter(tmp_path, first),
                show="loss/total",
                watch=NO_WATCH,
            )
        finally:
            checkpoints.close()
    assert "up to step 6" in str(error.value)
    with np.load(tmp_path / "bad_batch.npz") as kept:
        assert kept["tokens"].shape[0] == CFG.batch_size
    assert Checkpoints(tmp_path / "checkpoints").latest_step() == 4
