"""Will it fit, and how much work is it? Asked before a run, of chips that need not be here.

    python -m experiments.plan qwen2.5-7b --mesh 8x1 --chip v5p
    python -m experiments.plan smollm2 --chip cpu --sft.batch-size 4

Compiles the run's real programs (SFT step, rollout, reference, RFT step) ahead of time, from shapes
alone, and prints what they take on each device. What does not fit is tried again with the settings
that spare memory, and the nearest that fits is named.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh
from rich.console import Console
from rich.table import Table

from experiments.prepare import check_fit
from experiments.presets import PRESETS, RunConfig, parse_run
from persrm_jax import cli
from persrm_jax.chips import CHIPS, GIB, chip_of
from persrm_jax.jsonl import write_text
from persrm_jax.models.load import read_config
from persrm_jax.runs import read_config_file
from persrm_jax.sharding import MeshShape, make_mesh
from persrm_jax.training.plan import Job, Usage, estimate, measure

ChipName = Literal["cpu", "v4", "v5e", "v5p", "v6e", "tpu7x", "a100", "h100", "h200"]
TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "JAX_PLATFORMS": "cpu",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""With which the TPU compiler runs where no TPU is."""
FLAT = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
CUBE = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8"}
"""Slices that a number of chips comes in."""
UTILIZATION = 0.4
"""Share of a chip's peak that a plan reckons with for its times."""
MISJUDGED = 1.3
"""How far the arithmetic may exceed what the compiler finds: beyond, nothing is compiled."""
FILLED = 0.95
"""Share of a chip's memory that a program may take: the rest is the runtime's."""


@dataclass(frozen=True)
class PlanConfig(RunConfig):
    """A run, and the chip that it is planned for."""

    chip: ChipName = "cpu"
    """What the mesh is made of."""
    trace_tokens: int = 512
    """Longest reasoning trace of SFT, in tokens, its prompt left out."""
    program: str | None = None
    """(Set by the command itself.) The program that this process compiles."""
    config: Path | None = None
    """(Set by the command itself.) File of the config that it compiles it for."""


def job_of(cfg: PlanConfig) -> Job:
    """What decides the sizes of the run's programs."""
    return Job(
        model=read_config(cfg.model),
        compute=cfg.compute,
        sft=cfg.sft,
        rft=cfg.rft,
        loss=cfg.loss,
        trainable=cfg.train,
        prompt_tokens=cfg.prompt.max_tokens,
        trace_tokens=cfg.trace_tokens,
    )


def missing_compiler(chip: str) -> str | None:
    """Why nothing can be compiled for a chip here; None where it can."""
    if chip == "cpu":
        return None
    if CHIPS[chip].platform == "gpu":
        here = chip_of(jax.devices()[0].device_kind)
        return None if here is CHIPS[chip] else f"compiling for {chip} needs one: none is here"
    try:
        version("libtpu")
    except PackageNotFoundError:
        return (
            "the TPU compiler is in the package libtpu: pip install 'jax[tpu]' in an environment "
            "of its own, or `make aot`, then .venv/aot/bin/python -m experiments.plan"
        )
    return None


def mesh_of(chip: str, shape: MeshShape) -> Mesh:
    """The mesh on devices that are only described, or simulated for a CPU.

    Raises:
        ValueError: no slice of the chip holds so many devices.
    """
    if chip == "cpu" or CHIPS[chip].platform == "gpu":
        return make_mesh(shape)
    from jax.experimental import topologies

    per_chip = 2 if chip in ("v4", "tpu7x") else 1
    slices = FLAT if chip in ("v5e", "v6e") else CUBE
    fits = [n for n in slices if n * per_chip >= shape.num_devices]
    if not fits:
        limit = per_chip * max(slices)
        raise ValueError(f"--mesh {shape}: {chip} is planned for up to {limit} devices")
    topology = topologies.get_topology_desc(
        platform="tpu", topology_name=f"{chip}:{slices[min(fits)]}"
    )
    grid: Any = np.array(topology.devices[: shape.num_devices]).reshape(shape.data, shape.model)
    return Mesh(grid, ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))


def imagined_mesh(shape: MeshShape) -> AbstractMesh:
    """The mesh without devices: enough for arithmetic."""
    kinds = (AxisType.Auto, AxisType.Auto)
    return AbstractMesh((shape.data, shape.model), ("data", "model"), axis_types=kinds)


def run_program(cfg: PlanConfig, name: str) -> Usage:
    """Compiles or, where that can't be, estimates, in this process."""
    if missing_compiler(cfg.chip) is None:
        return measure(name, job_of(cfg), mesh_of(cfg.chip, cfg.mesh))
    return estimate(name, job_of(cfg), imagined_mesh(cfg.mesh))


def in_subprocess(cfg: PlanConfig, name: str) -> tuple[Usage, str | None]:
    """What a program takes, and why it was not compiled if so. The TPU compiler may abort the
    process, hence one of its own.

    Raises:
        ValueError: the compiler failed for another reason than memory.
    """
    environment = {"cpu": {"JAX_PLATFORMS": "cpu"}, "tpu": TPU_ENVIRONMENT, "gpu": {}}
    platform = "cpu" if cfg.chip == "cpu" else CHIPS[cfg.chip].platform
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        write_text(path, json.dumps(dataclasses.asdict(cfg), default=str))
        done = subprocess.run(
            [sys.executable, "-m", "experiments.plan", "--program", name, "--config", str(path)],
            capture_output=True,
            text=True,
            env={**os.environ, **environment[platform]},
        )
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise ValueError(f"{name}: does not compile for {cfg.chip} ({reason[0][:400]})")
    answer = json.loads(done.stdout.splitlines()[-1])
    return Usage(**answer["usage"]), answer["missing"]


def capacity(cfg: PlanConfig) -> float:
    """Bytes that a program may take on each device."""
    if cfg.chip == "cpu":  # simulated devices share the machine
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return FILLED * machine / cfg.mesh.num_devices
    return FILLED * CHIPS[cfg.chip].memory_gib * GIB


def changes(cfg: PlanConfig) -> Iterator[tuple[str, PlanConfig]]:
    """Ways to take less memory, the nearest to the plan first: (flags, config)."""
    yield "", cfg
    flags = ""
    if cfg.compute.remat != "full":
        flags = " --compute.remat full"
        cfg = replace(cfg, compute=replace(cfg.compute, remat="full"))
        yield flags, cfg
    for data in (2, 4, 8, 16):
        mesh = MeshShape(cfg.mesh.data * data, cfg.mesh.model)
        wider = replace(cfg, mesh=mesh)
        if cfg.chip != "cpu" and is_possible(wider):
            yield f"{flags} --mesh {mesh}", wider
    if not cfg.train.lora_rank:
        flags += " --train.lora-rank 16"
        yield flags, replace(cfg, train=replace(cfg.train, lora_rank=16))


def is_possible(cfg: PlanConfig) -> bool:
    """Whether batches and heads divide over the mesh."""
    try:
        check_fit(cfg)
    except ValueError:
        return False
    return True


def in_parts(cfg: PlanConfig, stage: str) -> Iterator[tuple[str, PlanConfig]]:
    """Each number of parts that a stage's batch can be taken in, from the present one on."""
    config: Any = getattr(cfg, stage)
    rows = cfg.sft.batch_size if stage == "sft" else cfg.rft.prompts
    for parts in range(config.accumulate, rows + 1):
        if rows % (parts * cfg.mesh.data) == 0:
            changed = replace(cfg, **{stage: replace(config, accumulate=parts)})
            flag = "" if parts == config.accumulate else f" --{stage}.accumulate {parts}"
            yield flag, changed


class Planner:
    """Asks for each program at most once, for several at a time."""

    def __init__(self, cfg: PlanConfig, say: Callable[[str], None]) -> None:
        self._cfg, self._say = cfg, say
        self._known: dict[str, Usage] = {}
        self.missing: str | None = None

    def usages(self, cfg: PlanConfig, names: Sequence[str] | None = None) -> dict[str, Usage]:
        """What programs take; without names, all of a run."""
        names = job_of(cfg).programs() if names is None else names
        keys = {name: self._key(cfg, name) for name in names}
        todo = [name for name in names if keys[name] not in self._known]
        if todo:
            self._say(f"{', '.join(todo)} on {cfg.mesh} {cfg.chip}")
            with ThreadPoolExecutor() as pool:
                for name, (use, self.missing) in zip(
                    todo, pool.map(partial(in_subprocess, cfg), todo), strict=True
                ):
                    self._known[keys[name]] = use
        return {name: self._known[key] for name, key in keys.items()}

    def _key(self, cfg: PlanConfig, name: str) -> str:
        job = dataclasses.asdict(job_of(cfg))
        return json.dumps([name, str(cfg.mesh), cfg.chip, job], default=str, sort_keys=True)

    def fits(self, cfg: PlanConfig, names: Sequence[str] | None = None) -> bool:
        """Whether programs leave room on the device."""
        return all(use.peak <= capacity(cfg) for use in self.usages(cfg, names).values())

    def foretold(self, cfg: PlanConfig, name: str) -> float:
        """A program's peak, from the present plan's: weights are counted, activations scaled as
        arithmetic has them."""
        known = self.usages(self._cfg, [name])[name]
        before, after = (estimate(name, job_of(c), imagined_mesh(c.mesh)) for c in (self._cfg, cfg))
        scale = after.activations / before.activations
        return after.peak - after.activations + known.activations * scale

    def nearest(self) -> tuple[str, PlanConfig] | None:
        """The flags nearest to the plan under which every program fits, and what they make of
        it."""
        for flags, changed in changes(self._cfg):
            # Nothing else is compiled where the rollout, which is taken in one part, does not fit.
            if self.foretold(changed, "rollout") > MISJUDGED * capacity(changed):
                continue
            if not self.fits(changed, ["rollout"]):
                continue
            found: tuple[str, PlanConfig] | None = (flags, changed)
            for stage, names in (("sft", ("sft",)), ("rft", ("reference", "rft"))):
                has = [name for name in names if name in job_of(changed).programs()]
                found = found and self._fewest_parts(found, stage, has)
            if found:
                return found
        return None

    def _fewest_parts(
        self, start: tuple[str, PlanConfig], stage: str, names: Sequence[str]
    ) -> tuple[str, PlanConfig] | None:
        """The fewest parts in which the stage's programs are foretold to fit, and do."""
        flags, cfg = start
        for more, changed in in_parts(cfg, stage):
            foretold = max(self.foretold(changed, name) for name in names)
            if foretold <= capacity(cfg) and self.fits(changed, names):
                return flags + more, changed
        return None


def table(cfg: PlanConfig, usages: Mapping[str, Usage]) -> Table:
    """Memory and work of each program."""
    shown = Table(box=None, pad_edge=False)
    shown.add_column("GiB a device")
    for name in usages:
        shown.add_column(f"{name} step" if name in ("sft", "rft") else name, justify="right")
    parts = ("parameters", "optimizer", "reference", "gradients", "kv_cache", "activations", "peak")
    for part in parts:
        cells = [getattr(use, part) / GIB for use in usages.values()]
        shown.add_row(part.replace("_", " "), *(f"{x:.2f}" if x else "" for x in cells))
    room = capacity(cfg)
    shown.add_row("fits", *("yes" if u.peak <= room else "NO" for u in usages.values()))
    shown.add_row("TFLOP a step", *(f"{u.flops / 1e12:,.1f}" for u in usages.values()))
    if cfg.chip != "cpu":
        rate = UTILIZATION * CHIPS[cfg.chip].flops * cfg.mesh.num_devices
        seconds = [
            "" if name == "rollout" else f"{use.flops / rate:,.1f}" for name, use in usages.items()
        ]
        shown.add_row(f"s at {UTILIZATION:.0%} MFU", *seconds)
    return shown


def plan(cfg: PlanConfig, console: Console) -> None:
    """Prints the plan."""
    check_fit(cfg)
    job = job_of(cfg)
    with console.status("") as status:
        planner = Planner(cfg, lambda text: status.update(f"compiling {text}"))
        usages = planner.usages(cfg)
        fits = planner.fits(cfg)
        near = None if fits else planner.nearest()
    how = f"estimated by arithmetic, since {planner.missing}" if planner.missing else "compiled"
    size = f"{job.model.num_params / 1e6:,.0f} M parameters"
    memory = f"{capacity(cfg) / FILLED / GIB:.1f} GiB"
    whole = ", traces of a group counted whole" if cfg.sft.group_size > 1 else ""
    lines = (
        f"{cfg.preset} ({size}) on {cfg.mesh} {cfg.chip} of {memory}: {how}",
        f"SFT: {job.sft_rows} rows of {job.sft_length:,} tokens{whole}",
        f"RFT: {cfg.rft.prompts} prompts of {job.prompt_tokens:,} tokens, {cfg.rft.group_size} "
        f"completions of {cfg.rft.sampling.max_new_tokens:,} each",
    )
    console.print("\n".join(lines), soft_wrap=True, highlight=False, markup=False)
    console.print(table(cfg, usages))
    if near is not None:
        console.print(f"it fits with{near[0]}:")
        console.print(table(near[1], planner.usages(near[1])))
    elif not fits:
        console.print("nothing tried fits: fewer --rft.prompts, shorter completions, more devices")


def planned_presets() -> dict[str, PlanConfig]:
    """Every preset, to be planned."""
    return {
        name: PlanConfig(**{f.name: getattr(run, f.name) for f in dataclasses.fields(run)})
        for name, run in PRESETS.items()
    }


def main(args: Sequence[str]) -> None:
    """The command line."""
    cfg = parse_run(planned_presets(), "python -m experiments.plan", args)
    if cfg.program is not None and cfg.config is not None:
        usage = run_program(asked := read_config_file(cfg.config, PlanConfig), cfg.program)
        answer = {"usage": dataclasses.asdict(usage), "missing": missing_compiler(asked.chip)}
        print(json.dumps(answer))
        return
    # Nothing runs here: an accelerator is left to those who need it.
    jax.config.update("jax_platforms", "cpu")
    plan(cfg, Console())


if __name__ == "__main__":
    cli.run_main(main)
