"""A sweep's finished runs -> a table with intervals, a figure, and which differences are real."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from experiments.report import fenced
from experiments.sweeps import Flags, Sweep
from persrm_jax.evaluation.html import write_html
from persrm_jax.evaluation.judged import Judged, read_judged
from persrm_jax.evaluation.report import Row, accuracy_figure, accuracy_table, write_report
from persrm_jax.evaluation.statistics import Difference, holm, paired_difference, summarize
from persrm_jax.evaluation.tables import Grid, across
from persrm_jax.runs import provenance
from persrm_jax.summaries import Value, write_hparams
from persrm_jax.types import Prediction

RIVALS = {"sft": "sft", "sft_continued": "sft, continued", "sft_rejection": "sft, own answers"}
"""Judges of the first row's runs that have rows of their own, and what the table calls them."""
REAL = 0.05
"""Family-wise error below which a difference counts, if all seeds agree on its sign."""
Runs = Mapping[str, Mapping[int, Path]]
"""Run folders by row and seed."""


@dataclass(frozen=True)
class Compared:
    """A difference on the same test pairs."""

    whole: Difference
    by_seed: list[float]
    p: float = 1.0
    """Holm's, among the comparisons of its kind in the sweep."""

    @property
    def is_real(self) -> bool:
        agree = all(d > 0 for d in self.by_seed) or all(d < 0 for d in self.by_seed)
        return agree and self.p < REAL

    def cells(self) -> tuple[str, str, str]:
        d = self.whole
        return (f"{d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]", f"{self.p:.3f}", self.words)

    @property
    def words(self) -> str:
        return "yes" if self.is_real else "no"


@dataclass(frozen=True)
class Found:
    """What the runs of one row say."""

    label: str
    accuracy: Row
    """On test authors."""
    dev: list[tuple[float, float]]
    """Accuracy on dev authors, of the SFT model that it starts from and its own, by seed."""
    over_sft: Compared | None
    over_first: Compared | None
    seconds: float
    """Of the stage that makes it, a run."""


def collect(runs: Runs, sweep: Sweep) -> list[Found]:
    """Rows whose runs are finished for all seeds of the first row.

    Raises:
        ValueError: no run of the first row is finished.
    """
    seeds = list(runs.get(sweep.first, {}))
    if not seeds:
        raise ValueError(f"no run of {sweep.first} is finished, which the others are compared with")
    folders = {
        row: [found[seed] for seed in seeds]
        for row, found in runs.items()
        if set(seeds) <= found.keys()
    }
    asked = [(label, sweep.first, judge) for judge, label in RIVALS.items()]
    asked += [(row, row, "rft") for row in folders]
    found = []
    for label, row, judge in asked:
        judged = _test(folders[row])
        if (judge, judged.own_condition) not in judged.predictions:
            continue
        start = folders[sweep.first] if sweep.shares_sft else folders[row]
        own = judge == "rft"
        found.append(
            Found(
                label,
                Row(label, judged.own_condition, summarize(_own(judged, judge), judged.pairs)),
                list(zip(_dev(start, "sft"), _dev(folders[row], judge), strict=True)),
                None if judge == "sft" else _compare(folders[row], judge, start, "sft"),
                _compare(folders[row], "rft", folders[sweep.first], "rft")
                if own and row != sweep.first
                else None,
                _seconds(folders[row], judge),
            )
        )
    return _with_holm(found)


def _with_holm(found: list[Found]) -> list[Found]:
    """With p-values adjusted, among the gains over SFT and among the differences from the first
    row."""
    for name in ("over_sft", "over_first"):
        compared = [getattr(row, name) for row in found]
        adjusted = iter(holm([c.whole.p for c in compared if c is not None]))
        found = [
            row if c is None else replace(row, **{name: replace(c, p=next(adjusted))})
            for row, c in zip(found, compared, strict=True)
        ]
    return found


def _compare(
    first: Sequence[Path], judge: str, second: Sequence[Path], other: str
) -> Compared | None:
    """None where the runs' test pairs are not the same texts."""
    ours, theirs = _test(first), _test(second)
    if _texts(ours) != _texts(theirs):
        return None
    by_seed = []
    for one, two in zip(first, second, strict=True):
        a, b = _test([one]), _test([two])
        by_seed.append(paired_difference(_own(a, judge), _own(b, other), a.pairs).mean)
    return Compared(paired_difference(_own(ours, judge), _own(theirs, other), ours.pairs), by_seed)


def _texts(judged: Judged) -> list[tuple[str, str, str]]:
    return [(pair.pair_id, pair.chosen, pair.rejected) for pair in judged.pairs]


def _test(folders: Sequence[Path]) -> Judged:
    return read_judged([run / "evaluation" / "test" for run in folders])


def _own(judged: Judged, judge: str) -> list[Prediction]:
    return judged.predictions[judge, judged.own_condition]


def _dev(folders: Sequence[Path], judge: str) -> list[float]:
    found = [read_judged([run / "evaluation" / "dev"]) for run in folders]
    return [summarize(_own(judged, judge), judged.pairs).mean for judged in found]


def _seconds(folders: Sequence[Path], stage: str) -> float:
    times = [json.loads((run / "stages.json").read_text())[stage] for run in folders]
    return sum(times) / len(times)


def gains(found: Sequence[Found]) -> Grid:
    """What each row gained over the SFT model that it starts from."""
    rows = []
    for row in found:
        if row.over_sft is None:
            continue
        by_seed = ", ".join(f"{a:.3f} -> {b:.3f}" for a, b in row.dev)
        raised = f"{sum(b > a for a, b in row.dev)} of {len(row.dev)}"
        rows.append((row.label, by_seed, raised, *row.over_sft.cells(), f"{row.seconds:.0f}"))
    header = (
        "row",
        "dev accuracy by seed, SFT's -> its own",
        "raised",
        "test minus SFT [95 %]",
        "p (Holm)",
        "real",
        "seconds",
    )
    return Grid("Gains over SFT", header, rows)


def differences(found: Sequence[Found], first: str) -> Grid | None:
    """How each row differs from the first; None where none can be compared."""
    rows = [
        (row.label, *row.over_first.cells(), ", ".join(f"{d:+.3f}" for d in row.over_first.by_seed))
        for row in found
        if row.over_first is not None
    ]
    if not rows:
        return None
    header = ("row", f"test minus {first} [95 %]", "p (Holm)", "real", "by seed")
    note = (
        f"A difference is called real where Holm's p is below {REAL} and all seeds agree on its "
        "sign."
    )
    return Grid(f"Differences from {first}", header, rows, note)


def kinds(runs: Runs, sweep: Sweep) -> Grid | None:
    """Each row's accuracy by kind of rejected text; None of one kind."""
    columns: dict[str, list[Row]] = {}
    for label, by_seed in runs.items():
        if set(runs[sweep.first]) <= by_seed.keys():
            judged = _test([by_seed[seed] for seed in runs[sweep.first]])
            for kind in judged.kinds:
                columns.setdefault(kind, []).extend(
                    replace(row, label=label)
                    for row in judged.of_kind(kind).rows()
                    if (row.label, row.condition) == ("rft", judged.own_condition)
                )
    return across("By kind of rejected text", columns) if len(columns) > 1 else None


def write_sessions(runs: Runs, sweep: Sweep) -> None:
    """A session of TensorBoard's HParams tab in each run's folder: its flags, and how it ended."""
    for row, folders in runs.items():
        for seed, folder in folders.items():
            starts = runs[sweep.first] if sweep.shares_sft else folders
            judged = _test([folder])
            accuracy = summarize(_own(judged, "rft"), judged.pairs).mean
            metrics = {
                "final/test_accuracy": accuracy,
                "final/dev_accuracy": _dev([folder], "rft")[0],
            }
            if seed in starts:
                compared = _compare([folder], "rft", [starts[seed]], "sft")
                metrics |= {"final/gain_over_sft": compared.whole.mean} if compared else {}
            hparams = {"row": row, "seed": seed, **_settings(sweep.rows[row])}
            write_hparams(folder / "hparams", hparams, metrics)


def _settings(flags: Flags) -> dict[str, Value]:
    """Flags by name: `--rft.group-size 8` is a number, `--prompt.no-think` true."""
    found: dict[str, Value] = {}
    name = ""
    for word in flags:
        if word.startswith("--"):
            name = word.removeprefix("--")
            found[name] = True
        else:
            said = word if found[name] is True else f"{found[name]} {word}"
            try:
                found[name] = float(said)
            except ValueError:
                found[name] = said
    return found


def report_sweep(runs: Runs, sweep: Sweep, *, title: str, command: str, out: Path) -> None:
    """Prints the tables, and writes `report.md`, `report.html` and `accuracy.png` into `out`, and a
    session of the HParams tab into each run."""
    made_by = provenance()  # before anything is written into the checkout
    found = collect(runs, sweep)
    rows = [row.accuracy for row in found]
    out.mkdir(parents=True, exist_ok=True)
    accuracy_figure(rows, out / "accuracy.png")
    made = (gains(found), differences(found, sweep.first), kinds(runs, sweep))
    grids = [grid for grid in made if grid is not None]
    first = runs[sweep.first]
    sections = {grid.title: grid.markdown() for grid in grids}
    sections["Command"] = f"`{command}`"
    sections["Provenance"] = f"```json\n{json.dumps(made_by, indent=2)}\n```"
    sections["Config of the first run"] = fenced(next(iter(first.values())) / "config.json")
    named = f"seed{'s' * (len(first) > 1)} {', '.join(map(str, first))}"
    title = f"{title}: unseen authors, {named}"
    path = write_report(out, title=title, rows=rows, sections=sections, figures=["accuracy.png"])
    page = write_html(path)
    write_sessions(runs, sweep)
    console = Console()
    console.print(accuracy_table(rows))
    for grid in grids:
        console.print(grid.rich())
    console.print(f"report: {path}, {page}", highlight=False, soft_wrap=True)
