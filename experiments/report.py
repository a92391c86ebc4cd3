"""One run, or several seeds of one, as a table, a figure and `report.md`.

python -m experiments.report runs/tiny
python -m experiments.report runs/seed0 runs/seed1 runs/seed2 --out results/tiny
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from persrm_jax import cli
from persrm_jax.evaluation.report import (
    Row,
    accuracy_figure,
    accuracy_table,
    curves_figure,
    markdown_table,
    write_report,
)
from persrm_jax.evaluation.statistics import paired_difference, summarize
from persrm_jax.jsonl import read_records
from persrm_jax.metrics import read_metrics
from persrm_jax.types import Pair, Prediction

JUDGES = (
    "chance",
    "length",
    "char_ngrams",
    "stylometry",
    "topic_words",
    "base",
    "sft",
    "sft_continued",
    "rft",
)
"""Rows of a table, in order."""
WRONG_AUTHOR = "wrong_author"


@dataclass(frozen=True)
class Judged:
    """Predictions of several runs by (judge, condition), and the pairs they are about."""

    pairs: list[Pair]
    predictions: dict[tuple[str, str], list[Prediction]]

    def rows(self) -> list[Row]:
        """A row for each judge and condition, in the order of `JUDGES`."""
        keys = sorted(self.predictions, key=lambda key: (JUDGES.index(key[0]), key[1]))
        return [
            Row(judge, condition, summarize(self.predictions[judge, condition], self.pairs))
            for judge, condition in keys
        ]

    @property
    def own_condition(self) -> str:
        """The number of exemplars."""
        return next(c for _, c in self.predictions if c != WRONG_AUTHOR)


def read_judged(folders: Sequence[Path]) -> Judged:
    """Reads evaluation folders, one a run. Pairs of different runs are kept apart; so are made-up
    personas, who are other people under each seed."""
    pairs: list[Pair] = []
    predictions: dict[tuple[str, str], list[Prediction]] = {}
    for number, folder in enumerate(folders):
        for pair in read_records(folder / "pairs.jsonl", Pair):
            person = f"{number}/" if pair.domain == "personas" else ""
            pairs.append(
                replace(
                    pair,
                    pair_id=f"{number}/{pair.pair_id}",
                    author=person + pair.author,
                    rejected_author=person + pair.rejected_author,
                )
            )
        for path in sorted(folder.glob("*.*.jsonl")):
            judge, condition, _ = path.name.split(".")
            found = predictions.setdefault((judge, condition), [])
            for p in read_records(path, Prediction):
                found.append(replace(p, pair_id=f"{number}/{p.pair_id}"))
    return Judged(pairs, predictions)


def find_rows(folders: Sequence[Path]) -> list[Row]:
    """The table of evaluation folders."""
    return read_judged(folders).rows()


def comparisons(folders: Sequence[Path]) -> list[str]:
    """What RFT gained, as sentences: the paired difference on the same pairs with its interval, and
    each seed's where there are several."""
    everything = read_judged(folders)
    seeds = [read_judged([folder]) for folder in folders]
    k = everything.own_condition
    asked = [
        ("rft minus sft", ("rft", k), ("sft", k)),
        ("rft minus sft continued with the same compute", ("rft", k), ("sft_continued", k)),
        ("sft minus sft given a wrong author's exemplars", ("sft", k), ("sft", WRONG_AUTHOR)),
        ("rft minus rft given a wrong author's exemplars", ("rft", k), ("rft", WRONG_AUTHOR)),
    ]
    lines = []
    for words, first, second in asked:
        if not {first, second} <= everything.predictions.keys():
            continue
        mean, low, high = paired_difference(
            everything.predictions[first], everything.predictions[second], everything.pairs
        )
        line = f"{words}: {mean:+.3f} [{low:+.3f}, {high:+.3f}]"
        if len(seeds) > 1:
            each = [
                paired_difference(s.predictions[first], s.predictions[second], s.pairs)[0]
                for s in seeds
            ]
            line += f"; by seed {', '.join(f'{d:+.3f}' for d in each)}"
        lines.append(line)
    return lines


def report_runs(runs: Sequence[Path], out: Path) -> None:
    """Prints the table and writes `report.md`, `accuracy.png` and `curves.png` into `out`."""
    folders = [run / "evaluation" / "test" for run in runs]
    for folder in folders:
        if not (folder / "pairs.jsonl").is_file():
            raise ValueError(f"{folder.parent.parent}: this run has not been evaluated")
    rows = find_rows(folders)
    differences = comparisons(folders)
    out.mkdir(parents=True, exist_ok=True)
    accuracy_figure(rows, out / "accuracy.png")
    figures = ["accuracy.png"]
    metrics = _metrics(runs[0])
    if metrics:
        curves_figure(metrics, out / "curves.png")
        figures.append("curves.png")
    config = json.loads((runs[0] / "config.json").read_text(encoding="utf-8"))
    sections = {"Differences": "\n".join(f"- {line}" for line in differences)}
    seen = [run / "evaluation" / "seen" for run in runs]
    if all((folder / "pairs.jsonl").is_file() for folder in seen):
        sections["Training authors, unseen texts"] = markdown_table(find_rows(seen))
    if len(runs) > 1:
        sections["Each seed"] = "\n\n".join(
            f"{_config(run)['seed']}:\n\n{markdown_table(find_rows([folder]))}"
            for run, folder in zip(runs, folders, strict=True)
        )
    sections["Time"] = "\n".join(f"- {_times(run)}" for run in runs)
    sections["Provenance"] = "\n\n".join(fenced(run / "provenance.json") for run in runs)
    sections["Config"] = fenced(runs[0] / "config.json")
    seeds = ", ".join(str(_config(run)["seed"]) for run in runs)
    title = f"{config['preset']} on {Path(config['data']).name}, seed {seeds}: unseen authors"
    path = write_report(out, title=title, rows=rows, sections=sections, figures=figures)
    console = Console()
    console.print(accuracy_table(rows))
    for line in differences:
        console.print(line, highlight=False)
    for run in runs:
        console.print(_times(run), highlight=False)
    console.print(f"report: {path}", highlight=False)


def _config(run: Path) -> dict[str, object]:
    return json.loads((run / "config.json").read_text(encoding="utf-8"))


def _metrics(run: Path) -> list[dict[str, object]]:
    stages = ("sft", "sft_continued", "rft")
    return [
        {"stage": stage, **row}
        for stage in stages
        for row in read_metrics(run / stage / "metrics.jsonl")
    ]


def _times(run: Path) -> str:
    stages = json.loads((run / "stages.json").read_text(encoding="utf-8"))
    return "; ".join(f"{name} {seconds:.0f} s" for name, seconds in stages.items())


def fenced(path: Path) -> str:
    """A JSON file as Markdown."""
    return f"```json\n{path.read_text(encoding='utf-8').strip()}\n```"


@dataclass(frozen=True)
class ReportConfig:
    """What to report."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders: one, or several seeds of one configuration."""
    out: Path | None = None
    """Folder of the report; the first run's where none is given."""


def main(args: Sequence[str]) -> None:
    """The command line."""
    asked = cli.parse_flags(ReportConfig, "python -m experiments.report", args)
    if not asked.runs:
        raise ValueError("name at least one run folder")
    report_runs(asked.runs, asked.out or asked.runs[0])


if __name__ == "__main__":
    cli.run_main(main)
