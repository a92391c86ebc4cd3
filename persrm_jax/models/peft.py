"""LoRA adapters as PEFT keeps them: a folder of `adapter_config.json` and safetensors."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from persrm_jax.jsonl import write_text
from persrm_jax.models.config import ModelConfig
from persrm_jax.models.hf import hf_module
from persrm_jax.models.params import Params
from persrm_jax.models.params import Path as ParamPath
from persrm_jax.models.trainable import TARGETS, TrainableConfig, adapter_specs
from persrm_jax.sharding import param_sharding

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_UNSUPPORTED: dict[str, object] = {
    "use_dora": False,
    "use_rslora": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layers_to_transform": None,
    "fan_in_fan_out": False,
    "lora_bias": False,
    "use_qalora": False,
    "alora_invocation_tokens": None,
    "layer_replication": None,
    "target_parameters": None,
    "trainable_token_indices": None,
}
"""What changes an adapter's meaning, and the value without it."""


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def base_of(folder: Path) -> str:
    """The model that an adapter goes on: a folder beside it, or a name as it stands."""
    base = _read_config(folder).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ValueError(f"{folder / CONFIG}: base_model_name_or_path must name a model")
    beside = folder / base
    if beside.is_dir() and beside.samefile(folder):
        raise ValueError(f"{folder / CONFIG}: base_model_name_or_path {base} is the adapter itself")
    return str(beside) if beside.is_dir() else base


def export_adapter(
    folder: Path,
    adapters: Params,
    cfg: TrainableConfig,
    *,
    base: str,
    dtype: str = "float32",
    card: str = "",
) -> None:
    """Writes adapters as PEFT has them. Every process of a multi-host run calls it.

    Args:
        base: the model that they go on, as transformers finds it, or `base_of`.
        dtype: of the weights on disk.

    Raises:
        ValueError: `folder` is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder}: is not empty; name a new folder")
    tensors = {}
    for path, leaf in traverse_util.flatten_dict(adapters).items():
        for i, layer in enumerate(gather(leaf).astype(dtype)):
            flat = layer.reshape(-1, cfg.lora_rank) if _is_a(path) else layer
            tensors[_name(path, i)] = np.ascontiguousarray(flat.reshape(len(flat), -1).T)
    if jax.process_index():
        return
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)
    if card:
        write_text(folder / "README.md", card)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": cfg.lora_rank,
        "lora_alpha": cfg.lora_alpha,
        "lora_dropout": cfg.lora_dropout,
        "target_modules": sorted(_module(name) for name in cfg.lora_targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def load_adapter(folder: Path, model: ModelConfig, mesh: Mesh) -> tuple[Params, TrainableConfig]:
    """An adapter, in float32, and how it is to be joined with a model of this config.

    Raises:
        ValueError: no LoRA, one of a kind that is not supported, or of another model.
    """
    cfg = _trainable(folder)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder / WEIGHTS}: cannot be read ({error})") from None
    adapters = {}
    for path, spec in adapter_specs(model, cfg):
        layers = []
        for i in range(spec.shape[0]):
            tensor = tensors.pop(_name(path, i), None)
            if tensor is None:
                raise ValueError(f"{folder / WEIGHTS}: has no {_name(path, i)}")
            if tensor.size != np.prod(spec.shape[1:]):
                raise ValueError(
                    f"{folder / WEIGHTS}: {_name(path, i)} is {tensor.shape}, of another model "
                    f"than {base_of(folder)}"
                )
            layers.append(tensor.T.astype(np.float32).reshape(spec.shape[1:]))
        where = param_sharding(spec.shape, spec.axes, mesh)
        adapters[path] = jax.device_put(np.stack(layers), where)
    if tensors:
        raise ValueError(f"{folder / WEIGHTS}: {min(tensors)} is no adapter of {base_of(folder)}")
    return traverse_util.unflatten_dict(adapters), cfg


def gather(x: jax.Array) -> np.ndarray:
    """The whole of an array that may lie on several processes' devices."""
    if x.is_fully_addressable:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def _trainable(folder: Path) -> TrainableConfig:
    config = _read_config(folder)
    found = {"peft_type": "LORA", "bias": "none", **_UNSUPPORTED}
    for name, plain in found.items():
        value = config.get(name, plain)
        if value != plain and (value or plain):
            raise ValueError(
                f"{folder / CONFIG}: {name} {value} is not supported (only {plain or 'none'})"
            )
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start not in ("gaussian", "eva", "orthogonal"):
        raise ValueError(
            f"{folder / CONFIG}: init_lora_weights {start} is not supported: it changes the "
            "weights that the adapter goes on"
        )
    modules = {_module(name): name for name in TARGETS}
    targets = config.get("target_modules")
    if not isinstance(targets, list) or not targets or set(targets) - set(modules):
        raise ValueError(f"{folder / CONFIG}: target_modules must be among {', '.join(modules)}")
    return TrainableConfig(
        lora_rank=config["r"],
        lora_alpha=config["lora_alpha"],
        lora_targets=tuple(modules[m] for m in targets),
    )


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: is not valid JSON ({error})") from None
    for name in ("r", "lora_alpha"):
        if not isinstance(config.get(name), int | float):
            raise ValueError(f"{folder / CONFIG}: {name} must be a number")
    return dict(config)


def _name(path: ParamPath, layer: int) -> str:
    kind = "lora_A" if _is_a(path) else "lora_B"
    return f"base_model.model.{hf_module(path[1], layer)}.{kind}.weight"


def _is_a(path: ParamPath) -> bool:
    return path[-1] == "lora_a"


def _module(name: str) -> str:
    return hf_module(name, 0).split(".")[-1]
