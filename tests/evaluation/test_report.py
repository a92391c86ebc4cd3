"""Tables, figures and the report hold what the rows say."""

import struct
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from persrm_jax.evaluation.report import (
    Row,
    accuracy_figure,
    accuracy_table,
    curves_figure,
    markdown_table,
    write_report,
)
from persrm_jax.evaluation.statistics import Accuracy


def make_row(label: str, condition: str, mean: float, consistency: float | None = 0.75) -> Row:
    accuracy = Accuracy(
        mean=mean,
        low=mean - 0.0625,
        high=mean + 0.0625,
        num_pairs=2000,
        num_authors=40,
        parse_rate=0.995,
        tie_rate=0.015,
        consistency=consistency,
        both_right=None if consistency is None else 0.625,
    )
    return Row(label, condition, accuracy)


ROWS = [
    make_row("stylometry", "4", 0.6875),
    make_row("SFT + RFT", "1", 0.75),
    make_row("SFT + RFT", "4", 0.8125),
    make_row("SFT + RFT", "wrong_author", 0.5, consistency=None),
]


def png_size(path: Path) -> tuple[int, int]:
    """Width and height from the file's header."""
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", header[16:24])
    return width, height


def test_markdown_table_has_the_numbers() -> None:
    lines = markdown_table(ROWS).splitlines()
    assert lines[0].split(" | ")[2] == "accuracy [95 % interval]"
    assert len(lines) == 2 + len(ROWS)
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2] == (
        "| stylometry | 4 | 0.688 [0.625, 0.750] | 2000 | 40 | 0.625 | 0.750 | 0.995 | 0.015 |"
    )
    assert lines[5].startswith("| SFT + RFT | wrong author | 0.500 [0.438, 0.562] |")
    assert lines[5].endswith("| - | - | 0.995 | 0.015 |")


def test_a_label_cannot_break_the_tables() -> None:
    row = make_row("[bold]a|b", "4", 0.5)
    assert "| [bold]a\\|b |" in markdown_table([row])
    cells = [list(column.cells) for column in accuracy_table([row]).columns]
    assert str(cells[0][0]) == "[bold]a|b"


def test_terminal_table_has_the_numbers() -> None:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(accuracy_table(ROWS))
    text = capture.get()
    assert "0.812 [0.750, 0.875]" in text
    assert "both" in text and "wrong author" in text
    assert "2000 pairs, 40 authors" in text


def test_terminal_table_fits_eighty_columns() -> None:
    rows = [replace(row, label="sft_continued") for row in ROWS]
    console = Console(width=80)
    with console.capture() as capture:
        console.print(accuracy_table(rows))
    assert "0.812 [0.750, 0.875]" in capture.get() and "sft_continued" in capture.get()
    assert "…" not in capture.get()


def test_accuracy_figure_is_a_png_that_grows_with_its_judges(tmp_path: Path) -> None:
    accuracy_figure(ROWS, tmp_path / "all.png")
    accuracy_figure(ROWS[:1], tmp_path / "new" / "one.png")
    assert png_size(tmp_path / "all.png")[1] > png_size(tmp_path / "new" / "one.png")[1]
    with pytest.raises(ValueError, match="no rows"):
        accuracy_figure([], tmp_path / "none.png")


def test_curves_figure_leaves_out_missing_tags(tmp_path: Path) -> None:
    metrics: list[dict[str, object]] = [
        {"stage": "sft", "step": s, "loss/total": 2 / s, "accuracy": None} for s in range(1, 9)
    ]
    metrics += [
        {"stage": "rft", "step": s, "reward/mean": s / 10, "kl/mean": 0.1, "loss/total": 0.5}
        for s in range(1, 5)
    ]
    curves_figure(metrics, tmp_path / "one.png", ["reward/mean", "no/such"])
    curves_figure(metrics, tmp_path / "three.png", ["reward/mean", "loss/total", "kl/mean"])
    curves_figure(metrics, tmp_path / "two.png", ["reward/mean", "loss/total", "accuracy"])
    widths = [png_size(tmp_path / f"{name}.png")[0] for name in ("one", "two", "three")]
    assert widths == sorted(set(widths))
    tags = ["loss/total", "reward/mean", "kl/mean", "step"]
    curves_figure(metrics, tmp_path / "four.png", tags)
    assert png_size(tmp_path / "four.png")[1] > png_size(tmp_path / "three.png")[1]
    with pytest.raises(ValueError, match="no row of the metrics has any of no/such"):
        curves_figure(metrics, tmp_path / "none.png", ["no/such"])


def test_report_has_title_table_figures_and_sections(tmp_path: Path) -> None:
    accuracy_figure(ROWS, tmp_path / "accuracy.png")
    path = write_report(
        tmp_path,
        title="Tiny run",
        rows=ROWS,
        sections={"Command": "```\npython -m experiments.rft\n```\n", "Notes": "Seed 0."},
        figures=["accuracy.png"],
    )
    text = path.read_text(encoding="utf-8")
    assert path == tmp_path / "report.md"
    assert text.startswith("# Tiny run\n\n| judge |")
    assert markdown_table(ROWS) in text
    order = ["| stylometry", "![accuracy](accuracy.png)", "## Command\n\n```\npython", "## Notes"]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)
    assert text.endswith("## Notes\n\nSeed 0.\n")


def test_report_refuses_a_figure_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="curves.png: no such figure"):
        write_report(tmp_path, title="Run", rows=ROWS, sections={}, figures=["curves.png"])
    assert not (tmp_path / "report.md").exists()
