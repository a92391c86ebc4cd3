import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import Mesh
from safetensors import safe_open
from safetensors.numpy import load_file
from small_model import FAMILIES, SMALL, random_params

from persrm_jax.models.hf import load_hf_params
from persrm_jax.models.hf_config import hf_config, load_config
from persrm_jax.models.hf_export import export_hf
from persrm_jax.models.params import Params, param_shardings
from persrm_jax.sharding import MeshShape, make_mesh
from persrm_jax.tokenizer import Tokenizer, byte_tokenizer

GOLDENS = Path(__file__).parents[1] / "data" / "hf_goldens"
BYTES = byte_tokenizer()


def assert_same(found: Params, want: Params) -> None:
    flat, other = traverse_util.flatten_dict(found), traverse_util.flatten_dict(want)
    assert flat.keys() == other.keys()
    for path in flat:
        assert flat[path].dtype == other[path].dtype
        np.testing.assert_array_equal(flat[path], other[path], err_msg=str(path))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_out_and_in_again_is_exact(name: str, dtype: str, tmp_path: Path, mesh: Mesh) -> None:
    cfg = FAMILIES[name]
    params = random_params(cfg, dtype=dtype)
    export_hf(tmp_path / "out", cfg, params, BYTES)
    found = load_config(tmp_path / "out")
    # What only other kinds of rope have is not written.
    assert found == cfg
    assert_same(load_hf_params(tmp_path / "out", found, mesh, dtype), params)


@pytest.mark.parametrize("name", sorted(p.name for p in GOLDENS.iterdir()))
def test_in_and_out_again_is_exact(name: str, tmp_path: Path, mesh: Mesh) -> None:
    cfg = load_config(GOLDENS / name)
    files = load_file(GOLDENS / name / "model.safetensors")
    dtype = str(next(iter(files.values())).dtype)
    export_hf(tmp_path / "out", cfg, load_hf_params(GOLDENS / name, cfg, mesh, dtype), BYTES)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == files.keys()
    for tensor in files:
        assert written[tensor].dtype == files[tensor].dtype
        np.testing.assert_array_equal(written[tensor], files[tensor], err_msg=tensor)


def test_from_a_mesh_and_back_onto_another(tmp_path: Path, mesh: Mesh) -> None:
    cfg = FAMILIES["qwen2"]
    sharded = jax.device_put(random_params(cfg), param_shardings(cfg, make_mesh(MeshShape(2, 4))))
    export_hf(tmp_path / "out", cfg, sharded, BYTES)
    again = load_hf_params(tmp_path / "out", cfg, make_mesh(MeshShape(4, 2)))
    assert_same(again, jax.device_get(sharded))


def test_shards_stay_under_their_limit_and_the_index_finds_all(tmp_path: Path, mesh: Mesh) -> None:
    params = random_params(SMALL)
    limit = 45_000  # the embedding alone takes 40,960 bytes
    export_hf(tmp_path / "out", SMALL, params, BYTES, max_shard_bytes=limit)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    total = 0
    for file in files:
        with safe_open(tmp_path / "out" / file, "numpy") as shard:
            sizes = [shard.get_tensor(name).nbytes for name in shard.keys()]
            assert {n for n, f in index["weight_map"].items() if f == file} == set(shard.keys())
        assert sum(sizes) <= limit
        total += sum(sizes)
    assert index["metadata"]["total_size"] == total == 4 * SMALL.num_params
    assert_same(load_hf_params(tmp_path / "out", SMALL, mesh), params)


def test_the_folder_has_all_that_a_user_needs(tmp_path: Path, mesh: Mesh) -> None:
    folder = tmp_path / "out"
    export_hf(folder, SMALL, random_params(SMALL), BYTES, card="# Card\n")
    names = {p.name for p in folder.iterdir()}
    assert names >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
        "README.md",
    }
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"] and config["dtype"] == "float32"
    assert config["eos_token_id"] == BYTES.end_id and config["pad_token_id"] == BYTES.pad_id
    messages = [{"role": "user", "content": "hello"}]
    assert Tokenizer.load(folder).encode_chat(messages) == BYTES.encode_chat(messages)


def test_another_dtype_on_disk(tmp_path: Path, mesh: Mesh) -> None:
    params = random_params(SMALL)
    export_hf(tmp_path / "out", SMALL, params, BYTES, dtype="bfloat16")
    want = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
    assert_same(load_hf_params(tmp_path / "out", SMALL, mesh, "bfloat16"), want)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_nothing_is_written_over(tmp_path: Path, mesh: Mesh) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="is not empty"):
        export_hf(tmp_path, SMALL, random_params(SMALL), BYTES)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_model_of_no_family_is_refused() -> None:
    odd = dataclasses.replace(SMALL, mlp_bias=True)  # q/k norm with MLP biases
    with pytest.raises(ValueError, match="no Hugging Face family.*qk_norm=True.*mlp_bias=True"):
        hf_config(odd, dtype="float32", end_ids=(2,), pad_id=0)
