"""Compiles for TPUs that are not here: what memory their programs take, and which collective
operations a sharded training step holds.

    make aot        # installs jax[tpu] in an environment of its own; writes results/aot.md

Each program is compiled in a process of its own, since the TPU compiler may abort it.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from benchmarks.collectives import collectives
from experiments.plan import TPU_ENVIRONMENT, job_of, mesh_of, planned_presets
from persrm_jax import cli
from persrm_jax.jsonl import write_text
from persrm_jax.models.attention import attention
from persrm_jax.models.config import Attention
from persrm_jax.models.params import param_specs
from persrm_jax.sharding import MeshShape
from persrm_jax.training.plan import Job, program

CHIPS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
LENGTH, HEADS, KV_HEADS, HEAD_WIDTH = 8192, 28, 4, 128
"""A row of 8k tokens in Qwen2.5-7B's attention."""
MIB = 2**20
STEPS = ("sft", "rft")
MODEL = "qwen2.5-0.5b"
REDUCES_WHOLE = "v5p"
"""Its compiler makes an all-reduce of an explicit reduce-scatter over its 2x2x2 torus."""


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


def step_job() -> Job:
    """A training step on eight devices, small enough for the smallest."""
    cfg = planned_presets()[MODEL]
    sampling = replace(cfg.rft.sampling, max_new_tokens=256)
    rft = replace(cfg.rft, prompts=8, group_size=2, sampling=sampling)
    cfg = replace(cfg, sft=replace(cfg.sft, batch_size=16), rft=rft, trace_tokens=256)
    return job_of(replace(cfg, prompt=replace(cfg.prompt, max_tokens=768)))


def compile_step(name: str, chip: str) -> dict[str, Any]:
    """The collectives of a training step over `8x1`: kind -> (how many, millions of
    elements in the largest).

    Raises:
        ValueError: one that FSDP does not need: an all-to-all, a permutation of other than shards
            of weights, a gather of more than a weight, a sum of what could be scattered.
    """
    job, mesh = step_job(), mesh_of(chip, MeshShape(8, 1))
    function, args, _, _ = program(name, job, mesh)
    with jax.set_mesh(mesh):
        text = function.lower(*args).compile().as_text()
    specs = [spec for _, spec in param_specs(job.model)]
    # A TPU fills a matrix up to whole tiles, and passes the rows that this shifts to a neighbour.
    largest = max(math.prod(spec.shape) for spec in specs)
    filled = largest // 50
    split = [spec for spec in specs if {"embed", "vocab"} & set(spec.axes)]
    unsplit = max(math.prod(spec.shape) for spec in specs if spec not in split)
    # TPUs take a gather in a ring too, a shard of one layer's weight after the other.
    shard = max(math.prod(spec.shape) for spec in split) // mesh.size
    limits = {
        "all-gather": largest + filled,
        "reduce-scatter": largest + filled,
        "all-reduce": unsplit,
        "collective-permute": shard,
    }
    shards = {math.prod(s.shape[-3:]) // mesh.size for s in specs} | {
        math.prod(s.shape[-2:]) // mesh.size for s in specs
    }
    found: dict[str, tuple[int, float]] = {}
    excused = 1 if chip == REDUCES_WHOLE else 0
    for kind, shapes in collectives(text):
        size = max(map(math.prod, shapes))
        if excused and kind == "all-reduce" and size == largest:
            excused = 0  # the gradient of the vocabulary, once
            number, most = found.get(kind, (0, 0.0))
            found[kind] = (number + 1, max(most, size / 1e6))
            continue
        if size > limits.get(kind, 0) or (
            kind == "collective-permute" and size > filled and size not in shards
        ):
            raise ValueError(f"{name} step on {chip}: {kind} of {shapes}, which FSDP does not need")
        number, most = found.get(kind, (0, 0.0))
        found[kind] = (number + 1, max(most, size / 1e6))
    return found


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
        compiled = compile_step if cfg.program in STEPS else compile_program
        print(json.dumps(compiled(cfg.program, cfg.chip)))
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
        cells = [_temporaries(name, chip) for chip in CHIPS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        print(lines[-1])
    lines += [
        "",
        f"Collective operations in the text of a training step of {MODEL} over `8x1` (a loop over "
        "layers counts once): how many, and millions of elements in the largest. Parameters are "
        "gathered (also in a ring of permutations of their shards), gradients scattered; sums over "
        f"all devices are scalars, norms and biases, but on {REDUCES_WHOLE}, whose compiler makes "
        "one of the reduce-scatter that the program asks for. `make aot` fails at any other.",
        "",
        f"| step | {' | '.join(CHIPS)} |",
        "| --- |" + " --- |" * len(CHIPS),
    ]
    for name in STEPS:
        cells = [_kinds(name, chip) for chip in CHIPS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        print(lines[-1])
    if cfg.out is not None:
        write_text(cfg.out, "\n".join(lines) + "\n")


def _temporaries(program: str, chip: str) -> str:
    done = _in_subprocess(program, chip)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "Error" in line or "exceed" in line]
        return f"does not compile: {lines[-1][:160] if lines else done.returncode}"
    return f"{json.loads(done.stdout.splitlines()[-1])['temporaries_mib']:,.0f}"


def _kinds(step: str, chip: str) -> str:
    """Raises ValueError: a collective that FSDP does not need."""
    done = _in_subprocess(step, chip)
    if done.returncode:
        raise ValueError(done.stderr.strip().splitlines()[-1])
    found = json.loads(done.stdout.splitlines()[-1])
    return ", ".join(f"{n} {kind} ({most:.2f})" for kind, (n, most) in sorted(found.items()))


def _in_subprocess(program: str, chip: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.aot", "--program", program, "--chip", chip]
    environment = {**os.environ, **TPU_ENVIRONMENT}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


if __name__ == "__main__":
    cli.run_main(main)
