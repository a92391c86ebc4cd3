import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import Mesh
from small_model import FAMILIES, SMALL, hidden_states, random_params

from persrm_jax.data.batches import sft_batch
from persrm_jax.models.config import ComputeConfig, ModelConfig
from persrm_jax.models.decoder import linear
from persrm_jax.models.params import Params, param_shardings, param_specs
from persrm_jax.models.trainable import TARGETS, TrainableConfig, adapter_specs, join, merge, split
from persrm_jax.sampling import Ending, SamplingConfig, make_generate, sequence_keys
from persrm_jax.sharding import MeshShape, batch_sharding, make_mesh
from persrm_jax.training.optimizer import OptimizerConfig, make_optimizer
from persrm_jax.training.sft import make_sft_loss
from persrm_jax.training.step import init_state, make_train_step

LORA = TrainableConfig(lora_rank=4, lora_alpha=8.0)
IDS = np.random.default_rng(0).integers(3, 300, (1, 24)).astype(np.int32)
SMOLLM2 = ModelConfig(49152, 30, 576, 1536, 9, 3, 64, 8192, rope_theta=1e5)


def adapters(cfg: ModelConfig, lora: TrainableConfig, mesh: Mesh) -> tuple[Params, Params]:
    """Adapters that do something, and the weights beside them."""
    trained, frozen = split(random_params(cfg), cfg, lora, jax.random.key(1), mesh)
    keys = iter(jax.random.split(jax.random.key(2), 100))
    noise = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(next(keys), x.shape), trained)
    return noise, frozen


def relative_l2(found: jax.Array, want: jax.Array) -> float:
    return float(jnp.linalg.norm(found - want) / jnp.linalg.norm(want))


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "llama"])
def test_merged_weights_do_what_adapters_do(name: str, mesh: Mesh) -> None:
    cfg = FAMILIES[name]
    trained, frozen = adapters(cfg, LORA, mesh)
    beside = hidden_states(join(trained, frozen, LORA), cfg, IDS)
    merged = merge(trained, frozen, LORA)
    assert jax.tree.structure(merged) == jax.tree.structure(frozen)
    assert relative_l2(hidden_states(merged, cfg, IDS), beside) < 1e-5
    assert relative_l2(hidden_states(frozen, cfg, IDS), beside) > 0.1


def test_the_scale_is_alpha_over_rank(mesh: Mesh) -> None:
    trained, frozen = adapters(SMALL, LORA, mesh)
    a = np.asarray(trained["layers"]["gate"]["lora_a"], np.float64)
    b = np.asarray(trained["layers"]["gate"]["lora_b"], np.float64)
    kernel = np.asarray(frozen["layers"]["gate"]["kernel"], np.float64)
    found = merge(trained, frozen, LORA)["layers"]["gate"]["kernel"]
    np.testing.assert_allclose(found, kernel + 8 / 4 * a @ b, rtol=1e-4, atol=1e-5)


def test_adapters_begin_as_nothing(mesh: Mesh) -> None:
    trained, frozen = split(random_params(SMALL), SMALL, LORA, jax.random.key(1), mesh)
    same = hidden_states(join(trained, frozen, LORA), SMALL, IDS)
    # Not bit for bit: it is another program.
    assert relative_l2(same, hidden_states(frozen, SMALL, IDS)) < 1e-6


def test_the_sampler_takes_adapters_too(mesh: Mesh) -> None:
    trained, frozen = adapters(SMALL, LORA, mesh)
    generate = make_generate(SMALL, SamplingConfig(8, temperature=0.0), ending=Ending((1,), 0))
    keys = sequence_keys(jax.random.key(0), 1)
    models = join(trained, frozen, LORA), merge(trained, frozen, LORA), frozen
    beside, merged, base = (
        np.asarray(generate(m, IDS, np.ones_like(IDS, bool), keys).tokens) for m in models
    )
    np.testing.assert_array_equal(beside, merged)
    assert (beside != base).any()


@pytest.mark.parametrize("targets", [TARGETS, ("q", "v")])
def test_only_the_targets_get_adapters(targets: tuple[str, ...]) -> None:
    lora = dataclasses.replace(LORA, lora_targets=targets)
    paths = {path for path, _ in adapter_specs(SMALL, lora)}
    assert paths == {("layers", t, leaf) for t in targets for leaf in ("lora_a", "lora_b")}


def steps(shape: str, trainable: TrainableConfig, num: int = 3) -> tuple[Params, Params, list]:
    mesh = make_mesh(MeshShape.parse(shape))
    params = jax.device_put(random_params(SMALL), param_shardings(SMALL, mesh))
    rng = np.random.default_rng(4)
    rows = [(rng.integers(3, 300, 6).tolist(), rng.integers(3, 300, 6).tolist()) for _ in range(8)]
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, warmup_steps=0), num)
    loss = make_sft_loss(SMALL, ComputeConfig())
    losses = []
    with jax.set_mesh(mesh):
        trained, frozen = split(params, SMALL, trainable, jax.random.key(1), mesh)
        state = init_state(trained, optimizer, jax.random.key(0), mesh)
        step = make_train_step(loss, optimizer, trainable=trainable)
        batch = jax.device_put(sft_batch(rows, 0), batch_sharding(mesh))
        for _ in range(num):
            state, metrics = step(state, batch, frozen)
            losses.append(float(metrics["loss/total"]))
        return jax.device_get(state.params), jax.device_get(frozen), losses


def test_training_adapters_lowers_the_loss_on_any_mesh() -> None:
    one, frozen, losses = steps("1x1", LORA)
    assert losses[-1] < losses[0] - 0.05
    jax.tree.map(np.testing.assert_array_equal, frozen, random_params(SMALL))
    many, _, others = steps("4x2", LORA)
    np.testing.assert_allclose(others, losses, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
        assert np.linalg.norm(a - b) < 1e-4 * np.linalg.norm(b)


def test_what_is_frozen_stays_and_the_rest_trains() -> None:
    trained, frozen, losses = steps("1x1", TrainableConfig(freeze="embed|norm|layers/k/"))
    before = traverse_util.flatten_dict(random_params(SMALL))
    after = traverse_util.flatten_dict(trained)
    kept = traverse_util.flatten_dict(frozen)
    assert after.keys() | kept.keys() == before.keys() and not after.keys() & kept.keys()
    assert {p[:2] for p in kept} == {
        ("embed", "weight"), ("final_norm", "scale"), ("layers", "attn_norm"), ("layers", "k"),
        ("layers", "k_norm"), ("layers", "mlp_norm"), ("layers", "q_norm"),
    }  # fmt: skip
    assert all((after[p] != before[p]).any() for p in after)
    assert losses[-1] < losses[0] - 0.05


def test_dropout_changes_training_and_averages_out(mesh: Mesh) -> None:
    drop = dataclasses.replace(LORA, lora_dropout=0.3)
    trained, frozen = adapters(SMALL, drop, mesh)
    plain = hidden_states(join(trained, frozen, LORA), SMALL, IDS)
    one, other, again = (
        hidden_states(join(trained, frozen, drop, jax.random.key(k)), SMALL, IDS) for k in (0, 1, 0)
    )
    np.testing.assert_array_equal(one, again)
    assert relative_l2(one, other) > 0.01 and relative_l2(one, plain) > 0.01
    np.testing.assert_array_equal(
        hidden_states(join(trained, frozen, drop), SMALL, IDS), plain, "no key, no dropout"
    )
    rng = np.random.default_rng(0)
    layer: dict[str, Any] = {
        name: jnp.asarray(rng.standard_normal(shape), jnp.float32)
        for name, shape in (("kernel", (32, 8)), ("lora_a", (32, 2)), ("lora_b", (2, 8)))
    }
    x = jnp.asarray(rng.standard_normal((1, 5, 32)), jnp.float32)

    def dropped(key: jax.Array) -> jax.Array:
        return linear({**layer, "lora_key": key, "lora_keep": jnp.float32(0.7)}, x, "TD,DF->TF")

    mean = jnp.mean(jax.vmap(dropped)(jax.random.split(jax.random.key(5), 20_000)), axis=0)
    assert relative_l2(mean, linear(layer, x, "TD,DF->TF")) < 0.01


def test_adapters_of_smollm2_take_a_twentieth_of_the_memory() -> None:
    """Gradients and the two moments, by shape."""
    lora = TrainableConfig(lora_rank=16)
    sizes = [sum(np.prod(spec.shape) for _, spec in specs) for specs in (
        adapter_specs(SMOLLM2, lora), param_specs(SMOLLM2)
    )]  # fmt: skip
    assert sizes[0] < 0.05 * sizes[1]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"lora_rank": -1}, "--train.lora-rank -1"),
        ({"lora_dropout": 1.0}, "--train.lora-dropout 1.0"),
        ({"lora_targets": ("q", "w1")}, "--train.lora-targets w1: not among q, k"),
        ({"lora_rank": 4, "freeze": "embed"}, "--train.freeze and --train.lora-rank"),
        ({"lora_rank": 4, "lora_targets": ()}, "--train.lora-targets: adapters need"),
        ({"freeze": "("}, "--train.freeze \\(: no regular expression"),
    ],
)
def test_a_bad_config_names_its_flag(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrainableConfig(**fields)


def test_freezing_nothing_is_refused(mesh: Mesh) -> None:
    with pytest.raises(ValueError, match="--train.freeze embedding: finds none.*embed/weight"):
        split(
            random_params(SMALL),
            SMALL,
            TrainableConfig(freeze="embedding"),
            jax.random.key(0),
            mesh,
        )


def test_freezing_everything_is_refused(mesh: Mesh) -> None:
    with pytest.raises(ValueError, match="freezes every parameter"):
        split(random_params(SMALL), SMALL, TrainableConfig(freeze="."), jax.random.key(0), mesh)
