from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from jax.sharding import Mesh

from persrm_jax.checkpoint import Checkpoints, load_tree, save_tree
from persrm_jax.models.config import ModelConfig, RopeScaling
from persrm_jax.models.load import Model, load_model, load_pretrained, save_model
from persrm_jax.models.params import Params, abstract_params, param_shardings, param_specs
from persrm_jax.sharding import MeshShape, make_mesh
from persrm_jax.tokenizer import byte_tokenizer
from persrm_jax.training.step import TrainState, init_state

CFG = ModelConfig(
    vocab_size=320,
    num_layers=2,
    width=16,
    mlp_width=24,
    num_heads=4,
    num_kv_heads=2,
    head_width=4,
    max_positions=64,
    rope_scaling=RopeScaling("llama3", 8.0, 32, 1.0, 4.0),
)


def make_params(mesh: Mesh, dtype: str = "float32", seed: int = 0) -> Params:
    rng = np.random.default_rng(seed)
    params = {p: jnp.asarray(rng.standard_normal(s.shape), dtype) for p, s in param_specs(CFG)}
    return jax.device_put(traverse_util.unflatten_dict(params), param_shardings(CFG, mesh))


def make_state(mesh: Mesh, seed: int = 0) -> TrainState:
    """A state with bfloat16 and float32 leaves, optimizer tuples, a count and a typed key."""
    params = make_params(mesh, seed=seed)
    params["embed"] = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params["embed"])
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return init_state(params, optimizer, jax.random.key(seed + 7), mesh)


def bits(leaf: Any) -> np.ndarray:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def assert_same(found: Any, want: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(want)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(bits(one), bits(other))


@pytest.mark.parametrize("shape", ["1x1", "4x2"])
def test_a_state_comes_back_on_any_mesh(tmp_path: Path, mesh: Mesh, shape: str) -> None:
    state = make_state(mesh).replace(step=jnp.asarray(3, jnp.int32))
    saver = Checkpoints(tmp_path / "state")
    saver.save(3, state)
    saver.close()

    other = make_mesh(MeshShape.parse(shape))
    like = make_state(other, seed=1)
    reader = Checkpoints(tmp_path / "state")
    assert reader.latest_step() == 3
    found = reader.restore(3, like)
    reader.close()

    assert isinstance(found, TrainState)
    assert_same(found, state)
    assert bits(found.key).tolist() != bits(like.key).tolist()
    np.testing.assert_array_equal(
        jax.random.normal(found.key, (3,)), jax.random.normal(state.key, (3,))
    )
    for one, target in zip(jax.tree.leaves(found), jax.tree.leaves(like), strict=True):
        assert one.sharding == target.sharding


def test_a_state_restores_into_an_abstract_one(tmp_path: Path, mesh: Mesh) -> None:
    state = {"params": make_params(mesh)}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    found = checkpoints.restore(1, {"params": abstract_params(CFG, make_mesh(MeshShape(2, 4)))})
    checkpoints.close()
    assert_same(found, state)


def test_the_latest_two_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_step() is None
    for step in (1, 2, 5, 9):
        checkpoints.save(step, {"x": jnp.full(3, step)})
    checkpoints.close()
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["5", "9"]

    checkpoints = Checkpoints(tmp_path)
    for step in (5, 9):
        found = checkpoints.restore(step, {"x": jnp.zeros(3, int)})
        assert found["x"].tolist() == [step] * 3
    checkpoints.close()


def test_a_step_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, {"x": jnp.ones(3)})
    checkpoints.save(2, {"x": jnp.zeros(3)})
    assert checkpoints.restore(2, {"x": jnp.zeros(3)})["x"].tolist() == [1, 1, 1]
    checkpoints.close()


def test_what_a_cut_off_write_left_is_ignored(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, {"x": jnp.ones(3)})
    checkpoints.close()
    leftover = tmp_path / "4.orbax-checkpoint-tmp"
    (leftover / "state").mkdir(parents=True)
    (leftover / "state" / "_METADATA").write_text("{")

    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_step() == 2
    checkpoints.save(4, {"x": jnp.full(3, 4.0)})
    checkpoints.close()

    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_step() == 4
    assert checkpoints.restore(4, {"x": jnp.zeros(3)})["x"].tolist() == [4, 4, 4]
    checkpoints.close()


def test_a_tree_comes_back_and_can_be_written_over(tmp_path: Path, mesh: Mesh) -> None:
    like = abstract_params(CFG, make_mesh(MeshShape(4, 2)))
    for seed in (0, 1):
        params = make_params(mesh, seed=seed)
        save_tree(tmp_path / "params", params)
        found = load_tree(tmp_path / "params", like)
        assert_same(found, params)
    assert found["embed"]["weight"].sharding == like["embed"]["weight"].sharding


def test_a_tree_is_read_into_the_dtype_asked_for(tmp_path: Path, mesh: Mesh) -> None:
    params = make_params(mesh)
    save_tree(tmp_path / "params", params)
    found = load_tree(tmp_path / "params", abstract_params(CFG, mesh, "bfloat16"))
    assert_same(found, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))


def test_a_missing_folder_is_refused(tmp_path: Path, mesh: Mesh) -> None:
    with pytest.raises(ValueError, match="absent: no such checkpoint folder"):
        load_tree(tmp_path / "absent", abstract_params(CFG, mesh))


def test_a_folder_that_holds_no_checkpoint_is_refused(tmp_path: Path, mesh: Mesh) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        load_tree(tmp_path, abstract_params(CFG, mesh))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"width": 32}, r"'embed'.*shape \(320, 16\) where the model has \(320, 32\)"),
        ({"num_layers": 3}, r"'attn_norm'.*shape \(2, 16\) where the model has \(3, 16\)"),
        ({"tie_embeddings": False}, r"'head'.*shape None where the model has \(320, 16\)"),
        ({"qkv_bias": True}, r"'k'\]\['bias'\]: shape None where the model has \(2, 2, 4\)"),
    ],
)
def test_a_tree_of_another_model_is_refused(
    tmp_path: Path, mesh: Mesh, fields: dict[str, Any], words: str
) -> None:
    save_tree(tmp_path / "params", make_params(mesh))
    with pytest.raises(ValueError, match=words):
        load_tree(tmp_path / "params", abstract_params(replace(CFG, **fields), mesh))


def test_a_saved_model_needs_nothing_else(tmp_path: Path, mesh: Mesh) -> None:
    tokenizer = byte_tokenizer()
    model = Model(CFG, make_params(mesh), tokenizer)
    save_model(tmp_path / "model", model)

    other = make_mesh(MeshShape(4, 2))
    for found in (
        load_model(tmp_path / "model", other, "float32"),
        load_pretrained(str(tmp_path / "model"), other, "float32"),
    ):
        assert found.config == CFG
        assert_same(found.params, model.params)
        assert found.params["embed"]["weight"].sharding.mesh == other
        assert found.tokenizer.vocab_size == tokenizer.vocab_size
        assert found.tokenizer.end_ids == tokenizer.end_ids
        assert found.tokenizer.pad_id == tokenizer.pad_id
        chat = [{"role": "user", "content": "Grüße, 42!"}]
        assert found.tokenizer.encode_chat(chat) == tokenizer.encode_chat(chat)


def test_a_folder_without_a_model_is_refused(tmp_path: Path, mesh: Mesh) -> None:
    with pytest.raises(ValueError, match="holds no model.json"):
        load_model(tmp_path, mesh, "float32")


def test_of_equal_accuracies_the_first_is_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step, accuracy in ((20, 0.8), (40, 0.8), (60, 0.5), (80, 0.8), (100, 0.7)):
        checkpoints.save(step, {"x": jnp.full(3, float(step))}, accuracy)
    assert checkpoints.best_step() == (20, 0.8)
    checkpoints.close()
    again = Checkpoints(tmp_path)
    assert again.best_step() == (20, 0.8) and again.latest_step() == 100
    np.testing.assert_array_equal(again.restore(20, {"x": jnp.zeros(3)})["x"], 20.0)
    again.close()
