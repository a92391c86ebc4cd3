"""Compiles for TPUs that are not here, and says what memory their programs take.

    make aot        # installs jax[tpu] in an environment of its own; writes results/aot.md

Each program is compiled in a process of its own, since the TPU compiler may abort it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from persrm_jax import cli
from persrm_jax.jsonl import write_text
from persrm_jax.models.attention import attention
from persrm_jax.models.config import Attention

CHIPS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "JAX_PLATFORMS": "cpu",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
LENGTH, HEADS, KV_HEADS, HEAD_WIDTH = 8192, 28, 4, 128
"""A row of 8k tokens in Qwen2.5-7B's attention."""
MIB = 2**20


def attention_program(impl: Attention) -> tuple[Callable[..., Any], list[jax.ShapeDtypeStruct]]:
    """Attention and its gradients."""

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
        return jnp.sum(attention(q, k, v, segment_ids, impl).astype(jnp.float32))

    shapes = [
        jax.ShapeDtypeStruct((1, LENGTH, heads, HEAD_WIDTH), jnp.bfloat16)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]
    return jax.grad(loss, argnums=(0, 1, 2)), [*shapes, jax.ShapeDtypeStruct((1, LENGTH), "int32")]


PROGRAMS = {
    f"attention {impl}, {LENGTH:,} tokens": (attention_program, impl)
    for impl in ("splash", "chunked", "xla")
}


def compile_program(name: str, chip: str) -> dict[str, float]:
    """Compiles in this process. Memory is MiB a device, inputs and results left out."""
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[chip])
    place = SingleDeviceSharding(topology.devices[0])
    make, argument = PROGRAMS[name]
    function, shapes = make(argument)  # type: ignore[arg-type]
    placed = [jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place) for s in shapes]
    lowered = jax.jit(function).trace(*placed).lower(lowering_platforms=("tpu",))
    return {"temporaries_mib": lowered.compile().memory_analysis().temp_size_in_bytes / MIB}


@dataclass(frozen=True)
class Config:
    """What to compile."""

    out: Path | None = None
    """Where to write the table, as Markdown."""
    program: str | None = None
    """(Set by the command itself.) The program that this process compiles."""
    chip: str = "v5e"
    """(Set by the command itself.) The chip that it compiles for."""


def main(args: Sequence[str]) -> None:
    """The command line."""
    cfg = cli.parse_flags(Config, "python -m benchmarks.aot", args)
    if cfg.program is not None:
        print(json.dumps(compile_program(cfg.program, cfg.chip)))
        return
    # No backend may start here: it would hold the TPU library that the others need.
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "libtpu"))
    lines = [
        "# Compiled for chips that are not here",
        "",
        f"Temporary memory a device, MiB, by the TPU compiler ({versions}). Command: `make aot`.",
        "",
        f"| program | {' | '.join(CHIPS)} |",
        "| --- |" + " ---: |" * len(CHIPS),
    ]
    for name in PROGRAMS:
        cells = [_in_subprocess(name, chip) for chip in CHIPS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        print(lines[-1])
    if cfg.out is not None:
        write_text(cfg.out, "\n".join(lines) + "\n")


def _in_subprocess(program: str, chip: str) -> str:
    command = [sys.executable, "-m", "benchmarks.aot", "--program", program, "--chip", chip]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **TPU_ENVIRONMENT}
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "Error" in line or "exceed" in line]
        return f"does not compile: {lines[-1][:160] if lines else done.returncode}"
    return f"{json.loads(done.stdout.splitlines()[-1])['temporaries_mib']:,.0f}"


if __name__ == "__main__":
    cli.run_main(main)
