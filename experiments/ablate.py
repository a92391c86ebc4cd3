"""A sweep: one preset under named changes and several seeds, as one table.

    python -m experiments.ablate variant                          # tiny, 3 seeds
    python -m experiments.ablate kl --seeds 1 -- --rft.steps 30   # flags after -- go to every run
    python -m experiments.ablate variant --index 3                # one run of a job array
    python -m experiments.ablate variant --only-report --report results/variants

Each row and seed is a run of its own, `OUT/ROW/seedN`, in a process of its own, so that one that
fails leaves the others alone. Rows that differ in RFT alone start from one SFT model a seed, the
first row's. Finished runs are skipped: the same command goes on after a kill.
"""

import os
import queue
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import tyro

from experiments.presets import FREE_FIELDS, PRESETS, RunConfig, parse_run
from experiments.sweep_report import report_sweep
from experiments.sweeps import SWEEPS, Flags, Sweep, make_sweep
from persrm_jax import cli
from persrm_jax.models.load import FROM_SCRATCH
from persrm_jax.runs import RunFolder

NOT_AFTER = ("--init", "--seed", "--out", "--eval.dev")
"""Flags that a sweep sets itself."""
RUN: Flags = ("-m", "experiments.rft")
if sys.platform == "linux":
    # Told to save and stop when whoever started it is gone (`man 2 prctl`, PR_SET_PDEATHSIG), so
    # that the same command does not find it still at work.
    RUN = (
        "-c",
        "import ctypes, runpy, signal; ctypes.CDLL(None).prctl(1, signal.SIGTERM); "
        "runpy.run_module('experiments.rft', run_name='__main__')",
    )
"""How a run is started."""


@dataclass(frozen=True)
class AblateConfig:
    """What to sweep."""

    sweep: Annotated[str, tyro.conf.Positional]
    """The name of a sweep: variant, group_size, kl, reward, seeds, format, think, mode, exemplars,
    stages, lora or negatives."""
    preset: str = "tiny"
    """What the rows change."""
    seeds: int = 3
    """Seeds of each row, from 0."""
    jobs: int = 0
    """Runs at a time, which share out the CPU cores: small models run faster so than one by one.
    0: one a core where models are made from scratch on a CPU, else one."""
    index: int | None = None
    """Make this run only, as one of a job array, and no table: 0 to rows x seeds - 1, the rows of
    seed 0 first."""
    only_report: bool = False
    """Make the table of what is finished, and no run."""
    out: Path | None = None
    """Folder of the runs; runs/ablate/SWEEP where none is given."""
    report: Path | None = None
    """Folder of the table and figure; that of the runs where none is given."""

    def __post_init__(self) -> None:
        if self.sweep not in SWEEPS:
            raise ValueError(f"unknown sweep {self.sweep!r}; sweeps: {', '.join(SWEEPS)}")
        if self.preset not in PRESETS:
            raise ValueError(f"--preset {self.preset}: expected one of {', '.join(PRESETS)}")
        for name, least in (("seeds", 1), ("jobs", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} {getattr(self, name)}: must be at least {least}")
        if self.index is not None and self.only_report:
            raise ValueError("--index makes a run and --only-report none: give one of them")

    @property
    def folder(self) -> Path:
        return self.out or Path("runs") / "ablate" / self.sweep

    @property
    def num_workers(self) -> int:
        """Runs at a time."""
        if self.jobs:
            return self.jobs
        small = PRESETS[self.preset].model == FROM_SCRATCH and jax.default_backend() == "cpu"
        return (os.cpu_count() or 1) if small else 1


@dataclass(frozen=True)
class Job:
    """A row under a seed."""

    row: str
    seed: int
    folder: Path
    args: Flags

    def is_done(self) -> bool:
        """Whether its folder holds this very run, finished.

        Raises:
            ValueError: the folder holds a run with other settings.
        """
        if not (self.folder / "stages.json").is_file():
            return False
        run = RunFolder(self.folder, self.config, free=FREE_FIELDS)
        return all(map(run.is_done, (*self.config.rivals, "evaluation")))

    @property
    def config(self) -> RunConfig:
        """What its flags say."""
        return parse_run(PRESETS, "python -m experiments.ablate", self.args)

    def run(self, sweep: Path, cores: set[int]) -> bool:
        """Whether it ended well. What it says goes to `self.log(sweep)`."""
        log = self.log(sweep)
        log.parent.mkdir(parents=True, exist_ok=True)
        cache = str((sweep / "cache").resolve())
        with log.open("a", encoding="utf-8") as out:
            process = subprocess.Popen(
                [sys.executable, *RUN, *self.args],
                stdout=out,
                stderr=out,
                env={**os.environ, "JAX_COMPILATION_CACHE_DIR": cache},
            )
            if cores:
                os.sched_setaffinity(process.pid, cores)
            return process.wait() == 0

    def log(self, sweep: Path) -> Path:
        return sweep / "logs" / f"{folder_name(self.row)}-seed{self.seed}.log"


def folder_name(row: str) -> str:
    """A row's name without what a shell would trip over."""
    return re.sub(r"[^\w.=-]+", "_", row)


def jobs_of(cfg: AblateConfig, sweep: Sweep, flags: Flags) -> list[Job]:
    """The runs, in an order in which each finds what it starts from."""
    jobs = []
    for seed in range(cfg.seeds):
        for row, changes in sweep.rows.items():
            folder = cfg.folder / folder_name(row) / f"seed{seed}"
            own = ("--eval.dev", "--seed", str(seed), "--out", str(folder))
            args = (cfg.preset, *changes, *flags, *own)
            if sweep.shares_sft and row == sweep.first:
                args += ("--continue-sft",)
            elif sweep.shares_sft:
                first = cfg.folder / folder_name(sweep.first) / f"seed{seed}"
                args += ("--init", str(first / "sft" / "model"))
            jobs.append(Job(row, seed, folder, args))
    return jobs


def run_jobs(jobs: Sequence[Job], out: Path, num_workers: int, *, shares_sft: bool) -> list[Job]:
    """Runs what is not done, `num_workers` at a time -> those that failed. Where SFT is shared, a
    row waits for the first row of its seed."""
    shares: queue.SimpleQueue[set[int]] = queue.SimpleQueue()
    for share in core_shares(num_workers):
        shares.put(share)
    stopping = threading.Event()

    def work(number: int, job: Job, first: Future[bool] | None) -> bool:
        if first is not None and not first.result():
            return False
        if job.is_done():
            return True
        cores = shares.get()
        if stopping.is_set():
            shares.put(cores)
            return False
        print(f"[{number}/{len(jobs)}] {job.row}, seed {job.seed}", flush=True)
        try:
            ended_well = job.run(out, cores)
        finally:
            shares.put(cores)
        if not ended_well:
            print(f"failed: {job.row}, seed {job.seed}: see {job.log(out)}", flush=True)
        return ended_well

    # A thread for each: waiting for a first row must not keep a first row waiting.
    with ThreadPoolExecutor(max_workers=len(jobs)) as pool:
        firsts: dict[int, Future[bool]] = {}
        found = []
        for number, job in enumerate(jobs, 1):
            waits_for = firsts.get(job.seed) if shares_sft else None
            found.append(pool.submit(work, number, job, waits_for))
            firsts.setdefault(job.seed, found[-1])
        try:
            return [job for job, future in zip(jobs, found, strict=True) if not future.result()]
        except KeyboardInterrupt:  # those that run were told too, and save; no other may begin
            stopping.set()
            raise


def core_shares(num_workers: int) -> list[set[int]]:
    """The CPU cores of each worker; empty sets where all have all, or where there are too few."""
    if num_workers == 1 or not hasattr(os, "sched_getaffinity"):
        return [set()] * num_workers
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < num_workers:
        return [set()] * num_workers
    return [set(cores[i::num_workers]) for i in range(num_workers)]


def run_one(cfg: AblateConfig, sweep: Sweep, jobs: Sequence[Job]) -> bool:
    """Whether the run that `--index` names is done, or ends well.

    Raises:
        ValueError: no such run, or the SFT model that it starts from is not there yet.
    """
    assert cfg.index is not None
    if not 0 <= cfg.index < len(jobs):
        raise ValueError(f"--index {cfg.index}: this sweep has runs 0 to {len(jobs) - 1}")
    job, init = jobs[cfg.index], jobs[cfg.index].config.init
    if init is not None and not init.is_dir():
        firsts = [str(i) for i, job in enumerate(jobs) if job.row == sweep.first]
        raise ValueError(
            f"--index {cfg.index}: {job.row} starts from {init}, which is not there yet; run the "
            f"first rows before the others: --index {', '.join(firsts)}"
        )
    return not run_jobs([job], cfg.folder, 1, shares_sft=False)


def main(args: Sequence[str]) -> None:
    """The command line."""
    words = list(args)
    flags: Flags = ()
    if "--" in words:
        cut = words.index("--")
        words, flags = words[:cut], tuple(words[cut + 1 :])
    cfg = cli.parse_flags(AblateConfig, "python -m experiments.ablate", words)
    sweep = make_sweep(cfg.sweep, PRESETS[cfg.preset])
    jobs = jobs_of(cfg, sweep, flags)
    for flag in flags:
        if flag.split("=")[0] in NOT_AFTER:
            raise ValueError(f"{flag}: the sweep sets it; give it none after --")
    for job in jobs:  # a flag that no run would take, or another's folder, is refused at once
        parse_run(PRESETS, "python -m experiments.ablate", job.args)
        job.is_done()
    failed: list[Job] = []
    if cfg.index is not None:
        sys.exit(0 if run_one(cfg, sweep, jobs) else 1)
    if not cfg.only_report:
        failed = run_jobs(jobs, cfg.folder, cfg.num_workers, shares_sft=sweep.shares_sft)
    runs = {
        row: {job.seed: job.folder for job in jobs if job.row == row and job.is_done()}
        for row in sweep.rows
    }
    report_sweep(
        runs,
        sweep,
        title=f"{cfg.preset}, by {cfg.sweep.replace('_', ' ')}",
        command=shlex.join(["python", "-m", "experiments.ablate", *args]),
        out=cfg.report or cfg.folder,
    )
    for job in failed:
        print(f"failed: {job.row}, seed {job.seed}: see {job.log(cfg.folder)}")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    cli.run_main(main)
