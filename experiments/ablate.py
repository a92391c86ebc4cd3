"""A sweep: one preset under named changes and several seeds, as one table.

    python -m experiments.ablate variant                          # tiny, 3 seeds
    python -m experiments.ablate kl --seeds 1 -- --rft.steps 30   # flags after -- go to every run
    python -m experiments.ablate variant --jobs 2 --report results/variants

Each row and seed is a run of its own, `OUT/ROW/seedN`, in a process of its own, so that one that
fails leaves the others alone. Rows that differ in RFT alone start from one SFT model a seed, the
first row's. Finished runs are skipped: the same command goes on after a kill.
"""

import json
import os
import queue
import shlex
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from experiments.presets import FREE_FIELDS, PRESETS, RunConfig, parse_run
from experiments.report import fenced, read_judged
from persrm_jax import cli
from persrm_jax.evaluation.report import Row, accuracy_figure, accuracy_table, write_report
from persrm_jax.evaluation.statistics import paired_difference, summarize
from persrm_jax.runs import RunFolder, provenance
from persrm_jax.types import Pair, Prediction

Flags = tuple[str, ...]
SWEEPS: dict[str, dict[str, Flags]] = {
    "variant": {name: ("--variant", name) for name in ("grpo", "dr_grpo", "dapo", "gspo", "rloo")},
    "group_size": {f"G={n}": ("--rft.group-size", str(n)) for n in (8, 4, 16)},
    "kl": {f"kl={x}": ("--loss.kl-coef", x) for x in ("1e-3", "0", "1e-2", "1e-1")},
    "reward": {
        "correct": (),
        "margin": ("--rft.reward.correct", "0", "--rft.reward.margin", "1"),
        "both": ("--rft.reward.correct", "0.5", "--rft.reward.margin", "1"),
    },
}
"""Rows by name and the flags that make each. All of these differ in RFT alone."""
NOT_AFTER = ("--init", "--seed", "--out", "--continue-sft", "--eval.dev")
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
STAGES = {"sft": "sft", "sft_continued": "sft, continued"}
"""Rows that the first row's runs bring along, and what the table calls them."""


@dataclass(frozen=True)
class AblateConfig:
    """What to sweep."""

    sweep: Annotated[str, tyro.conf.Positional]
    """The name of a sweep: variant, group_size, kl or reward."""
    preset: str = "tiny"
    """What the rows change."""
    seeds: int = 3
    """Seeds of each row, from 0."""
    jobs: int = 1
    """Runs at a time, which share out the CPU cores: small models run faster so than one by one."""
    out: Path | None = None
    """Folder of the runs; runs/ablate/SWEEP where none is given."""
    report: Path | None = None
    """Folder of the table and figure; that of the runs where none is given."""

    def __post_init__(self) -> None:
        if self.sweep not in SWEEPS:
            raise ValueError(f"unknown sweep {self.sweep!r}; sweeps: {', '.join(SWEEPS)}")
        if self.preset not in PRESETS:
            raise ValueError(f"--preset {self.preset}: expected one of {', '.join(PRESETS)}")
        for name in ("seeds", "jobs"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: must be at least 1")

    @property
    def folder(self) -> Path:
        return self.out or Path("runs") / "ablate" / self.sweep


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
        return RunFolder(self.folder, self.config, free=FREE_FIELDS).is_done("evaluation")

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
        return sweep / "logs" / f"{self.row}-seed{self.seed}.log"


def run_jobs(jobs: Sequence[Job], sweep: Path, num_workers: int) -> list[Job]:
    """Runs what is not done, `num_workers` at a time -> those that failed. A row waits for the
    first row of its seed, whose SFT model it starts from."""
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
            ended_well = job.run(sweep, cores)
        finally:
            shares.put(cores)
        if not ended_well:
            print(f"failed: {job.row}, seed {job.seed}: see {job.log(sweep)}", flush=True)
        return ended_well

    # A thread for each: waiting for a first row must not keep a first row waiting.
    with ThreadPoolExecutor(max_workers=len(jobs)) as pool:
        firsts: dict[int, Future[bool]] = {}
        found = []
        for number, job in enumerate(jobs, 1):
            found.append(pool.submit(work, number, job, firsts.get(job.seed)))
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


def jobs_of(cfg: AblateConfig, flags: Flags) -> list[Job]:
    """The runs, in an order in which each finds what it starts from."""
    first, *_ = SWEEPS[cfg.sweep]
    jobs = []
    for seed in range(cfg.seeds):
        for row, changes in SWEEPS[cfg.sweep].items():
            folder = cfg.folder / row / f"seed{seed}"
            own = ("--eval.dev", "--seed", str(seed), "--out", str(folder))
            args = (cfg.preset, *changes, *flags, *own)
            if row == first:
                args += ("--continue-sft",)
            else:
                args += ("--init", str(cfg.folder / first / f"seed{seed}" / "sft" / "model"))
            jobs.append(Job(row, seed, folder, args))
    return jobs


@dataclass(frozen=True)
class Found:
    """What the runs of one row say."""

    label: str
    accuracy: Row
    """On test authors."""
    dev: list[tuple[float, float]]
    """Accuracy on dev authors, the SFT model's and its own, for each seed."""
    gain: tuple[float, float, float] | None
    """Over the SFT model, on the test authors: mean, low, high."""
    seconds: float
    """Of training, a run."""


def collect(runs: dict[str, list[Path]], first: str) -> list[Found]:
    """The rows of runs that are finished; `runs` by row, of the same seeds each."""

    def read(folders: Sequence[Path], judge: str) -> tuple[list[Pair], list[Prediction], str]:
        judged = read_judged(folders)
        condition = judged.own_condition
        return judged.pairs, judged.predictions[judge, condition], condition

    def test(row: str) -> list[Path]:
        return [run / "evaluation" / "test" for run in runs[row]]

    def dev(row: str, judge: str) -> list[float]:
        found = [read([run / "evaluation" / "dev"], judge) for run in runs[row]]
        return [summarize(predictions, pairs).mean for pairs, predictions, _ in found]

    def seconds(row: str, stage: str) -> float:
        times = [json.loads((run / "stages.json").read_text())[stage] for run in runs[row]]
        return sum(times) / len(times)

    start = dev(first, "sft")
    _, of_sft, _ = read(test(first), "sft")
    found = []
    asked = [(label, first, stage) for stage, label in STAGES.items()]
    for label, row, judge in [*asked, *((row, row, "rft") for row in runs)]:
        pairs, predictions, condition = read(test(row), judge)
        found.append(
            Found(
                label,
                Row(label, condition, summarize(predictions, pairs)),
                list(zip(start, dev(row, judge), strict=True)),
                None if judge == "sft" else paired_difference(predictions, of_sft, pairs),
                seconds(row, judge),
            )
        )
    return found


def dev_table(found: Sequence[Found]) -> str:
    """Markdown: what each row gained, seed by seed."""
    lines = [
        "| | dev accuracy, SFT's -> its own, by seed | raised | test minus SFT [95 % interval] | "
        "seconds |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for row in found:
        if row.gain is None:
            continue
        by_seed = ", ".join(f"{a:.3f} -> {b:.3f}" for a, b in row.dev)
        raised = sum(b > a for a, b in row.dev)
        mean, low, high = row.gain
        lines.append(
            f"| {row.label} | {by_seed} | {raised} of {len(row.dev)} | "
            f"{mean:+.3f} [{low:+.3f}, {high:+.3f}] | {row.seconds:.0f} |"
        )
    return "\n".join(lines) + "\n"


def write_table(cfg: AblateConfig, jobs: Sequence[Job], command: str) -> None:
    """Prints and writes the table of the rows whose runs are all finished."""
    first, *_ = SWEEPS[cfg.sweep]
    done = [job for job in jobs if job.is_done()]
    seeds = [job.seed for job in done if job.row == first]
    if not seeds:
        raise ValueError(f"{cfg.folder}: no run of {first}, which the others are compared with")
    runs = {
        row: [job.folder for job in done if job.row == row and job.seed in seeds]
        for row in SWEEPS[cfg.sweep]
    }
    runs = {row: folders for row, folders in runs.items() if len(folders) == len(seeds)}
    found = collect(runs, first)
    folder = cfg.report or cfg.folder
    rows = [row.accuracy for row in found]
    folder.mkdir(parents=True, exist_ok=True)
    accuracy_figure(rows, folder / "accuracy.png")
    sections = {
        "Gains": dev_table(found),
        "Command": f"`{command}`",
        "Provenance": f"```json\n{json.dumps(provenance(), indent=2)}\n```",
        "Config of the first run": fenced(runs[first][0] / "config.json"),
    }
    named = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    title = f"{cfg.preset}, by {cfg.sweep.replace('_', ' ')}: unseen authors, {named}"
    path = write_report(folder, title=title, rows=rows, sections=sections, figures=["accuracy.png"])
    console = Console()
    console.print(accuracy_table(rows))
    print(dev_table(found))
    print(f"report: {path}")


def main(args: Sequence[str]) -> None:
    """The command line."""
    words = list(args)
    flags: Flags = ()
    if "--" in words:
        cut = words.index("--")
        words, flags = words[:cut], tuple(words[cut + 1 :])
    cfg = cli.parse_flags(AblateConfig, "python -m experiments.ablate", words)
    jobs = jobs_of(cfg, flags)
    for flag in flags:
        if flag.split("=")[0] in NOT_AFTER:
            raise ValueError(f"{flag}: the sweep sets it; give it none after --")
    for job in jobs:  # a flag that no run would take, or another's folder, is refused at once
        parse_run(PRESETS, "python -m experiments.ablate", job.args)
        job.is_done()
    failed = run_jobs(jobs, cfg.folder, cfg.jobs)
    write_table(cfg, jobs, shlex.join(["python", "-m", "experiments.ablate", *args]))
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    cli.run_main(main)
