"""Accuracies and training metrics as tables, figures and one Markdown report."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from rich.text import Text

from persrm_jax.evaluation.statistics import Accuracy
from persrm_jax.jsonl import write_text

COLUMNS = (
    "judge",
    "exemplars",
    "accuracy [95 % interval]",
    "pairs",
    "authors",
    "both orders right",
    "consistency",
    "parsed",
    "ties",
)
_COUNTS = ("pairs", "authors")
_SHORT = {
    "accuracy [95 % interval]": "accuracy [95 %]",
    "both orders right": "both",
    "consistency": "alike",
}
CURVE_TAGS = (
    "loss/total",
    "reward/mean",
    "eval/dev_accuracy",
    "kl/mean",
    "entropy/mean",
    "length/completion",
)
"""Metrics that `curves_figure` draws unless told otherwise."""

_READING = (
    "Accuracy counts ties one half and unparsed answers as wrong; its interval is a bootstrap over "
    "the authors of both texts. *Both orders right* and *consistency* (the same text preferred in "
    "both orders) are shares of pairs; *parsed* and *ties* are shares of judgements."
)
_INK, _MUTED = "#222222", "#8a8a8a"
_WRONG_AUTHOR = "#e3b7a0"
_SHADES = ("#1f4e79", "#4f8fc4", "#16817a", "#7a5195", "#b07aa1", "#59a14f")


@dataclass(frozen=True)
class Row:
    """One judge in one condition (number of exemplars, or `wrong_author`)."""

    label: str
    condition: str
    accuracy: Accuracy


def accuracy_table(rows: Sequence[Row]) -> Table:
    """The rows for a terminal of 80 columns; the caption counts pairs and authors.

    *both*: right in both orders; *alike*: the same text preferred in both (consistency).
    """
    counts = sorted({(row.accuracy.num_pairs, row.accuracy.num_authors) for row in rows})
    caption = "; ".join(f"{pairs} pairs, {authors} authors" for pairs, authors in counts)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 0), show_edge=False, caption=caption)
    for number, column in enumerate(COLUMNS):
        if column not in _COUNTS:
            justify: Literal["left", "right"] = "left" if number < 2 else "right"
            table.add_column(_SHORT.get(column, column), justify=justify, no_wrap=True)
    for row in rows:
        named = zip(COLUMNS, _cells(row), strict=True)
        table.add_row(*(Text(cell) for column, cell in named if column not in _COUNTS))
    return table


def markdown_table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [COLUMNS, ("---", "---", *["---:"] * (len(COLUMNS) - 2))]
    lines += [tuple(cell.replace("|", "\\|") for cell in _cells(row)) for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def accuracy_figure(rows: Sequence[Row], path: Path) -> None:
    """Draws each judge on a line: a point and interval a condition, and chance; PNG.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("no rows to draw")
    labels = list(dict.fromkeys(row.label for row in rows))
    # The wrong author's exemplars come last and lowest in a slot, as a control does.
    conditions = sorted({row.condition for row in rows}, key=_condition_rank)
    colors = dict(zip([c for c in conditions if c != "wrong_author"], _SHADES * 9, strict=False))
    colors["wrong_author"] = _WRONG_AUTHOR

    height = 1.3 + len(labels) * max(0.42, 0.2 * len(conditions))
    figure = Figure(figsize=(7.2, height), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.axvline(0.5, color=_MUTED, linestyle="--", linewidth=1, zorder=1)
    for place, condition in enumerate(conditions):
        drawn = [row for row in rows if row.condition == condition]
        offset = 0.62 * (place - (len(conditions) - 1) / 2) / len(conditions)
        means = [row.accuracy.mean for row in drawn]
        axes.errorbar(
            means,
            [labels.index(row.label) + offset for row in drawn],
            # Rounding may leave a degenerate interval a hair's breadth off its mean.
            xerr=[
                [max(row.accuracy.mean - row.accuracy.low, 0.0) for row in drawn],
                [max(row.accuracy.high - row.accuracy.mean, 0.0) for row in drawn],
            ],
            fmt="o",
            markersize=5,
            linewidth=1.6,
            color=colors[condition],
            label=condition_phrase(condition),
            zorder=2,
        )
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.45, -0.55)
    lowest, highest = min(r.accuracy.low for r in rows), max(r.accuracy.high for r in rows)
    axes.set_xlim(max(min(lowest, 0.45) - 0.03, -0.02), min(max(highest, 0.55) + 0.03, 1.02))
    axes.set_xlabel("pairwise accuracy, 95 % interval over authors (dashed: chance)", color=_INK)
    _plain(axes)
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    figure.legend(loc="outside upper right", ncols=min(len(conditions), 4), frameon=False)
    _save(figure, path)


def curves_figure(
    metrics: Sequence[dict[str, Any]], path: Path, tags: Sequence[str] = CURVE_TAGS
) -> None:
    """Draws a panel for each of `tags` that some row has, against `step`, a line for each `stage`.

    Args:
        metrics: rows of `metrics.jsonl`, such as {"stage": "rft", "step": 3, "reward/mean": 0.4}.
        path: of the PNG.
        tags: names of metrics; those that no row has are left out.

    Raises:
        ValueError: no row has any of the tags.
    """
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for tag in tags:
        for row in metrics:
            if row.get(tag) is not None:
                by_stage = curves.setdefault(tag, defaultdict(list))
                by_stage[row.get("stage", "")].append((row["step"], row[tag]))
    if not curves:
        raise ValueError(f"no row of the metrics has any of {', '.join(tags)}")
    stages = list(dict.fromkeys(row.get("stage", "") for row in metrics))  # as they were run

    num_columns = 2 if len(curves) == 4 else min(len(curves), 3)
    num_lines = -(-len(curves) // num_columns)
    size = (3.1 * num_columns + 0.4, 2.3 * num_lines + 0.5)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    panels = figure.subplots(num_lines, num_columns, squeeze=False).ravel()
    for panel, (tag, by_stage) in zip(panels, curves.items(), strict=False):
        for stage, points in by_stage.items():
            steps, values = zip(*sorted(points), strict=True)
            color = _SHADES[stages.index(stage) % len(_SHADES)]
            marker = "o" if len(points) < 40 else ""
            panel.plot(steps, values, color=color, linewidth=1.4, marker=marker, markersize=3)
        panel.set_title(tag, fontsize=10, loc="left", color=_INK)
        panel.set_xlabel("step", fontsize=9, color=_INK)
        panel.grid(color="#eeeeee", linewidth=0.8)
        panel.locator_params(axis="x", integer=True, nbins=5)
        _plain(panel)
    for panel in panels[len(curves) :]:
        panel.set_axis_off()
    if len(stages) > 1:
        for number, stage in enumerate(stages):
            figure.axes[0].plot([], [], color=_SHADES[number % len(_SHADES)], label=stage)
        figure.legend(loc="outside upper right", ncols=len(stages), frameon=False)
    _save(figure, path)


def write_report(
    folder: Path, *, title: str, rows: list[Row], sections: dict[str, str], figures: list[str]
) -> Path:
    """Writes `report.md`: title, table, figures, sections.

    Args:
        folder: of the report and its figures.
        title: the heading.
        rows: of the accuracy table.
        sections: Markdown text by heading, such as command, config, provenance and notes.
        figures: file names in `folder`.

    Raises:
        ValueError: a figure that is not in `folder`.
    """
    for figure in figures:
        if not (folder / figure).is_file():
            raise ValueError(f"{folder / figure}: no such figure")
    parts = [f"# {title}"]
    if rows:
        parts += [markdown_table(rows).rstrip(), _READING]
    parts += [f"![{Path(figure).stem.replace('_', ' ')}]({figure})" for figure in figures]
    parts += [f"## {heading}\n\n{text.strip()}" for heading, text in sections.items()]
    path = folder / "report.md"
    write_text(path, "\n\n".join(parts) + "\n")
    return path


def _cells(row: Row) -> tuple[str, ...]:
    a = row.accuracy
    return (
        row.label,
        row.condition.replace("_", " "),
        f"{a.mean:.3f} [{a.low:.3f}, {a.high:.3f}]",
        str(a.num_pairs),
        str(a.num_authors),
        "-" if a.both_right is None else f"{a.both_right:.3f}",
        "-" if a.consistency is None else f"{a.consistency:.3f}",
        f"{a.parse_rate:.3f}",
        f"{a.tie_rate:.3f}",
    )


def _condition_rank(condition: str) -> tuple[bool, int, str]:
    """Counts in their order, then words."""
    return (not condition.isdigit(), int(condition) if condition.isdigit() else 0, condition)


def condition_phrase(condition: str, *, short: bool = False) -> str:
    """A number of exemplars, or `wrong_author`, in words."""
    if condition.isdigit() and short:
        return f"k = {condition}"
    if condition.isdigit():
        return f"{condition} exemplar{'' if condition == '1' else 's'}"
    return condition.replace("_", " ")


def _plain(axes: Axes) -> None:
    """Only the axes that carry numbers, in quiet ink."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_MUTED)
    axes.tick_params(colors=_INK, labelsize=9, length=3, color=_MUTED)
    axes.set_axisbelow(True)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
