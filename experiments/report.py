"""One run, or several seeds of one, as tables, figures, `report.md` and `report.html`.

python -m experiments.report runs/tiny
python -m experiments.report runs/seed0 runs/seed1 runs/seed2 --out results/tiny
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from persrm_jax import cli
from persrm_jax.evaluation.conditions import WRONG_AUTHOR
from persrm_jax.evaluation.html import write_html
from persrm_jax.evaluation.judged import JUDGES, Judged, Key, in_main_table, read_judged
from persrm_jax.evaluation.report import (
    accuracy_figure,
    accuracy_table,
    curves_figure,
    markdown_table,
    write_report,
)
from persrm_jax.evaluation.samples import Sample, pick_samples
from persrm_jax.evaluation.statistics import paired_difference
from persrm_jax.evaluation.tables import (
    Grid,
    against_cheats,
    by_calibration,
    by_exemplars,
    by_kind,
    by_people,
    by_votes,
)
from persrm_jax.metrics import read_metrics
from persrm_jax.summaries import write_figures

SETS = {
    "test": "unseen authors",
    "seen": "training authors, unseen texts",
    "elsewhere": "unseen authors and domain",
}
"""Folders of an evaluation, and what the tables call them."""


def comparisons(folders: Sequence[Path]) -> list[str]:
    """What RFT gained, as sentences: the paired difference on the same pairs with its interval, of
    each kind of rejected text too, and each seed's where there are several."""
    everything = read_judged(folders)
    seeds = [read_judged([folder]) for folder in folders]
    k = everything.own_condition
    beside = sorted({judge for judge, _ in everything.predictions} - {*JUDGES})
    # "no_think_sft_continued" stands beside "sft_continued", the longest name that it ends in.
    ours = {n: [judge for judge in JUDGES if n.endswith(f"_{judge}")] for n in beside}
    labelled = [(max(judges, key=len), name) for name, judges in ours.items() if judges]
    asked = [
        ("rft minus sft", ("rft", k), ("sft", k)),
        ("rft minus sft continued with the same compute", ("rft", k), ("sft_continued", k)),
        ("rft minus sft on its own right answers", ("rft", k), ("sft_rejection", k)),
        *((f"{judge} minus {name}", (judge, k), (name, k)) for judge, name in labelled),
        ("rft minus stylometry", ("rft", k), ("stylometry", k)),
        ("rft minus bt", ("rft", k), ("bt", k)),
        ("sft minus sft given a wrong author's exemplars", ("sft", k), ("sft", WRONG_AUTHOR)),
        ("rft minus rft given a wrong author's exemplars", ("rft", k), ("rft", WRONG_AUTHOR)),
    ]
    lines = []
    for words, first, second in asked:
        if not {first, second} <= everything.predictions.keys():
            continue
        line = f"{words}: {_difference(everything, first, second)}"
        if len(everything.kinds) > 1:
            each_kind = (
                f"{kind} {_difference(everything.of_kind(kind), first, second)}"
                for kind in everything.kinds
            )
            line += f" ({'; '.join(each_kind)})"
        if len(seeds) > 1:
            each = [
                paired_difference(s.predictions[first], s.predictions[second], s.pairs).mean
                for s in seeds
            ]
            line += f"; by seed {', '.join(f'{d:+.3f}' for d in each)}"
        lines.append(line)
    return lines


def _difference(judged: Judged, first: Key, second: Key) -> str:
    found = paired_difference(judged.predictions[first], judged.predictions[second], judged.pairs)
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def read_sets(folders: Sequence[Path]) -> dict[str, Judged]:
    """What evaluations hold, by the name of the set; those that all of them have."""
    found = {}
    for name, words in SETS.items():
        sets = [folder / name for folder in folders]
        if all((folder / "pairs.jsonl").is_file() for folder in sets):
            found[words] = read_judged(sets)
    return found


def protocol(sets: Mapping[str, Judged]) -> list[Grid]:
    """The tables beside the main one, as far as the runs were asked for them."""
    judged = sets[SETS["test"]]
    grids = [
        by_exemplars(judged.rows()),
        by_kind(judged),
        against_cheats(judged),
        by_people(sets),
        by_votes(judged),
        by_calibration(judged),
    ]
    return [grid for grid in grids if grid is not None]


def report_runs(runs: Sequence[Path], out: Path) -> None:
    """Prints the tables and writes `report.md`, `report.html` and their figures into `out`. The
    accuracies of one run go to its TensorBoard too."""
    folders = [run / "evaluation" / "test" for run in runs]
    for folder in folders:
        if not (folder / "pairs.jsonl").is_file():
            raise ValueError(f"{folder.parent.parent}: this run has not been evaluated")
    sets = read_sets([run / "evaluation" for run in runs])
    judged = sets[SETS["test"]]
    rows = [row for row in judged.rows() if in_main_table(row, judged.own_condition)]
    grids = protocol(sets)
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
    sections |= {grid.title: grid.markdown() for grid in grids}
    if len(runs) > 1:
        sections["Each seed"] = "\n\n".join(
            f"{_config(run)['seed']}:\n\n{_main_table(folder)}"
            for run, folder in zip(runs, folders, strict=True)
        )
    sections["Time"] = "\n".join(f"- {_times(run)}" for run in runs)
    sections["Provenance"] = "\n\n".join(fenced(run / "provenance.json") for run in runs)
    sections["Config"] = fenced(runs[0] / "config.json")
    seeds = ", ".join(str(_config(run)["seed"]) for run in runs)
    title = f"{config['preset']} on {Path(config['data']).name}, seed {seeds}: unseen authors"
    path = write_report(out, title=title, rows=rows, sections=sections, figures=figures)
    page = write_html(path, samples_of(folders[0]))
    if len(runs) == 1:
        board = runs[0] / "evaluation" / "tensorboard"
        write_figures(board, {"eval/accuracy": out / "accuracy.png"})
    console = Console()
    console.print(accuracy_table(rows))
    for grid in grids:
        console.print(grid.rich())
    for line in differences:
        console.print(line, highlight=False)
    for run in runs:
        console.print(_times(run), highlight=False)
    console.print(f"report: {path}, {page}", highlight=False, soft_wrap=True)


def samples_of(folder: Path) -> list[Sample]:
    """Judgements of an evaluation folder to look at."""
    judged = read_judged([folder])
    own = judged.own_condition
    said = {judge: rows for (judge, c), rows in judged.predictions.items() if c == own}
    return pick_samples(judged.pairs, {judge: said[judge] for judge in JUDGES if judge in said})


def _main_table(folder: Path) -> str:
    judged = read_judged([folder])
    return markdown_table([r for r in judged.rows() if in_main_table(r, judged.own_condition)])


def _config(run: Path) -> dict[str, object]:
    return json.loads((run / "config.json").read_text(encoding="utf-8"))


def _metrics(run: Path) -> list[dict[str, object]]:
    stages = ("sft", "sft_continued", "sft_rejection", "rft")
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
