"""Our parameters -> a folder that transformers and vLLM load."""

import json
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from flax import traverse_util
from rich.progress import track
from safetensors.numpy import save_file

from persrm_jax.jsonl import write_text
from persrm_jax.models.config import ModelConfig
from persrm_jax.models.hf import SHOW_PROGRESS_FROM, hf_names, hf_shape, to_hf
from persrm_jax.models.hf_config import hf_config
from persrm_jax.models.params import Params, param_specs
from persrm_jax.models.peft import gather
from persrm_jax.tokenizer import Tokenizer

MAX_SHARD_BYTES = 4 * 10**9


def export_hf(
    folder: Path,
    cfg: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    *,
    dtype: str | None = None,
    card: str = "",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes config, sharded safetensors with their index, tokenizer, chat template, generation
    config and model card. Every process of a multi-host run calls it; the first one writes.

    Args:
        dtype: of the weights on disk; by default as they are held.
        card: `README.md`, in Markdown.

    Raises:
        ValueError: `folder` is not empty, or no Hugging Face family has the model's features.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder}: is not empty; name a new folder")
    dtype = dtype or str(params["embed"]["weight"].dtype)
    config = hf_config(cfg, dtype=dtype, end_ids=tokenizer.end_ids, pad_id=tokenizer.pad_id)
    writes = jax.process_index() == 0
    if writes:
        folder.mkdir(parents=True, exist_ok=True)
    _write_weights(folder, cfg, params, np.dtype(dtype), max_shard_bytes, writes=writes)
    if writes:
        tokenizer.save(folder)
        if card:
            write_text(folder / "README.md", card)
        # Last, since without it the folder is no model.
        write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")


def _write_weights(
    folder: Path,
    cfg: ModelConfig,
    params: Params,
    dtype: np.dtype,
    max_shard_bytes: int,
    *,
    writes: bool,
) -> None:
    shards = _plan(cfg, dtype, max_shard_bytes)
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        files = ["model.safetensors"]
    tensors = _tensors(cfg, params, dtype)
    show = cfg.num_params >= SHOW_PROGRESS_FROM and writes
    for file, names in track(
        list(zip(files, shards, strict=True)), "writing weights", transient=True, disable=not show
    ):
        shard = dict(next(tensors) for _ in names)
        assert list(shard) == names
        if writes:
            save_file(shard, folder / file, metadata={"format": "pt"})
            (folder / file).chmod(0o644)  # safetensors leaves it to its owner alone
    if len(shards) > 1 and writes:
        size = sum(_bytes(shape, dtype) for _, shape in _order(cfg))
        weight_map = {n: file for file, names in zip(files, shards, strict=True) for n in names}
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        write_text(folder / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")


def _order(cfg: ModelConfig) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors in the order in which they are written: leaf by leaf."""
    return [
        (name, hf_shape(path, spec, cfg))
        for path, spec in param_specs(cfg)
        for name in hf_names(path, spec)
    ]


def _bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return int(np.prod(shape)) * dtype.itemsize


def _plan(cfg: ModelConfig, dtype: np.dtype, max_shard_bytes: int) -> list[list[str]]:
    """The names that go into each file."""
    shards: list[list[str]] = [[]]
    held = 0
    for name, shape in _order(cfg):
        size = _bytes(shape, dtype)
        if shards[-1] and held + size > max_shard_bytes:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    return shards


def _tensors(cfg: ModelConfig, params: Params, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
    """Each tensor in turn, gathered from its devices one layer at a time."""
    flat = traverse_util.flatten_dict(params)
    for path, spec in param_specs(cfg):
        names = hf_names(path, spec)
        for i, name in enumerate(names):
            leaf = flat[path][i] if path[0] == "layers" else flat[path]
            host = gather(leaf).astype(dtype, copy=False)
            yield name, np.ascontiguousarray(to_hf(host, path, spec, cfg))
