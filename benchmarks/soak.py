"""What a long RFT run did to the machine: memory, compilations, throughput, what is on its disk.

    python -m experiments.rft ... --out RUN
    python -m benchmarks.soak --run RUN --out results/soak.json

Reads the metrics of RFT's steps, and ends with an error where the run grew by more than 3 % after
its first tenth, a step compiled anything after it (as it does where the run was interrupted), or it
lost a tenth of its throughput. The figure lies beside the numbers.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from persrm_jax import cli
from persrm_jax.evaluation.report import curves_figure
from persrm_jax.jsonl import write_text
from persrm_jax.metrics import read_metrics

GROWTH = 1.03
"""Memory of the last tenth over the second, at most."""
SLOWDOWN = 0.9
"""Throughput likewise, at least."""
TAGS = (
    "time/memory_gib",
    "time/tokens_per_s",
    "time/compilations",
    "time/step_s",
    "length/completion",
    "reward/mean",
)


@dataclass(frozen=True)
class SoakConfig:
    """What to look at."""

    run: Path
    """Folder of a run."""
    out: Path | None = None
    """File for the numbers; the figure gets the same name."""


def measure(folder: Path) -> dict[str, Any]:
    """Numbers of RFT's folder, of a run that took at least twenty steps.

    Raises:
        ValueError: it took fewer.
    """
    rows = read_metrics(folder / "metrics.jsonl")
    if len(rows) < 20:
        raise ValueError(f"{folder}: {len(rows)} steps logged; a soak needs at least 20")
    tenth = len(rows) // 10

    def values(tag: str) -> np.ndarray:
        return np.array([row[tag] for row in rows], np.float64)

    def parts(tag: str) -> tuple[float, float]:
        """Medians of the second tenth and of the last."""
        found = values(tag)
        return float(np.median(found[tenth : 2 * tenth])), float(np.median(found[-tenth:]))

    (memory, memory_end), (speed, speed_end) = parts("time/memory_gib"), parts("time/tokens_per_s")
    lengths = parts("length/completion")
    steps = sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())
    return {
        "steps": len(rows),
        "hours": float(values("time/step_s").sum() / 3600),
        "memory_gib": {"second_tenth": memory, "last_tenth": memory_end},
        "tokens_per_s": {"second_tenth": speed, "last_tenth": speed_end},
        "completion_tokens": dict(zip(("second_tenth", "last_tenth"), lengths, strict=True)),
        "compilations": {
            "first_tenth": int(values("time/compilations")[:tenth].sum()),
            "after": int(values("time/compilations")[tenth:].sum()),
        },
        "disk": {
            "checkpoints": steps,
            "checkpoints_mib": _mib(folder / "checkpoints"),
            "logs_mib": _mib(folder) - _mib(folder / "checkpoints") - _mib(folder / "model"),
        },
    }


def faults(found: dict[str, Any]) -> list[str]:
    """What a soak must not show."""
    memory, speed = found["memory_gib"], found["tokens_per_s"]
    wrong = []
    if memory["last_tenth"] > GROWTH * memory["second_tenth"]:
        wrong.append("memory grew from {second_tenth:.2f} to {last_tenth:.2f} GiB".format(**memory))
    if found["compilations"]["after"]:
        wrong.append(f"{found['compilations']['after']} compilations after the first tenth")
    if speed["last_tenth"] < SLOWDOWN * speed["second_tenth"]:
        wrong.append(
            "throughput fell from {second_tenth:.0f} to {last_tenth:.0f} tokens/s".format(**speed)
        )
    return wrong


def _mib(folder: Path) -> float:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 2**20


def main(args: Sequence[str]) -> None:
    """The command line."""
    cfg = cli.parse_flags(SoakConfig, "python -m benchmarks.soak", args)
    found = measure(cfg.run / "rft")
    provenance = json.loads((cfg.run / "provenance.json").read_text(encoding="utf-8"))
    text = json.dumps({**found, "provenance": provenance}, indent=2) + "\n"
    print(json.dumps(found, indent=2))
    if cfg.out is not None:
        write_text(cfg.out, text)
        rows = read_metrics(cfg.run / "rft" / "metrics.jsonl")
        named = [{**row, "stage": "rft"} for row in rows]
        curves_figure(named, cfg.out.with_suffix(".png"), TAGS)
    if wrong := faults(found):
        raise ValueError(f"{cfg.run}: {'; '.join(wrong)}")


if __name__ == "__main__":
    cli.run_main(main)
