"""An RFT step of ours beside TRL's and Tunix's: time, and peak memory, in interleaved turns.

    make bench-peers      # sets up their environments, then runs this

Each framework is a process in its own environment and does the same work (`workload.py`): prompts
of words are tokenized, completions sampled, decoded and rewarded, and AdamW makes one update. They
take turns step by step, so that whatever slows the machine slows all; a step during which other
processes took more than `MAX_OTHERS` of the CPU does not count. The first step, which compiles, is
apart. Peak memory is the process's largest resident set, imports and compilation included.
"""

import json
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.peers.workload import WORKLOADS, describe
from persrm_jax import cli
from persrm_jax.jsonl import write_text
from persrm_jax.runs import provenance

ROOT = Path(__file__).resolve().parents[2]
MAX_OTHERS = 0.02
TARGETS = {"W1": {"TRL": 1.6, "Tunix": 2.1}, "W2": {"TRL": 2.6, "Tunix": 6.0}}
"""Times our speed that we mean to be faster."""
MAX_MEMORY = 1.15
"""Of TRL's peak that ours may be."""


@dataclass(frozen=True)
class Config:
    """What to measure, and the Python of each framework's environment."""

    steps: int = 7
    """Undisturbed steps of each that count."""
    workloads: tuple[str, ...] = tuple(WORKLOADS)
    ours: Path = Path(".venv/bin/python")
    trl: Path = Path(".venv/peers-trl/bin/python")
    tunix: Path = Path(".venv/peers-tunix/bin/python")
    out: Path | None = None
    """Where to write the table, as Markdown; the numbers go beside it as JSON."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.workloads if name not in WORKLOADS]:
            raise ValueError(f"--workloads {unknown[0]}: expected one of {', '.join(WORKLOADS)}")
        for name in ("ours", "trl", "tunix"):
            if not getattr(self, name).is_file():
                raise ValueError(
                    f"--{name} {getattr(self, name)}: is not there; `make bench-peers` sets it up"
                )


@dataclass
class Framework:
    """A process that does a step when told, and what it has reported."""

    name: str
    process: subprocess.Popen[str]
    log: Path
    first: dict[str, float] = field(default_factory=dict)
    steps: list[dict[str, float]] = field(default_factory=list)
    disturbed: int = 0

    def turn(self) -> None:
        """One step.

        Raises:
            RuntimeError: the process has ended.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        settle()
        busy, begin, ours = busy_seconds(), time.perf_counter(), self._cpu_seconds()
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{self.name} ended with {self.process.wait()}:\n{tail}")
        report = json.loads(line)
        elapsed = time.perf_counter() - begin
        others = busy_seconds() - busy - (self._cpu_seconds() - ours)
        report["others"] = others / (elapsed * (os.cpu_count() or 1))
        if not self.first:
            self.first = report
        elif report["others"] > MAX_OTHERS:
            self.disturbed += 1
        else:
            self.steps.append(report)

    def _cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def summary(self) -> dict[str, Any]:
        """Medians of the steps that count."""
        step_s = [x["step_s"] for x in self.steps]
        rollout_s = median(x["rollout_s"] for x in self.steps)
        return {
            "step_s": median(step_s),
            "rollout_s": rollout_s,
            "train_s": median(x["step_s"] - x["rollout_s"] for x in self.steps),
            "fastest_s": min(step_s),
            "slowest_s": max(step_s),
            "first_step_s": self.first["step_s"],
            "peak_mib": max(x["peak_mib"] for x in self.steps),
            "steps": len(self.steps),
            "disturbed": self.disturbed,
        }


def busy_seconds() -> float:
    """CPU seconds that all processes have taken since the machine started."""
    user, nice, system, _, _, irq, softirq = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]
    )
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def settle() -> None:
    """Waits until nobody works: a framework may free memory and log after it has reported."""
    for _ in range(100):
        busy = busy_seconds()
        time.sleep(0.3)
        if busy_seconds() - busy <= MAX_OTHERS * 0.3 * (os.cpu_count() or 1):
            return


def measure(name: str, cfg: Config, logs: Path) -> dict[str, dict[str, Any]]:
    """Each framework's summary for one workload."""
    environment = dict(os.environ, JAX_PLATFORMS="cpu", CUDA_VISIBLE_DEVICES="", PYTHONPATH="")
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    found: list[Framework] = []
    try:
        for title, python, module in (
            ("ours", cfg.ours, "with_ours"),
            ("TRL", cfg.trl, "with_trl"),
            ("Tunix", cfg.tunix, "with_tunix"),
        ):
            log = logs / f"{name}-{module}.log"
            with log.open("w") as stderr:
                process = subprocess.Popen(
                    # Absolute, but not resolved: an environment's Python is a link out of it.
                    [str(python.absolute()), "-m", f"benchmarks.peers.{module}", name],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    text=True,
                    cwd=ROOT,
                    env=environment,
                )
            found.append(Framework(title, process, log))
            found[-1].turn()  # imports and compiles while nobody else works
        for _ in range(3 * cfg.steps):
            if all(len(framework.steps) >= cfg.steps for framework in found):
                break
            for framework in found:
                framework.turn()
        for framework in found:
            if len(framework.steps) < cfg.steps:
                raise RuntimeError(
                    f"{name}, {framework.name}: other processes took over {MAX_OTHERS:.0%} of the "
                    f"CPU in {framework.disturbed} steps; run this on a quiet machine"
                )
    finally:
        for framework in found:
            framework.process.kill()
            framework.process.wait()
    return {framework.name: framework.summary() for framework in found}


def versions(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """Of `packages` in the environment of `python`."""
    code = (
        "import sys, json, importlib.metadata as m;"
        "print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))"
    )
    command = [str(python.absolute()), "-c", code, *packages]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def table(found: dict[str, dict[str, dict[str, Any]]], about: dict[str, Any]) -> str:
    """The Markdown."""
    lines = [
        "# An RFT step beside TRL's and Tunix's",
        "",
        "Written by `make bench-peers` (`benchmarks/peers`), which says what is measured. Medians "
        "of interleaved steps on one machine; the first step compiles and is apart.",
        "",
    ]
    for name, rows in found.items():
        ours = rows["ours"]
        lines += [
            f"**{name}**: {describe(WORKLOADS[name])}.",
            "",
            "| | step s | rollout | train | slowest | steps | disturbed | first step | peak MiB | "
            "ours is faster by | target |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for title, x in rows.items():
            ratio, target = f"{x['step_s'] / ours['step_s']:.2f}", TARGETS[name].get(title, "")
            lines.append(
                f"| {title} | {x['step_s']:.2f} | {x['rollout_s']:.2f} | {x['train_s']:.2f} | "
                f"{x['slowest_s']:.2f} | {x['steps']} | {x['disturbed']} | "
                f"{x['first_step_s']:.1f} | {x['peak_mib']:,.0f} | "
                f"{ratio if target else ''} | {target} |"
            )
        memory = ours["peak_mib"] / rows["TRL"]["peak_mib"]
        lines += ["", f"Ours takes {memory:.2f} of TRL's memory (at most {MAX_MEMORY}).", ""]
    lines += ["Versions: " + json.dumps(about["versions"]), ""]
    commit = about["provenance"]["commit"] or "unknown"
    commit += ", with uncommitted changes" * about["provenance"]["uncommitted_changes"]
    lines += [f"{os.cpu_count()} cores; commit {commit}.", ""]
    return "\n".join(lines)


def main(args: Sequence[str]) -> None:
    """The command line."""
    cfg = cli.parse_flags(Config, "python -m benchmarks.peers", args)
    logs = ROOT / "runs" / "bench-peers"
    logs.mkdir(parents=True, exist_ok=True)
    found = {name: measure(name, cfg, logs) for name in cfg.workloads}
    about = {
        "provenance": provenance(),
        "versions": {
            "ours": versions(cfg.ours, ("jax", "transformers")),
            "TRL": versions(cfg.trl, ("trl", "torch", "transformers")),
            "Tunix": versions(cfg.tunix, ("google-tunix", "jax", "flax")),
        },
        "workloads": {name: asdict(WORKLOADS[name]) for name in cfg.workloads},
    }
    text = table(found, about)
    print(text)
    if cfg.out is not None:
        write_text(cfg.out, text)
        write_text(cfg.out.with_suffix(".json"), json.dumps({**about, "found": found}, indent=2))


if __name__ == "__main__":
    cli.run_main(main)
