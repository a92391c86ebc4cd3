import json
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from persrm_jax.metrics import MetricsWriter, read_metrics


def _read(folder: Path) -> EventAccumulator:
    """TensorBoard's own reader, with nothing sampled away."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events


def _scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(e.step, e.value) for e in _read(folder / "tensorboard").Scalars(tag)]


def _write(folder: Path, steps: range, first_step: int = 0, offset: float = 0) -> None:
    with MetricsWriter(folder, first_step) as writer:
        for step in steps:
            writer.scalars(step, {"reward/mean": float(step + offset), "kl/mean": step / 8})


def test_tensorboard_reads_scalars(tmp_path: Path) -> None:
    _write(tmp_path, range(20))
    assert set(_read(tmp_path / "tensorboard").Tags()["scalars"]) == {"reward/mean", "kl/mean"}
    assert _scalars(tmp_path, "reward/mean") == [(s, float(s)) for s in range(20)]
    assert _scalars(tmp_path, "kl/mean") == [(s, s / 8) for s in range(20)]


def test_tensorboard_reads_texts(tmp_path: Path) -> None:
    shown = "**A** naïve\n\n```\n<think>\n```\n"
    with MetricsWriter(tmp_path) as writer:
        writer.text(0, "rollout/sample", "first")
        writer.text(10, "rollout/sample", shown)
    events = _read(tmp_path / "tensorboard")
    assert events.Tags()["tensors"] == ["rollout/sample/text_summary"]
    found = events.Tensors("rollout/sample/text_summary")
    texts = [tensor_util.make_ndarray(e.tensor_proto).item().decode() for e in found]
    assert [e.step for e in found] == [0, 10]
    assert texts == ["first", shown]


def test_rows_are_one_line_a_step(tmp_path: Path) -> None:
    _write(tmp_path, range(3))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": s, "reward/mean": float(s), "kl/mean": s / 8} for s in range(3)
    ]
    assert read_metrics(tmp_path / "metrics.jsonl") == [json.loads(line) for line in lines]


def test_a_restart_drops_what_it_does_again(tmp_path: Path) -> None:
    _write(tmp_path, range(10))
    _write(tmp_path, range(6, 12), first_step=6, offset=100)
    expected = [(s, float(s)) for s in range(6)] + [(s, s + 100.0) for s in range(6, 12)]
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["reward/mean"]) for row in rows] == expected
    assert _scalars(tmp_path, "reward/mean") == expected


def test_a_restart_from_nothing_starts_over(tmp_path: Path) -> None:
    _write(tmp_path, range(5))
    _write(tmp_path, range(2), offset=7)
    assert [row["reward/mean"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [7.0, 8.0]
    assert _scalars(tmp_path, "reward/mean") == [(0, 7.0), (1, 8.0)]


def test_a_row_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    _write(tmp_path, range(3))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert [row["step"] for row in read_metrics(path)] == [0, 1]
    _write(tmp_path, range(2, 4), first_step=2)
    assert [row["step"] for row in read_metrics(path)] == [0, 1, 2, 3]
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_flushed_rows_are_on_disk_before_the_end(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        writer.scalars(0, {"loss/total": 1.5})
        writer.flush()
        assert [r["loss/total"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1.5]


def test_an_error_closes_the_files(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), MetricsWriter(tmp_path) as writer:
        writer.scalars(0, {"loss/total": float(np.float32(2.0))})
        raise RuntimeError
    assert _scalars(tmp_path, "loss/total") == [(0, 2.0)]


def test_what_is_flushed_is_on_disk(tmp_path: Path) -> None:
    """A process that is killed after a flush has lost nothing."""
    with MetricsWriter(tmp_path) as writer:
        for step in range(200):
            writer.scalars(step, {"a/x": float(step), "a/y": 1.0})
        writer.text(199, "a/text", "words")
        writer.flush()
        events = EventAccumulator(
            str(tmp_path / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}
        )
        events.Reload()
        for tag in ("a/x", "a/y"):
            assert [e.step for e in events.Scalars(tag)] == list(range(200))
        assert len(events.Tensors("a/text/text_summary")) == 1
