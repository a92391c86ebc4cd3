import json
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.util import tensor_util

from persrm_jax.metrics import LAYOUT, Histogram, MetricsWriter, histogram, read_metrics


def _read(folder: Path) -> EventAccumulator:
    """TensorBoard's own reader, with nothing sampled away."""
    sizes = {"scalars": 0, "tensors": 0, "histograms": 0}
    events = EventAccumulator(str(folder), size_guidance=sizes)
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
    assert events.Tags()["tensors"] == ["custom_scalars__config__", "rollout/sample/text_summary"]
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


def test_values_are_counted_without_those_that_are_missing() -> None:
    found = histogram([1.0, -1.0, np.nan, 1.0, np.inf, 0.5], num_bins=4)
    assert found is not None
    assert found.edges.tolist() == [-1, -0.5, 0, 0.5, 1] and found.counts.tolist() == [1, 0, 0, 3]
    alike = histogram(np.full((2, 3), 7))
    assert alike is not None and alike.counts.sum() == 6
    assert histogram([np.nan]) is None and histogram([]) is None


def test_tensorboard_reads_histograms(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=500)
    with MetricsWriter(tmp_path) as writer:
        found = histogram(values)
        assert found is not None
        writer.histogram(3, "reward/each", found)
        writer.histogram(8, "ratio/each", Histogram(np.array([0.5, 1, 2.0]), np.array([3, 4])))
    events = _read(tmp_path / "tensorboard")
    (read,) = events.Histograms("reward/each")
    want, edges = np.histogram(values, 30)
    assert (read.step, read.histogram_value.num) == (3, 500)
    assert read.histogram_value.min == values.min() and read.histogram_value.max == values.max()
    assert read.histogram_value.bucket_limit == edges[1:].tolist()
    assert read.histogram_value.bucket == want.tolist()
    # The sums are those of the bins' middles, half a bin off at most.
    width = edges[1] - edges[0]
    assert read.histogram_value.sum == pytest.approx(values.sum(), abs=500 * width / 2)
    (ratios,) = events.Histograms("ratio/each")
    assert ratios.histogram_value.sum == 3 * 0.75 + 4 * 1.5
    assert ratios.histogram_value.sum_squares == 3 * 0.75**2 + 4 * 1.5**2


def _write_histograms(folder: Path, steps: range, first_step: int = 0, offset: int = 0) -> None:
    with MetricsWriter(folder, first_step) as writer:
        for step in steps:
            edges = np.array([0.0, 1.0 + offset])
            writer.histogram(step, "reward/each", Histogram(edges, np.array([step + 1])))


def test_histograms_and_layout_go_on_as_scalars_do(tmp_path: Path) -> None:
    """After a kill, and where a run starts from nothing again."""
    _write_histograms(tmp_path, range(6))
    for first in (4, 0):
        _write_histograms(tmp_path, range(first, 8), first, offset=1)
        events = _read(tmp_path / "tensorboard")
        found = [(e.step, e.histogram_value.max) for e in events.Histograms("reward/each")]
        assert found == [(step, 1.0 if step < first else 2.0) for step in range(8)]
        assert len(events.Tensors("custom_scalars__config__")) == 1


def test_the_layout_holds_the_charts_that_matter(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path):
        pass
    (event,) = _read(tmp_path / "tensorboard").Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(tensor_util.make_ndarray(event.tensor_proto).item())
    found = {
        category.title: {chart.title: list(chart.multiline.tag) for chart in category.chart}
        for category in layout.category
    }
    assert found == {
        category: {title: tags for title, (_, tags) in charts.items()}
        for category, charts in LAYOUT.items()
    }
