"""Compiles the kernels for TPUs and an H100 that are not here: do they compile, what memory they
take, and of the GPU's kernels, registers and spills.

    make aot        # installs both compilers, each in an environment of its own

Each program is compiled in a process of its own, since a compiler may abort it. No autotuning
happens: nothing here says how fast they are (`python -m kernels.bench` does).
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.plan import TPU_ENVIRONMENT
from kernels.cases import RULE, SIZES
from kernels.group_advantage import group_advantage
from kernels.grpo_loss import grpo_loss
from kernels.linear_logprob import linear_logprob
from kernels.token_loss import TokenInputs, token_loss
from persrm_jax import cli
from persrm_jax.chips import GIB
from persrm_jax.jsonl import write_text

CHIPS = {
    "v4": "v4:2x2x1",
    "v5e": "v5e:2x2",
    "v5p": "v5p:2x2x1",
    "v6e": "v6e:2x2",
    "tpu7x": "tpu7x:2x2x1",
}
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""By NVIDIA's data sheet and CUDA's device query of an H100 SXM."""
SIZE = SIZES["qwen2.5-7b"]
TPU7X_BFLOAT16 = Layout(major_to_minor=(0, 1), tiling=((16, 128), (2, 1)))
"""The tiling that tpu7x's compiler prefers inside a program. At its edge it expects that of older
chips, and copies; a training step makes its matrices inside, where the compiler chooses."""
CUDA_PYTHON = Path(".venv/aot-cuda/bin/python")


def _loss(impl: Any, accumulator: Any, hidden: Any, weight: Any, labels: Any, given: Any) -> Any:
    def loss(hidden: jax.Array, weight: jax.Array) -> jax.Array:
        return grpo_loss(
            hidden, weight, labels, given, RULE, impl=impl, accumulator=accumulator
        ).loss

    return jax.value_and_grad(loss, argnums=(0, 1))(hidden, weight)


def _logprob(impl: Any, hidden: Any, weight: Any, labels: Any, given: Any) -> Any:
    return linear_logprob(hidden, weight, labels, impl=impl)


def _token_loss(hidden: Any, weight: Any, labels: Any, given: TokenInputs) -> Any:
    def loss(logprobs: jax.Array) -> Any:
        return token_loss(logprobs, given, RULE, impl="pallas")

    return jax.value_and_grad(loss, has_aux=True)(given.weights)


def _advantage(hidden: Any, weight: Any, labels: Any, given: TokenInputs) -> Any:
    rewards, ids = given.weights[:4096], labels[:4096]
    return group_advantage(rewards, ids, scale_by_std=True, eps=1e-4, impl="pallas")


PROGRAMS: dict[str, Callable[..., Any]] = {
    "linear_logprob naive": partial(_logprob, "reference"),
    "linear_logprob xla": partial(_logprob, "xla"),
    "linear_logprob pallas": partial(_logprob, "pallas"),
    "grpo_loss, gradients: naive": partial(_loss, "reference", "float32"),
    "grpo_loss, gradients: xla": partial(_loss, "xla", "float32"),
    "grpo_loss, gradients: xla, bfloat16 accumulator": partial(_loss, "xla", "bfloat16"),
    "grpo_loss, gradients: pallas": partial(_loss, "pallas", "float32"),
    "token_loss, gradient: pallas": _token_loss,
    "group_advantage of 4,096: pallas": _advantage,
}


def compile_program(name: str, chip: str, bfloat16: Layout | None = None) -> float:
    """Compiles in this process -> GiB of temporaries, inputs and results left out.

    Args:
        bfloat16: how matrices lie in memory at the program's edge; None: as the compiler expects.
    """
    from jax.experimental import topologies

    if chip == "h100":
        topology = topologies.get_topology_desc(
            platform="cuda", topology_name="", target_config=H100, topology="1x1x1"
        )
    else:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[chip])
    devices: Any = np.array(topology.devices[:1]).reshape(1, 1)
    mesh = Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    sharding = NamedSharding(mesh, PartitionSpec())

    def placed(dtype: Any) -> Any:
        if bfloat16 is None or dtype != jnp.bfloat16:
            return sharding
        return Format(bfloat16, sharding)

    def array(*shape: int, dtype: Any = "float32") -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=placed(dtype))

    T, D, V = SIZE.tokens, SIZE.width, SIZE.vocab
    shapes = (
        array(T, D, dtype=jnp.bfloat16),
        array(V, D, dtype=jnp.bfloat16),
        array(T, dtype="int32"),
        TokenInputs(*[array(T)] * 4),
    )
    with jax.set_mesh(mesh):
        results = jax.tree.map(lambda x: placed(x.dtype), jax.eval_shape(PROGRAMS[name], *shapes))
        lowered = jax.jit(PROGRAMS[name], out_shardings=results).trace(*shapes)
        platform = "cuda" if chip == "h100" else "tpu"
        program = lowered.lower(lowering_platforms=(platform,)).compile()
    return program.memory_analysis().temp_size_in_bytes / GIB


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
    cfg = cli.parse_flags(Config, "python -m benchmarks.aot_kernels", args)
    if cfg.program is not None:
        layouts = (None, TPU7X_BFLOAT16) if cfg.chip == "tpu7x" else (None,)
        found = min(compile_program(cfg.program, cfg.chip, layout) for layout in layouts)
        print(json.dumps({"temporaries_gib": found}))
        return
    chips = [*CHIPS, "h100"]
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "libtpu"))
    lines = [
        "# The kernels, compiled for chips that are not here",
        "",
        f"{SIZE.tokens:,} tokens, width {SIZE.width:,}, vocabulary {SIZE.vocab:,}, bfloat16. GiB "
        "of temporaries beyond inputs and results, by the chips' own compilers "
        f"({versions}, CUDA 13). Command: `make aot`. The GPU's kernels also show registers a "
        "thread and bytes of spills. (tpu7x: the smaller of two ways in which bfloat16 matrices "
        "may lie at the program's edge, the compiler's default and the tiling that it prefers "
        "inside, into which it copies them: 1.2 to 1.8 GiB more in each row of XLA's. A training "
        "step makes them inside.)",
        "",
        f"| program | {' | '.join(chips)} |",
        "| --- |" + " ---: |" * len(chips),
    ]
    for name in PROGRAMS:
        lines.append(f"| {name} | {' | '.join(_cell(name, chip) for chip in chips)} |")
        print(lines[-1], flush=True)
    if cfg.out is not None:
        write_text(cfg.out, "\n".join(lines) + "\n")


def _cell(program: str, chip: str) -> str:
    python, environment = Path(sys.executable), TPU_ENVIRONMENT
    if chip == "h100":
        python = CUDA_PYTHON
        environment = {"JAX_PLATFORMS": "cpu", "MOSAIC_GPU_DUMP_PTXAS": "1"}
        if not python.is_file():
            return f"no {python}"
    done = subprocess.run(
        [python, "-m", "benchmarks.aot_kernels", "--program", program, "--chip", chip],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    said = done.stdout + done.stderr
    if done.returncode:
        needs = re.search(r"temporaries \(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)", said)
        if needs:
            return f"no room: {needs[1]} of {needs[2]}"
        lines = [line for line in said.splitlines() if "Error" in line]
        return f"does not compile: {lines[-1][:100] if lines else done.returncode}"
    last = [line for line in done.stdout.splitlines() if line.startswith("{")][-1]
    text = f"{json.loads(last)['temporaries_gib']:.2f}"
    registers = re.findall(r"Used (\d+) registers", said)
    spills = re.findall(r"(\d+) bytes spill stores", said)
    if registers:
        text += f" ({'+'.join(registers)} registers, {sum(map(int, spills))} B spilt)"
    return text


if __name__ == "__main__":
    cli.run_main(main)
