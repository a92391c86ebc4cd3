"""What a run folder holds, for tests that compare two."""

import json
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from persrm_jax.jsonl import read_records
from persrm_jax.metrics import read_metrics
from persrm_jax.types import Prediction

REPORT = ("report", "accuracy", "curves")
"""Files that are made anew each time, by their stems."""


def files(folder: Path, stage: str = "") -> dict[str, tuple[int, bytes]]:
    """Time and content of what is in a folder (but for the report, which is drawn anew)."""
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes())
        for p in (folder / stage).rglob("*")
        if p.is_file() and p.stem not in REPORT and p.suffix != ".figures"
    }


def stages_done(folder: Path) -> list[str]:
    path = folder / "stages.json"
    return list(json.loads(path.read_text())) if path.is_file() else []


def metric_rows(folder: Path, stage: str) -> list[dict[str, float]]:
    """A stage's metrics without its times."""
    rows = read_metrics(folder / stage / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def events(stage: Path) -> EventAccumulator:
    """What TensorBoard reads, all of it."""
    sizes = dict.fromkeys(("scalars", "tensors", "histograms", "images"), 0)
    loaded = EventAccumulator(str(stage / "tensorboard"), size_guidance=sizes)
    loaded.Reload()
    return loaded


def histograms(folder: Path, stage: str) -> list[tuple[str, int, object]]:
    """A stage's histograms."""
    found = events(folder / stage)
    return [
        (tag, e.step, e.histogram_value)
        for tag in found.Tags()["histograms"]
        for e in found.Histograms(tag)
    ]


def predictions(folder: Path) -> dict[str, list[Prediction]]:
    return {
        path.name: read_records(path, Prediction)
        for path in sorted((folder / "evaluation" / "test").glob("*.*.jsonl"))
    }
