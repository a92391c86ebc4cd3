"""Memory of an SFT step of SmolLM2's shapes on this machine: as planned, and as measured; with all
weights trained, and with LoRA.

    python -m benchmarks.step_memory [--out results/step-memory.json]

Each case trains in a process of its own, random weights, random tokens. Measured is the growth of
the process's resident memory from before its weights exist to its peak over two steps, the program
compiled before. That a step's optimizer and gradients together shrink by LoRA is measured too: the
moments' own bytes, and the gradients', which XLA keeps inside the step, counted from their shapes.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.plan import job_of, planned_presets
from persrm_jax import cli
from persrm_jax.chips import GIB, process_memory
from persrm_jax.distributed import place
from persrm_jax.jsonl import write_text
from persrm_jax.models.params import init_params
from persrm_jax.models.trainable import TrainableConfig, split
from persrm_jax.runs import provenance
from persrm_jax.sharding import MeshShape, batch_sharding, make_mesh
from persrm_jax.training.optimizer import make_optimizer
from persrm_jax.training.plan import Job, device_bytes, measure
from persrm_jax.training.sft import make_sft_program
from persrm_jax.training.step import init_state
from persrm_jax.types import Batch

CASES = {"full": TrainableConfig(), "lora": TrainableConfig(lora_rank=16)}


def job() -> Job:
    """SmolLM2's preset, on rows of 1,024 tokens."""
    cfg = planned_presets()["smollm2"]
    cfg = replace(cfg, sft=replace(cfg.sft, batch_size=4), trace_tokens=256)
    return job_of(replace(cfg, prompt=replace(cfg.prompt, max_tokens=768)))


def random_batch(job: Job, mesh: Mesh) -> Batch:
    """Rows without padding, half of each response."""
    B, T = job.sft.batch_size, job.sft_length
    rng = np.random.default_rng(0)
    positions = np.tile(np.arange(T, dtype=np.int32), (B, 1))
    batch = Batch(
        rng.integers(job.model.vocab_size, size=(B, T), dtype=np.int32),
        positions,
        np.ones((B, T), np.int32),
        positions >= T // 2,
    )
    return place(batch, batch_sharding(mesh))


def measure_case(name: str) -> dict[str, float | str]:
    """Plans and trains in this process."""
    mesh = make_mesh(MeshShape(1, 1))
    planned = replace(job(), trainable=CASES[name])
    cfg, model = planned.trainable, planned.model
    use = measure("sft", planned, mesh)
    train = make_sft_program(model, planned.compute, planned.sft, cfg)
    before = process_memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    key = jax.random.key(0)
    trained, frozen = split(init_params(model, key, mesh), model, cfg, key, mesh)
    optimizer = make_optimizer(planned.sft.optimizer, planned.sft.steps)
    state = init_state(trained, optimizer, key, mesh)
    optimizer_bytes = device_bytes(state.opt_state)
    gradient_bytes = device_bytes(state.params)
    del trained
    batch = random_batch(planned, mesh)
    for _ in range(2):
        state, metrics = train(state, batch, frozen)
        loss = float(metrics["loss/total"])
    grown = process_memory("VmHWM") - before
    return {
        "case": name,
        "loss": loss,
        "planned_gib": use.peak / GIB,
        "measured_gib": grown / GIB,
        "planned_over_measured": use.peak / grown,
        "optimizer_gib": optimizer_bytes / GIB,
        "gradients_gib": gradient_bytes / GIB,
    }


@dataclass(frozen=True)
class Config:
    """What to measure."""

    out: Path | None = None
    """Where to write the numbers, as JSON."""
    case: str | None = None
    """(Set by the benchmark itself.) What this process trains."""


def main(args: Sequence[str]) -> None:
    """The command line."""
    cfg = cli.parse_flags(Config, "python -m benchmarks.step_memory", args)
    if cfg.case is not None:
        print(json.dumps(measure_case(cfg.case)))
        return
    rows = []
    for case in CASES:
        command = [sys.executable, "-m", "benchmarks.step_memory", "--case", case]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1])
    full, lora = (row["optimizer_gib"] + row["gradients_gib"] for row in rows)
    print(f"optimizer and gradients: LoRA takes {lora / full:.1%} of full training's")
    if cfg.out is not None:
        result = {"provenance": provenance(), "cases": rows, "lora_over_full": lora / full}
        write_text(cfg.out, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    cli.run_main(main)
