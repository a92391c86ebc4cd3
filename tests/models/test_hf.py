import json
import re
import shutil
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import Mesh
from safetensors.numpy import load_file, save_file

from persrm_jax.models.hf import load_hf_params
from persrm_jax.models.hf_config import load_config
from persrm_jax.models.params import Params, abstract_params
from persrm_jax.sharding import MeshShape, make_mesh

GOLDENS = Path(__file__).parents[1] / "data" / "hf_goldens"
Q0 = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the tiny Qwen2: two layers, width 32, 4 heads of 8, untied."""
    copy = tmp_path / "qwen2"
    shutil.copytree(GOLDENS / "qwen2", copy)
    return copy


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def rewrite(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    (folder / "model.safetensors").unlink()  # never through a map of the old file
    save_file(tensors, folder / "model.safetensors")


def load(folder: Path, mesh: Mesh, dtype: str = "float32") -> Params:
    return load_hf_params(folder, load_config(folder), mesh, dtype)


def assert_same(found: Params, want: Params) -> None:
    flat, other = traverse_util.flatten_dict(found), traverse_util.flatten_dict(want)
    assert flat.keys() == other.keys()
    for path in flat:
        np.testing.assert_array_equal(flat[path], other[path], err_msg=str(path))


def test_every_tensor_lands_where_it_belongs(folder: Path, mesh: Mesh) -> None:
    params, tensors = load(folder, mesh), tensors_of(folder)
    layers = params["layers"]
    for i in range(2):
        prefix = f"model.layers.{i}."
        for ours, theirs in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj")):
            weight = tensors[f"{prefix}self_attn.{theirs}.weight"]  # (heads * 8, 32)
            bias = tensors[f"{prefix}self_attn.{theirs}.bias"]
            for head in range(weight.shape[0] // 8):
                rows = slice(8 * head, 8 * head + 8)
                np.testing.assert_array_equal(layers[ours]["kernel"][i][:, head], weight[rows].T)
                np.testing.assert_array_equal(layers[ours]["bias"][i][head], bias[rows])
        out = tensors[f"{prefix}self_attn.o_proj.weight"]  # (32, heads * 8)
        for head in range(4):
            np.testing.assert_array_equal(
                layers["o"]["kernel"][i][head], out[:, 8 * head : 8 * head + 8].T
            )
        for name in ("gate", "up", "down"):
            weight = tensors[f"{prefix}mlp.{name}_proj.weight"]
            np.testing.assert_array_equal(layers[name]["kernel"][i], weight.T)
        for ours, theirs in (
            ("attn_norm", "input_layernorm"),
            ("mlp_norm", "post_attention_layernorm"),
        ):
            np.testing.assert_array_equal(
                layers[ours]["scale"][i], tensors[f"{prefix}{theirs}.weight"]
            )
    np.testing.assert_array_equal(params["embed"]["weight"], tensors["model.embed_tokens.weight"])
    np.testing.assert_array_equal(params["head"]["weight"], tensors["lm_head.weight"])
    np.testing.assert_array_equal(params["final_norm"]["scale"], tensors["model.norm.weight"])


def test_bfloat16_files_load_exactly(folder: Path, mesh: Mesh) -> None:
    rounded = {k: v.astype(ml_dtypes.bfloat16) for k, v in tensors_of(folder).items()}
    rewrite(folder, rounded)
    params = load(folder, mesh)
    weight = params["layers"]["down"]["kernel"]
    assert weight.dtype == jnp.float32
    want = rounded["model.layers.1.mlp.down_proj.weight"].astype(np.float32)
    np.testing.assert_array_equal(weight[1], want.T)
    assert_same(load(folder, mesh, "bfloat16"), params)


def test_parameters_can_be_held_in_bfloat16(folder: Path, mesh: Mesh) -> None:
    params = load(folder, mesh, "bfloat16")
    assert {str(w.dtype) for w in traverse_util.flatten_dict(params).values()} == {"bfloat16"}
    np.testing.assert_allclose(
        np.asarray(params["head"]["weight"], np.float32),
        tensors_of(folder)["lm_head.weight"],
        rtol=2**-8,
    )


def test_shards_of_an_index_load_as_one_file(folder: Path, mesh: Mesh) -> None:
    want, tensors = load(folder, mesh), tensors_of(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for i in range(3):
        file = f"model-{i + 1:05}-of-00003.safetensors"
        save_file({name: tensors[name] for name in names[i::3]}, folder / file)
        weight_map |= dict.fromkeys(names[i::3], file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(load(folder, mesh), want)

    shard = folder / "model-00003-of-00003.safetensors"
    kept = load_file(shard)
    kept.pop(names[2])
    shard.unlink()
    save_file(kept, shard)
    with pytest.raises(ValueError, match=f"missing {re.escape(names[2])}"):
        load(folder, mesh)

    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match="model-00002-of-00003.safetensors: this shard is missing"):
        load(folder, mesh)


def test_parameters_are_placed_by_the_rules(folder: Path) -> None:
    mesh = make_mesh(MeshShape(4, 2))
    found = traverse_util.flatten_dict(load(folder, mesh))
    want = traverse_util.flatten_dict(abstract_params(load_config(folder), mesh))
    assert {p: (w.shape, w.sharding) for p, w in found.items()} == {
        p: (w.shape, w.sharding) for p, w in want.items()
    }


def test_one_error_lists_all_that_do_not_fit(folder: Path, mesh: Mesh) -> None:
    tensors = tensors_of(folder)
    del tensors["model.norm.weight"]
    tensors["model.layers.0.self_attn.q_norm.weight"] = np.ones(8, np.float32)
    tensors[Q0] = np.ascontiguousarray(tensors[Q0][:-1])
    down = "model.layers.1.mlp.down_proj.weight"
    tensors[down] = np.ascontiguousarray(tensors[down].T)
    rewrite(folder, tensors)
    with pytest.raises(ValueError) as error:
        load(folder, mesh)
    message = str(error.value)
    assert str(folder) in message
    assert "missing model.norm.weight" in message
    assert "unknown model.layers.0.self_attn.q_norm.weight" in message
    assert f"{Q0} has shape (31, 32), expected (32, 32)" in message
    assert f"{down} has shape (40, 32), expected (32, 40)" in message
    assert message.count(";") == 3


def test_a_model_of_more_layers_is_refused(folder: Path, mesh: Mesh) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with pytest.raises(ValueError, match="unknown model.layers.1.") as error:
        load(folder, mesh)
    assert str(error.value).count("unknown") == 12  # tensors of a Qwen2 layer


def test_a_copy_of_the_embedding_is_ignored_where_tied(folder: Path, mesh: Mesh) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    assert "head" not in load(folder, mesh)


@pytest.mark.parametrize("size", [0, 5, 200, -4])
def test_a_truncated_file_is_refused(folder: Path, mesh: Mesh, size: int) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:size])
    with pytest.raises(ValueError, match="model.safetensors: not a complete safetensors file"):
        load(folder, mesh)


def test_a_folder_without_weights_is_refused(folder: Path, mesh: Mesh) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no model.safetensors"):
        load(folder, mesh)


def test_numbers_that_are_no_floats_are_named(folder: Path, mesh: Mesh) -> None:
    tensors = tensors_of(folder)
    tensors[Q0] = tensors[Q0].astype(np.int8)
    rewrite(folder, tensors)
    with pytest.raises(ValueError, match=f"{Q0} holds I8, expected one of F32, BF16, F16"):
        load(folder, mesh)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"metadata": {}}', '{"weight_map": []}'])
def test_a_broken_index_is_refused(folder: Path, mesh: Mesh, text: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match="index.json: not an index of safetensors"):
        load(folder, mesh)
