"""Share of the chip's peak that SFT reaches, by 6 N T and attention: random weights, random tokens.

    python -m benchmarks.mfu --out results/mfu.json                              # on a GPU or TPU
    python -m benchmarks.mfu --model Qwen/Qwen2.5-1.5B-Instruct --out results/mfu-1.5b.json
    python -m benchmarks.mfu --num-layers 1 --batch-size 1 --length 64 --steps 2  # tries it out

Rows are packed full, as --sft.pack-length packs them. Steps are timed one by one, after two that
compile; the result is their median. A trace of two more lies in --trace.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from persrm_jax import cli
from persrm_jax.chips import memory_in_use, peak_flops
from persrm_jax.distributed import place
from persrm_jax.jsonl import write_text
from persrm_jax.models.config import SIZES, ComputeConfig, Remat
from persrm_jax.models.flops import forward_flops, train_flops
from persrm_jax.models.params import init_params
from persrm_jax.runs import provenance
from persrm_jax.sharding import MeshShape, batch_sharding, make_mesh
from persrm_jax.training.optimizer import make_optimizer
from persrm_jax.training.sft import SftConfig, make_sft_program
from persrm_jax.training.step import init_state
from persrm_jax.types import Batch


@dataclass(frozen=True)
class Config:
    """What to time."""

    model: str = "Qwen/Qwen2.5-0.5B-Instruct"
    """A published model's shapes."""
    num_layers: int | None = None
    """Fewer layers than it has, to try the command out."""
    mesh: cli.Mesh = MeshShape(1, 1)
    """Devices along data x model."""
    batch_size: int = 16
    """Rows a step."""
    length: int = 2048
    """Tokens a row."""
    accumulate: int = 1
    """Parts in which a step takes its rows."""
    remat: Remat = "full"
    """What the backward pass recomputes."""
    steps: int = 10
    """Steps that are timed."""
    trace: Path | None = None
    """Folder for a JAX trace."""
    out: Path | None = None
    """Where to write the numbers, as JSON."""

    def __post_init__(self) -> None:
        if self.model not in SIZES:
            raise ValueError(f"--model {self.model}: known are {', '.join(SIZES)}")


def main(args: Sequence[str]) -> None:
    """The command line."""
    cfg = cli.parse_flags(Config, "python -m benchmarks.mfu", args)
    mesh = make_mesh(cfg.mesh)
    model = SIZES[cfg.model]
    if cfg.num_layers is not None:
        model = dataclasses.replace(model, num_layers=cfg.num_layers)
    compute = ComputeConfig(dtype="bfloat16", remat=cfg.remat)
    sft = SftConfig(batch_size=cfg.batch_size, accumulate=cfg.accumulate)
    rng = np.random.default_rng(0)
    shape = (cfg.batch_size, cfg.length)
    batch = Batch(
        rng.integers(model.vocab_size, size=shape, dtype=np.int32),
        np.tile(np.arange(cfg.length, dtype=np.int32), (cfg.batch_size, 1)),
        np.ones(shape, np.int32),
        np.ones(shape, bool),
    )
    flops = train_flops(forward_flops(model, np.full(cfg.batch_size, cfg.length)))
    with jax.set_mesh(mesh):
        placed = place(batch, batch_sharding(mesh))
        key = jax.random.key(0)
        optimizer = make_optimizer(sft.optimizer, sft.steps)
        state = init_state(init_params(model, key, mesh), optimizer, key, mesh)
        train = make_sft_program(model, compute, sft)
        seconds = []
        for _ in range(2 + cfg.steps):
            begin = time.perf_counter()
            state, metrics = train(state, placed)
            loss = float(metrics["loss/total"])
            seconds.append(time.perf_counter() - begin)
        if cfg.trace is not None:
            with jax.profiler.trace(cfg.trace):
                for _ in range(2):
                    state, metrics = train(state, placed)
                    jax.block_until_ready(metrics)
    median = statistics.median(seconds[2:])
    result = {
        "provenance": provenance(),
        "config": dataclasses.asdict(cfg),
        "device": jax.devices()[0].device_kind,
        "peak_tflops": peak_flops() / 1e12,
        "loss": loss,
        "compile_s": seconds[0],
        "step_s": seconds[2:],
        "median_step_s": median,
        "tokens_per_s": cfg.batch_size * cfg.length / median,
        "mfu": flops / median / (peak_flops() * mesh.size),
        "memory_gib": memory_in_use(),
    }
    shown = ("device", "median_step_s", "tokens_per_s", "mfu", "memory_gib")
    print(json.dumps({name: result[name] for name in shown}))
    if cfg.out is not None:
        write_text(cfg.out, json.dumps(result, indent=2, default=str) + "\n")


if __name__ == "__main__":
    cli.run_main(main)
