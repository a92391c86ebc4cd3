"""Peak memory of loading a checkpoint of Qwen2.5-1.5B's shapes (random bfloat16, made here).

    python -m benchmarks.load_memory [--out results/load-memory.json]

Each mesh loads in a process of its own. What a load may hold beyond the final arrays is the largest
stacked tensor plus 1 GiB.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from persrm_jax import cli
from persrm_jax.chips import GIB, process_memory
from persrm_jax.jsonl import write_text
from persrm_jax.models.config import SIZES, ModelConfig
from persrm_jax.models.hf import hf_names, hf_shape, load_hf_params
from persrm_jax.models.hf_config import hf_config, load_config
from persrm_jax.models.params import param_specs
from persrm_jax.runs import provenance
from persrm_jax.sharding import MeshShape, make_mesh

QWEN2_5_1_5B = SIZES["Qwen/Qwen2.5-1.5B-Instruct"]
MESHES = ("1x1", "8x1", "4x2")


def write_checkpoint(folder: Path, cfg: ModelConfig, per_file: int = 100) -> None:
    """Random bfloat16 tensors in several files, one tensor in memory at a time but for a file's."""
    rng = np.random.default_rng(0)
    tensors = [
        (name, hf_shape(path, spec, cfg))
        for path, spec in param_specs(cfg)
        for name in hf_names(path, spec)
    ]
    groups = [tensors[i : i + per_file] for i in range(0, len(tensors), per_file)]
    weight_map: dict[str, str] = {}
    for i, group in enumerate(groups):
        file = f"model-{i + 1:05}-of-{len(groups):05}.safetensors"
        arrays = {
            name: rng.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)
            for name, shape in group
        }
        save_file(arrays, folder / file)
        weight_map |= dict.fromkeys(arrays, file)
    index = {"metadata": {}, "weight_map": weight_map}
    write_text(folder / "model.safetensors.index.json", json.dumps(index))
    config = hf_config(cfg, dtype="bfloat16", end_ids=(151645,), pad_id=151643)
    write_text(folder / "config.json", json.dumps(config))


def measure_load(folder: Path, mesh: str) -> dict[str, float | str | bool]:
    """Loads in this process. Bytes are GiB."""
    devices = make_mesh(MeshShape.parse(mesh))
    jax.block_until_ready(jax.device_put(np.zeros(8)))
    cfg = load_config(folder)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    before = process_memory("VmRSS")
    start = time.perf_counter()
    params = jax.block_until_ready(load_hf_params(folder, cfg, devices, "bfloat16"))
    seconds = time.perf_counter() - start
    arrays = sum(
        shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards
    )
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
    peak = process_memory("VmHWM")
    beyond = peak - before - arrays
    return {
        "mesh": mesh,
        "arrays_gib": arrays / GIB,
        "peak_rss_gib": peak / GIB,
        "beyond_the_arrays_gib": beyond / GIB,
        "bound_gib": (largest + GIB) / GIB,
        "within": beyond <= largest + GIB,
        "seconds": seconds,
    }


@dataclass(frozen=True)
class Config:
    """What to measure."""

    out: Path | None = None
    """Where to write the numbers, as JSON."""
    folder: Path | None = None
    """(Set by the benchmark itself.) The checkpoint that this process loads."""
    mesh: str = "1x1"
    """(Set by the benchmark itself.) The mesh that it loads onto."""


def main(args: Sequence[str]) -> None:
    """The command line."""
    cfg = cli.parse_flags(Config, "python -m benchmarks.load_memory", args)
    if cfg.folder is not None:
        print(json.dumps(measure_load(cfg.folder, cfg.mesh)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), QWEN2_5_1_5B)
        for mesh in MESHES:
            command = [sys.executable, "-m", "benchmarks.load_memory"]
            command += ["--folder", folder, "--mesh", mesh]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1])
    if cfg.out is not None:
        result = {"provenance": provenance(), "model": "Qwen2.5-1.5B's shapes", "loads": rows}
        write_text(cfg.out, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    cli.run_main(main)
