"""Out to Hugging Face and back, from each thing that a run leaves."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import Mesh
from safetensors.numpy import load_file
from small_model import SMALL, random_params

from experiments.convert import main
from experiments.presets import PRESETS
from persrm_jax.checkpoint import Checkpoints
from persrm_jax.models.load import Model, load_model, model_folder, save_model, stored_dtype
from persrm_jax.models.params import Params
from persrm_jax.models.trainable import TrainableConfig, merge, split
from persrm_jax.runs import RunFolder
from persrm_jax.tokenizer import byte_tokenizer
from persrm_jax.training.optimizer import OptimizerConfig, make_optimizer
from persrm_jax.training.step import init_state


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, mesh: Mesh) -> Path:
    """A run folder whose SFT is done and whose RFT was stopped at step 3."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    RunFolder(folder, PRESETS["tiny"])
    save_model(folder / "sft" / "model", Model(SMALL, random_params(SMALL), byte_tokenizer()))
    optimizer = make_optimizer(OptimizerConfig(), 10)
    state = init_state(random_params(SMALL, seed=3), optimizer, jax.random.key(0), mesh)
    checkpoints = Checkpoints(folder / "rft" / "checkpoints")
    checkpoints.save(3, state)
    checkpoints.close()
    return folder


def assert_same(found: Params, want: Params) -> None:
    flat, other = traverse_util.flatten_dict(found), traverse_util.flatten_dict(want)
    assert flat.keys() == other.keys()
    for path in flat:
        np.testing.assert_array_equal(flat[path], other[path], err_msg=str(path))


def embedding(folder: Path) -> np.ndarray:
    return load_file(folder / "model.safetensors")["model.embed_tokens.weight"]


def test_a_run_out_and_back_is_exact(run: Path, tmp_path: Path, mesh: Mesh) -> None:
    main(["--from", str(run), "--to", str(tmp_path / "hf")])
    main(["--from", str(tmp_path / "hf"), "--to", str(tmp_path / "ours")])
    again = load_model(tmp_path / "ours", mesh, "float32")
    assert again.config == SMALL
    assert_same(again.params, random_params(SMALL))
    main(["--from", str(tmp_path / "ours"), "--to", str(tmp_path / "hf2")])
    for name in ("model.safetensors", "config.json", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "hf" / name).read_bytes() == (tmp_path / "hf2" / name).read_bytes()


def test_bfloat16_stays_bfloat16(run: Path, tmp_path: Path) -> None:
    main(["--from", str(run), "--to", str(tmp_path / "hf"), "--dtype", "bfloat16"])
    main(["--from", str(tmp_path / "hf"), "--to", str(tmp_path / "ours")])
    assert stored_dtype(str(tmp_path / "ours")) == "bfloat16"
    main(["--from", str(tmp_path / "ours"), "--to", str(tmp_path / "hf2")])
    assert embedding(tmp_path / "hf2").dtype == "bfloat16"
    np.testing.assert_array_equal(embedding(tmp_path / "hf"), embedding(tmp_path / "hf2"))


def test_an_orbax_checkpoint_of_a_stage_that_has_not_finished(run: Path, tmp_path: Path) -> None:
    main(["--from", str(run / "rft" / "checkpoints" / "3"), "--to", str(tmp_path / "hf")])
    want = random_params(SMALL, seed=3)["embed"]["weight"]
    np.testing.assert_array_equal(embedding(tmp_path / "hf"), want)


def adapters_of(run: Path, mesh: Mesh) -> tuple[TrainableConfig, Params, Params]:
    """A run with a checkpoint of adapters at step 7: their config, they, and their base."""
    lora = TrainableConfig(lora_rank=4)
    RunFolder(run, replace(PRESETS["tiny"], train=lora))
    save_model(run / "sft" / "model", Model(SMALL, random_params(SMALL), byte_tokenizer()))
    trained, frozen = split(random_params(SMALL), SMALL, lora, jax.random.key(0), mesh)
    trained = jax.tree.map(lambda x: x + 0.1, trained)
    optimizer = make_optimizer(OptimizerConfig(), 10)
    checkpoints = Checkpoints(run / "rft" / "checkpoints")
    checkpoints.save(7, init_state(trained, optimizer, jax.random.key(0), mesh))
    checkpoints.close()
    return lora, trained, frozen


def test_a_checkpoint_of_adapters_is_merged(tmp_path: Path, mesh: Mesh) -> None:
    run = tmp_path / "run"
    lora, trained, frozen = adapters_of(run, mesh)
    main(["--from", str(run / "rft" / "checkpoints" / "7"), "--to", str(tmp_path / "hf")])
    down = load_file(tmp_path / "hf" / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    want = merge(trained, frozen, lora)["layers"]["down"]["kernel"][1]
    np.testing.assert_array_equal(down, want.T)
    assert (down != frozen["layers"]["down"]["kernel"][1].T).all()


def test_adapters_apart_are_what_peft_names_them(tmp_path: Path, mesh: Mesh) -> None:
    run = tmp_path / "run"
    lora, trained, frozen = adapters_of(run, mesh)
    step = ["--from", str(run / "rft" / "checkpoints" / "7")]
    main([*step, "--to", str(tmp_path / "out"), "--adapter"])
    tensors = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    base = load_file(tmp_path / "out" / "base" / "model.safetensors")
    merged = merge(trained, frozen, lora)["layers"]
    for ours, module in (
        ("o", "self_attn.o_proj"),
        ("k", "self_attn.k_proj"),
        ("up", "mlp.up_proj"),
    ):
        name = f"model.layers.1.{module}"
        a, b = (tensors[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
        weight = base[f"{name}.weight"] + lora.scale * b @ a  # PEFT's definition
        want = np.asarray(merged[ours]["kernel"][1]).reshape(weight.shape[::-1]).T
        np.testing.assert_allclose(weight, want, rtol=1e-5, atol=1e-6)
    assert len(tensors) == 2 * 7 * SMALL.num_layers
    config = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 4 and config["lora_alpha"] == 32.0
    assert set(config["target_modules"]) == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_on_a_named_base_load_as_a_model(dtype: str, tmp_path: Path, mesh: Mesh) -> None:
    run = tmp_path / "run"
    lora, trained, frozen = adapters_of(run, mesh)
    step = ["--from", str(run / "rft" / "checkpoints" / "7"), "--adapter"]
    main([*step, "--to", str(tmp_path / "out"), "--base", "../run/sft/model", "--dtype", dtype])
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    found = load_model(model_folder(tmp_path / "out"), mesh, "float32")
    rounded = jax.tree.map(lambda x: x.astype(dtype).astype("float32"), trained)
    want = merge(rounded, frozen, lora)
    jax.tree.map(np.testing.assert_array_equal, found.params, want)
    assert found.config == SMALL
    main(["--from", str(tmp_path / "out"), "--to", str(tmp_path / "ours")])
    again = load_model(tmp_path / "ours", mesh, "float32")
    jax.tree.map(np.testing.assert_array_equal, again.params, want)


def _changed(folder: Path, **fields: object) -> None:
    config = json.loads((folder / "adapter_config.json").read_text()) | fields
    (folder / "adapter_config.json").write_text(json.dumps(config))


def test_adapters_that_cannot_be_used_are_refused(tmp_path: Path, mesh: Mesh) -> None:
    adapters_of(tmp_path / "run", mesh)
    out = tmp_path / "out"
    step = ["--from", str(tmp_path / "run" / "rft" / "checkpoints" / "7")]
    main([*step, "--adapter", "--to", str(out), "--base", "../run/sft/model"])
    for fields, why in (
        ({"peft_type": "IA3"}, "peft_type IA3 is not supported .only LORA"),
        ({"use_dora": True}, "use_dora True is not supported"),
        ({"target_modules": "all-linear"}, "target_modules must be among"),
        ({"target_modules": ["q_proj"]}, "is no adapter of"),
        ({"r": 8}, "is .* of another model than"),
        ({"r": None}, "r must be a number"),
        ({"base_model_name_or_path": "nowhere"}, "model nowhere: no such folder"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path must name"),
        ({"base_model_name_or_path": "."}, "base_model_name_or_path . is the adapter itself"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights pissa is not supported"),
        ({"target_modules": []}, "target_modules must be among"),
    ):
        whole = (out / "adapter_config.json").read_text()
        _changed(out, **fields)
        with pytest.raises(ValueError, match=why):
            load_model(out, mesh, "float32")
        (out / "adapter_config.json").write_text(whole)
    (out / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="adapter_model.safetensors: cannot be read"):
        load_model(out, mesh, "float32")
    save_model(tmp_path / "other", Model(SMALL, random_params(SMALL, seed=9), byte_tokenizer()))
    with pytest.raises(ValueError, match="--base ../other: is not the model that these adapters"):
        main([*step, "--adapter", "--to", str(tmp_path / "x"), "--base", "../other"])
    with pytest.raises(ValueError, match="--base smollm2: goes with --adapter"):
        main([*step, "--to", str(tmp_path / "x"), "--base", "smollm2"])


def test_a_run_without_adapters_has_none_to_write(run: Path, tmp_path: Path) -> None:
    step = ["--from", str(run / "rft" / "checkpoints" / "3"), "--to", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="trained without adapters"):
        main([*step, "--adapter"])
    with pytest.raises(ValueError, match="--adapter needs a checkpoint"):
        main(["--from", str(run), "--to", str(tmp_path / "out"), "--adapter"])


def test_the_card_says_how_it_was_trained(run: Path, tmp_path: Path) -> None:
    main(["--from", str(run), "--to", str(tmp_path / "hf")])
    card = (tmp_path / "hf" / "README.md").read_text()
    provenance = json.loads((run / "provenance.json").read_text())
    for words in ("arXiv 2508.14076", "Preset `tiny`", "data `personas`", provenance["commit"]):
        assert words in card


def test_the_last_stage_is_taken(run: Path, tmp_path: Path) -> None:
    model = Model(SMALL, random_params(SMALL, seed=9), byte_tokenizer())
    save_model(run / "rft" / "model", model)
    main(["--from", str(run), "--to", str(tmp_path / "hf")])
    np.testing.assert_array_equal(
        embedding(tmp_path / "hf"), random_params(SMALL, seed=9)["embed"]["weight"]
    )
