"""Hugging Face's safetensors <-> our parameters, tensor by tensor."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh
from rich.progress import track
from safetensors import SafetensorError, safe_open

from persrm_jax.models.config import ModelConfig
from persrm_jax.models.params import Params, ParamSpec, param_specs
from persrm_jax.models.params import Path as ParamPath
from persrm_jax.sharding import param_sharding

FLOATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
SHOW_PROGRESS_FROM = 10**9
"""Parameters from which loading shows a bar."""
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
    return [f"{hf_module(module, i)}.{suffix}" for i in range(spec.shape[0])]


def hf_module(name: str, layer: int) -> str:
    """What Hugging Face calls a part of a layer."""
    return f"model.layers.{layer}.{_MODULES[name]}"


def hf_shape(path: ParamPath, spec: ParamSpec, cfg: ModelConfig) -> tuple[int, ...]:
    """The shape of each of those tensors: kernels are (out, in) with heads flattened."""
    if path in _TOP:
        return spec.shape
    _, module, leaf = path
    if leaf == "kernel":
        fan_in = cfg.num_heads * cfg.head_width if module == "o" else spec.shape[1]
        return (int(np.prod(spec.shape[1:])) // fan_in, fan_in)
    return (int(np.prod(spec.shape[1:])),)


def to_hf(leaf: np.ndarray, path: ParamPath, spec: ParamSpec, cfg: ModelConfig) -> np.ndarray:
    """One layer of a leaf, or a leaf without layers, as Hugging Face's tensor."""
    shape = hf_shape(path, spec, cfg)
    return leaf.reshape(shape[::-1]).T if path[-1] == "kernel" else leaf.reshape(shape)


def load_hf_params(folder: Path, cfg: ModelConfig, mesh: Mesh, dtype: str = "float32") -> Params:
    """Streams the weights onto `mesh`: each device's slices of each tensor straight into its array.

    Beyond the arrays themselves each process holds its own devices' parts of one stacked leaf at a
    time.

    Raises:
        ValueError: no weights, a broken file, or a list of all tensors that are missing, unknown,
            or of another shape or kind of number.
    """
    files = _index(folder)
    specs = param_specs(cfg)
    wanted = {
        name: hf_shape(path, spec, cfg) for path, spec in specs for name in hf_names(path, spec)
    }
    _check(folder, wanted, files, cfg)
    params = {}
    few = sum(int(np.prod(spec.shape)) for _, spec in specs) < SHOW_PROGRESS_FROM
    for path, spec in track(specs, "loading weights", transient=True, disable=few):
        read = functools.partial(_read, files, hf_names(path, spec), path, spec, dtype)
        sharding = param_sharding(spec.shape, spec.axes, mesh)
        array = jax.make_array_from_callback(spec.shape, sharding, read)
        # Else the host's copies of several leaves wait for their devices at once.
        params[path] = jax.block_until_ready(array)
    return traverse_util.unflatten_dict(params)


def _read(
    files: Mapping[str, Path],
    names: Sequence[str],
    path: ParamPath,
    spec: ParamSpec,
    dtype: str,
    index: tuple[slice, ...] | None,
) -> np.ndarray:
    """The part `index` of a leaf."""
    assert index is not None
    bounds = [s.indices(size)[:2] for s, size in zip(index, spec.shape, strict=True)]
    out = np.empty([stop - start for start, stop in bounds], dtype)
    if path in _TOP:
        out[...] = _read_slice(files[names[0]], names[0], tuple(slice(*b) for b in bounds))
        return out
    # Hugging Face flattens (D, heads, H) to (heads * H, D), and (heads, H, D) to (D, heads * H).
    split = 2 if path[1] == "o" else 1
    dims = list(zip(bounds[1:], spec.shape[1:], strict=True))
    where: tuple[slice, ...]
    if path[-1] == "kernel":
        where = (_flat_slice(dims[split:]), _flat_slice(dims[:split]))
    else:
        where = (_flat_slice(dims),)
    for row, layer in enumerate(range(*bounds[0])):
        tensor = _read_slice(files[names[layer]], names[layer], where)
        out[row] = tensor.T.reshape(out.shape[1:])
    return out


def _flat_slice(dims: Sequence[tuple[tuple[int, int], int]]) -> slice:
    """Bounds of dims that lie flattened in one; all but the first are whole."""
    (start, stop), _ = dims[0]
    assert all(bounds == (0, size) for bounds, size in dims[1:]), "only leading dims are sharded"
    rest = int(np.prod([size for _, size in dims[1:]]))
    return slice(start * rest, stop * rest)


def _read_slice(file: Path, name: str, where: tuple[slice, ...]) -> np.ndarray:
    # The file is mapped only while one tensor is read, or its pages would count as our memory.
    with safe_open(file, framework="numpy") as handle:
        return handle.get_slice(name)[where]


def stored_dtypes(folder: Path) -> set[str]:
    """The dtypes of a folder's tensors."""
    files = _index(folder)
    held = {file: _describe(file) for file in set(files.values())}
    found = {held[file][name][1] for name, file in files.items() if name in held[file]}
    return {FLOATS.get(dtype, dtype) for dtype in found}


def _index(folder: Path) -> dict[str, Path]:
    """The file that holds each tensor."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return {name: folder / file for name, file in names.items()}
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{index}: not an index of safetensors (no weight_map)") from None
    single = folder / "model.safetensors"
    if not single.is_file():
        raise ValueError(f"{folder}: holds no model.safetensors and no index of shards")
    return dict.fromkeys(_describe(single), single)


def _describe(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each tensor of a file; only its header is read."""
    if not file.is_file():
        raise ValueError(f"{file}: this shard is missing")
    try:
        with safe_open(file, framework="numpy") as handle:
            slices = {name: handle.get_slice(name) for name in handle.keys()}
            return {n: (tuple(s.get_shape()), s.get_dtype()) for n, s in slices.items()}
    except SafetensorError as error:
        raise ValueError(f"{file}: not a complete safetensors file ({error})") from None


def _check(
    folder: Path,
    wanted: Mapping[str, tuple[int, ...]],
    files: Mapping[str, Path],
    cfg: ModelConfig,
) -> None:
    held = {file: _describe(file) for file in sorted(set(files.values()))}
    problems = [f"missing {n}" for n in wanted if n not in files or n not in held[files[n]]]
    for name, file in files.items():
        if name not in held[file]:
            continue  # missing, if wanted
        if name not in wanted:
            # Tied models may still carry a copy of the embedding.
            if not (name == "lm_head.weight" and cfg.tie_embeddings):
                problems.append(f"unknown {name}")
            continue
        shape, dtype = held[file][name]
        if shape != wanted[name]:
            problems.append(f"{name} has shape {shape}, expected {wanted[name]}")
        if dtype not in FLOATS:
            problems.append(f"{name} holds {dtype}, expected one of {', '.join(FLOATS)}")
    if problems:
        raise ValueError(f"{folder}: weights do not fit config.json: " + "; ".join(problems))
