"""Accumulation, the guard against what is not finite, and what the optimizer leaves alone."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from float64 import running
from jax.sharding import Mesh
from small_model import SMALL, random_params

from persrm_jax.data.batches import packed_batch, sft_batch
from persrm_jax.models.config import ComputeConfig
from persrm_jax.models.params import Params, param_shardings
from persrm_jax.rl.losses import LossConfig
from persrm_jax.sharding import MeshShape, batch_sharding, make_mesh
from persrm_jax.training.optimizer import OptimizerConfig, make_optimizer
from persrm_jax.training.rft_programs import RftBatch, count_rollout, make_rft_loss, whole_batch
from persrm_jax.training.sft import count_batch, make_sft_loss
from persrm_jax.training.step import TrainState, init_state, make_train_step
from persrm_jax.types import Batch, Groups

RNG = np.random.default_rng(0)
ROWS = [
    (RNG.integers(3, 300, 3 + i).tolist(), RNG.integers(3, 300, 2 + 2 * i).tolist())
    for i in range(8)
]
SFT = make_sft_loss(SMALL, ComputeConfig())
START = 6
RFT = make_rft_loss(SMALL, ComputeConfig(), LossConfig(kl_coef=0.1), temperature=0.9)
OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=1e-2, warmup_steps=0), 10)


def sft_rows() -> Batch:
    return jax.tree.map(jnp.asarray, sft_batch(ROWS, pad_id=0))


def rft_rows() -> RftBatch:
    """Eight groups of two completions of 1 to 8 tokens, off their reference."""
    prompt = np.arange(START) >= np.arange(8)[:, None] % START
    mask = np.arange(8) < 1 + np.arange(16).reshape(8, 2, 1) % 8
    tokens, completions = RNG.integers(3, 300, (8, START)), RNG.integers(3, 300, mask.shape)
    arrays = (tokens.astype(np.int32), prompt, completions.astype(np.int32), mask)
    old = jnp.full(mask.shape, -5.0)
    advantages = jnp.linspace(-1.0, 2.0, 16).reshape(8, 2)
    groups = Groups(*map(jnp.asarray, arrays))
    return whole_batch(groups, advantages, old, ref_logprobs=old - 0.5)


CASES: dict[str, tuple[Any, Any, Any]] = {
    "sft": (SFT, sft_rows, count_batch),
    "rft": (RFT, rft_rows, count_rollout),
}


def start(mesh: Mesh, optimizer: optax.GradientTransformation = OPTIMIZER) -> TrainState:
    params = jax.device_put(random_params(SMALL), param_shardings(SMALL, mesh))
    return init_state(params, optimizer, jax.random.key(0), mesh)


def relative_l2(found: Params, want: Params) -> float:
    gaps = jax.tree.map(lambda a, b: (jnp.sum((a - b) ** 2), jnp.sum(b**2)), found, want)
    pairs = jax.tree.leaves(gaps, is_leaf=lambda x: isinstance(x, tuple))
    return float(sum(p[0] for p in pairs) / sum(p[1] for p in pairs)) ** 0.5


@pytest.mark.parametrize("shape", ["1x1", "2x1"])
@pytest.mark.parametrize("case", CASES)
def test_parts_add_up_to_the_whole(case: str, shape: str) -> None:
    """Four parts of two rows, of unequal lengths: the normaliser is that of all eight."""
    loss_fn, make, count = CASES[case]
    mesh = make_mesh(MeshShape.parse(shape))
    batch = jax.device_put(make(), batch_sharding(mesh))
    sgd = optax.sgd(1.0)  # the change of the parameters is the gradient
    with jax.set_mesh(mesh):
        whole, metrics = make_train_step(loss_fn, sgd)(start(mesh, sgd), batch)
        step = make_train_step(loss_fn, sgd, count=count, accumulate=4)
        parts, part_metrics = step(start(mesh, sgd), batch)
    change = [jax.tree.map(jnp.subtract, s.params, random_params(SMALL)) for s in (parts, whole)]
    assert relative_l2(*change) < 1e-5
    assert metrics.keys() == part_metrics.keys()
    for tag, value in metrics.items():
        assert float(part_metrics[tag]) == pytest.approx(float(value), rel=1e-4, abs=1e-6), tag


@pytest.mark.parametrize("case", CASES)
def test_curves_agree_whoever_computes_the_loss(case: str, mesh: Mesh) -> None:
    """Ten steps, of two parts each."""
    _, make, count = CASES[case]
    rows, curves = make(), {}
    for impl in ("reference", "xla", "tpu"):
        with running(impl) as how:
            cfg = LossConfig(kl_coef=0.1, entropy_coef=0.01, impl=how)
            loss = make_sft_loss(SMALL, ComputeConfig(), cfg)
            if case == "rft":
                loss = make_rft_loss(SMALL, ComputeConfig(), cfg, temperature=0.9)
            step = make_train_step(loss, OPTIMIZER, count=count, accumulate=2)
            state, curves[impl] = start(mesh), []
            for _ in range(10):
                state, metrics = step(state, rows)
                curves[impl].append(float(metrics["loss/total"]))
    assert curves["reference"][-1] < curves["reference"][0] - 0.1  # it does train
    for impl in ("xla", "tpu"):
        np.testing.assert_allclose(curves[impl], curves["reference"], rtol=0, atol=1e-5)


def test_parts_take_less_memory(mesh: Mesh) -> None:
    rows = jax.tree.map(lambda x: jnp.tile(x, (8, 1)), sft_rows())
    sizes = []
    for parts in (1, 8):
        step: Any = make_train_step(SFT, OPTIMIZER, count=count_batch, accumulate=parts)
        stats = step.lower(start(mesh), rows).compile().memory_analysis()
        sizes.append(stats.temp_size_in_bytes)
    assert sizes[1] < sizes[0] / 2


def test_parts_need_to_be_counted() -> None:
    with pytest.raises(ValueError, match="needs `count`"):
        make_train_step(SFT, OPTIMIZER, accumulate=2)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_step_that_is_not_finite_changes_nothing(mesh: Mesh, bad: float) -> None:
    def loss(params: Params, batch: jax.Array, totals: object = None) -> tuple[jax.Array, dict]:
        value = batch[0] * jnp.sum(params["embed"]["weight"] ** 2)
        return value, {"loss/total": value}

    step = make_train_step(loss, OPTIMIZER)
    before = start(mesh)
    kept = jax.device_get((before.params, before.opt_state))
    state, metrics = step(before, jnp.array([bad]))
    assert float(metrics["guard/skipped"]) == 1
    jax.tree.map(np.testing.assert_array_equal, (state.params, state.opt_state), kept)
    assert int(state.step) == 1, "the step is spent, and its data with it"
    state, metrics = step(state, jnp.array([1.0]))
    assert float(metrics["guard/skipped"]) == 0
    assert (np.asarray(state.params["embed"]["weight"]) != kept[0]["embed"]["weight"]).any()


def test_weight_decay_leaves_norms_and_biases_alone(mesh: Mesh) -> None:
    cfg = dataclasses.replace(SMALL, qkv_bias=True)
    optimizer = make_optimizer(
        OptimizerConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.5, schedule="constant"), 9
    )
    params = random_params(cfg)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    for path, update in traverse_util.flatten_dict(updates).items():
        weight = traverse_util.flatten_dict(params)[path]
        decays = path[-1] in ("kernel", "weight")
        np.testing.assert_allclose(update, -0.05 * weight if decays else 0 * weight, rtol=1e-5)


def test_moments_in_bfloat16(mesh: Mesh) -> None:
    exact, rough = (
        make_optimizer(OptimizerConfig(warmup_steps=0, learning_rate=1e-2, state_dtype=dtype), 9)
        for dtype in ("float32", "bfloat16")
    )
    state = start(mesh, rough)
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim > 0]
    assert len(moments) == 2 * len(jax.tree.leaves(state.params))
    assert {str(x.dtype) for x in moments} == {"bfloat16"}
    ends = []
    for optimizer in (rough, exact):
        state = start(mesh, optimizer)
        step = make_train_step(SFT, optimizer)
        for _ in range(4):
            state, _ = step(state, sft_rows())
        ends.append(jax.tree.map(jnp.subtract, state.params, random_params(SMALL)))
    assert 1e-5 < relative_l2(*ends) < 0.05


def test_packed_rows_have_the_loss_and_gradient_of_rows_apart(mesh: Mesh) -> None:
    apart = sft_rows()
    packed = packed_batch([ROWS[:4], ROWS[4:7], ROWS[7:]], pad_id=0)
    packed = jax.tree.map(jnp.asarray, packed)
    assert packed.tokens.size < apart.tokens.size
    grad = jax.jit(jax.grad(SFT, has_aux=True))
    (found, metrics), (want, plain) = (grad(random_params(SMALL), b) for b in (packed, apart))
    assert relative_l2(found, want) < 1e-6
    for tag, value in plain.items():
        assert float(metrics[tag]) == pytest.approx(float(value), rel=1e-6), tag
