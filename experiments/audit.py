"""How far cheats get on a set of pairs: python -m experiments.audit PAIRS [--json FILE] [--out DIR]

PAIRS is a pairs.jsonl, or a run's folder. No cheat sees the exemplars; a kind of pairs that one of
them solves is flagged.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from persrm_jax import cli
from persrm_jax.evaluation.audit import SUSPICIOUS, Finding, audit
from persrm_jax.evaluation.report import Row, accuracy_figure
from persrm_jax.evaluation.statistics import Accuracy
from persrm_jax.jsonl import iter_records, read_records, write_text
from persrm_jax.types import Pair


@dataclass(frozen=True)
class AuditConfig:
    """What to audit."""

    pairs: Annotated[Path, tyro.conf.Positional]
    """A pairs file, or a run's folder."""
    max_pairs: int = 4000
    """Pairs that are looked at, drawn at random (0: all)."""
    out: Path | None = None
    """Folder for `audit.json`, `audit.md` and a figure."""
    seed: int = 0
    """Of the draw and of the bootstrap."""


def draw_pairs(path: Path, count: int, seed: int) -> list[Pair]:
    """`count` of a file's pairs at random, in their order; all if it has no more, or for 0."""
    if not count:
        return read_records(path, Pair)
    rng = np.random.default_rng(seed)
    drawn: dict[int, tuple[int, Pair]] = {}  # a reservoir
    for number, pair in enumerate(iter_records(path, Pair)):
        slot = number if number < count else int(rng.integers(number + 1))
        if slot < count:
            drawn[slot] = (number, pair)
    return [pair for _, pair in sorted(drawn.values(), key=lambda found: found[0])]


def verdict(findings: Sequence[Finding]) -> str:
    """Which kinds are flagged, as a sentence."""
    flagged = [f for f in findings if f.is_flagged]
    if not flagged:
        return f"No cheat reaches {SUSPICIOUS:g} on any kind."
    listed = ", ".join(f"{f.kind} ({f.cheat} {f.accuracy:.2f})" for f in flagged)
    return f"FLAGGED, solved without the person's texts: {listed}."


def as_markdown(findings: Sequence[Finding]) -> str:
    """The table."""
    lines = ["| pairs | cheat | accuracy | 95 % interval | n | |", "|---|---|---:|---|---:|---|"]
    for f in findings:
        mark = "flagged" if f.is_flagged else ""
        lines.append(
            f"| {f.kind} | {f.cheat} | {f.accuracy:.3f} | {f.low:.3f} to {f.high:.3f} "
            f"| {f.num_pairs} | {mark} |"
        )
    return "\n".join([*lines, "", verdict(findings), ""])


def row_of(finding: Finding) -> Row:
    """A cheat on a kind as a judge that is shown no exemplars."""
    accuracy = Accuracy(
        mean=finding.accuracy,
        low=finding.low,
        high=finding.high,
        num_pairs=finding.num_pairs,
        num_authors=finding.num_authors,
        parse_rate=1.0,
        tie_rate=0.0,
        consistency=None,
        both_right=None,
    )
    return Row(f"{finding.kind}: {finding.cheat}", "0", accuracy)


def show(findings: Sequence[Finding]) -> None:
    """Prints the table."""
    table = Table("pairs", "cheat", "accuracy", "95 % interval", "n", "")
    for f in findings:
        table.add_row(
            f.kind,
            f.cheat,
            f"{f.accuracy:.3f}",
            f"{f.low:.3f} to {f.high:.3f}",
            f"{f.num_pairs:,}",
            "flagged" if f.is_flagged else "",
        )
    console = Console()
    console.print(table)
    console.print(verdict(findings))


def main(args: Sequence[str]) -> None:
    """The command line."""
    cfg = cli.parse_flags(AuditConfig, "python -m experiments.audit", args)
    path = cfg.pairs / "pairs.jsonl" if cfg.pairs.is_dir() else cfg.pairs
    findings = audit(draw_pairs(path, cfg.max_pairs, cfg.seed), seed=cfg.seed)
    show(findings)
    if cfg.out is not None:
        rows = [dataclasses.asdict(f) | {"flagged": f.is_flagged} for f in findings]
        write_text(cfg.out / "audit.json", json.dumps(rows, indent=2) + "\n")
        shown = "![how often each cheat is right](audit.png)"
        text = f"# Audit of {path.name}\n\n{as_markdown(findings)}\n{shown}\n"
        write_text(cfg.out / "audit.md", text)
        accuracy_figure([row_of(finding) for finding in findings], cfg.out / "audit.png")
        print(f"audit: in {cfg.out}")


if __name__ == "__main__":
    cli.run_main(main)
