"""A Hugging Face folder of safetensors -> our parameters."""

import json
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open

from persrm_jax.models.config import ModelConfig
from persrm_jax.models.params import Params, ParamSpec, param_specs
from persrm_jax.models.params import Path as ParamPath
from persrm_jax.sharding import param_sharding

_MODULES = {
    "attn_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_TOP = {
    ("embed", "weight"): "model.embed_tokens.weight",
    ("final_norm", "scale"): "model.norm.weight",
    ("head", "weight"): "lm_head.weight",
}


def hf_names(path: ParamPath, spec: ParamSpec) -> list[str]:
    """The tensors that make up one of our leaves, layer by layer."""
    if path in _TOP:
        return [_TOP[path]]
    _, module, leaf = path
    suffix = "bias" if leaf == "bias" else "weight"
    return [f"model.layers.{i}.{_MODULES[module]}.{suffix}" for i in range(spec.shape[0])]


def hf_shape(path: ParamPath, spec: ParamSpec, cfg: ModelConfig) -> tuple[int, ...]:
    """The shape of each of those tensors: kernels are (out, in) with heads flattened."""
    if path in _TOP:
        return spec.shape
    _, module, leaf = path
    if leaf == "kernel":
        fan_in = cfg.num_heads * cfg.head_width if module == "o" else spec.shape[1]
        return (int(np.prod(spec.shape[1:])) // fan_in, fan_in)
    return (int(np.prod(spec.shape[1:])),)


def load_hf_params(folder: Path, cfg: ModelConfig, mesh: Mesh, dtype: str = "float32") -> Params:
    """Reads every tensor once, a stacked leaf at a time, and places it on `mesh`.

    Raises:
        ValueError: no weights, a broken file, or a list of all tensors that are missing, unknown or
            of another shape.
    """
    files = _index(folder)
    specs = param_specs(cfg)
    wanted = {
        name: hf_shape(path, spec, cfg) for path, spec in specs for name in hf_names(path, spec)
    }
    handles = {file: _open(file) for file in sorted(set(files.values()))}
    _check(folder, wanted, files, handles, cfg)
    params = {}
    for path, spec in specs:
        tensors = []
        for name in hf_names(path, spec):
            tensor = np.asarray(handles[files[name]].get_tensor(name)).astype(dtype)
            tensors.append(tensor.T if path[-1] == "kernel" else tensor)
        leaf = (tensors[0] if path in _TOP else np.stack(tensors)).reshape(spec.shape)
        params[path] = jax.device_put(leaf, param_sharding(spec.shape, spec.axes, mesh))
    return traverse_util.unflatten_dict(params)


def _index(folder: Path) -> dict[str, Path]:
    """The file that holds each tensor."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {name: folder / file for name, file in names.items()}
    single = folder / "model.safetensors"
    if not single.is_file():
        raise ValueError(f"{folder}: holds no model.safetensors and no index of shards")
    return dict.fromkeys(_open(single).keys(), single)


def _open(file: Path) -> safe_open:
    if not file.is_file():
        raise ValueError(f"{file}: this shard is missing")
    try:
        return safe_open(file, framework="numpy")
    except SafetensorError as error:
        raise ValueError(f"{file}: not a complete safetensors file ({error})") from None


def _check(
    folder: Path,
    wanted: Mapping[str, tuple[int, ...]],
    files: Mapping[str, Path],
    handles: Mapping[Path, safe_open],
    cfg: ModelConfig,
) -> None:
    held = {file: set(handle.keys()) for file, handle in handles.items()}
    problems = [f"missing {n}" for n in wanted if n not in files or n not in held[files[n]]]
    for name, file in files.items():
        if name not in held[file]:
            continue  # missing, if wanted
        if name not in wanted:
            # Tied models may still carry a copy of the embedding.
            if not (name == "lm_head.weight" and cfg.tie_embeddings):
                problems.append(f"unknown {name}")
            continue
        shape = tuple(handles[file].get_slice(name).get_shape())
        if shape != wanted[name]:
            problems.append(f"{name} has shape {shape}, expected {wanted[name]}")
    if problems:
        raise ValueError(f"{folder}: weights do not fit config.json: " + "; ".join(problems))
