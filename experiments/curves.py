"""Curves of one run, or of several in the same panels, as a PNG.

    python -m experiments.curves runs/tiny --out curves.png
    python -m experiments.curves runs/tiny runs/blown --tags kl/mean reward/mean --out kl.png

Lines are called by the names of the runs' folders.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from persrm_jax import cli
from persrm_jax.evaluation.report import CURVE_TAGS, curves_figure
from persrm_jax.metrics import read_metrics


@dataclass(frozen=True)
class CurvesConfig:
    """What to draw."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders."""
    out: Path = Path("curves.png")
    """The figure."""
    tags: tuple[str, ...] = CURVE_TAGS
    """Metrics, a panel each."""
    stage: str = "rft"
    """Whose metrics: sft, sft_continued, sft_rejection, rft or bt."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("name at least one run folder")


def main(args: Sequence[str]) -> None:
    """The command line."""
    asked = cli.parse_flags(CurvesConfig, "python -m experiments.curves", args)
    rows: list[dict[str, object]] = []
    for run in asked.runs:
        found = read_metrics(run / asked.stage / "metrics.jsonl")
        if not found:
            raise ValueError(f"{run}: no metrics of the stage {asked.stage} in this folder")
        rows += [{**row, "stage": run.resolve().name} for row in found]
    curves_figure(rows, asked.out, asked.tags)
    print(f"curves: {asked.out}")


if __name__ == "__main__":
    cli.run_main(main)
