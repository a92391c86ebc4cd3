"""Scalars, histograms and sampled texts of a run -> TensorBoard and JSON Lines."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from tensorboardX import SummaryWriter

from persrm_jax.distributed import is_main
from persrm_jax.jsonl import write_text

LAYOUT = {
    "RFT": {
        "reward": ["Multiline", ["reward/mean", "reward_part/.*"]],
        "accuracy and format": [
            "Multiline",
            ["reward/accuracy", "reward/format", "eval/dev_accuracy"],
        ],
        "KL and entropy": ["Multiline", ["kl/mean", "entropy/mean"]],
        "clip fractions": ["Multiline", ["ratio/clip_fraction_low", "ratio/clip_fraction_high"]],
        "groups with a gradient": ["Multiline", ["reward/varied_groups", "reward/kept_groups"]],
        "lengths": ["Multiline", ["length/completion", "length/longest"]],
        "time shares": ["Multiline", ["time/rollout_share", "time/train_share"]],
    },
    "SFT": {
        "loss and entropy": ["Multiline", ["loss/total", "entropy/mean"]],
        "dev accuracy": ["Multiline", ["eval/dev_accuracy"]],
    },
}
"""TensorBoard's tab of custom scalars: the few curves that say how a run is doing, by tag."""


class Histogram(NamedTuple):
    """Values, counted between one edge and the next."""

    edges: Float[np.ndarray, " num_bins+1"]
    """Ascending and finite."""
    counts: Int[np.ndarray, " num_bins"]


def histogram(values: Any, num_bins: int = 30) -> Histogram | None:
    """Counts an array's values, but for those that are not finite; None without any."""
    flat = np.ravel(np.asarray(values, np.float64))
    flat = flat[np.isfinite(flat)]
    if not len(flat):
        return None
    counts, edges = np.histogram(flat, num_bins)
    return Histogram(edges, counts)


class MetricsWriter:
    """Writes one stage's metrics: `FOLDER/metrics.jsonl` and TensorBoard events in
    `FOLDER/tensorboard`, each tag as `group/name`.

    A stage that starts again at `first_step` drops what was logged at or after it, so that no step
    appears twice. Of several processes the first one writes.
    """

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        path = folder / "metrics.jsonl"
        self.kept = [row for row in read_metrics(path) if row["step"] < first_step]
        """The steps that were logged before."""
        self._writes = is_main()
        if not self._writes:
            return
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(json.dumps(row) + "\n" for row in self.kept))
        self._file = path.open("a", encoding="utf-8")
        self._board = _without_queue(
            SummaryWriter(
                str(folder / "tensorboard"),
                purge_step=first_step,
                filename_suffix=f".{first_step:06d}",
            )
        )
        if first_step == 0:  # a stage that goes on has it already
            self._board.add_custom_scalars(LAYOUT)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs one step's values."""
        if not self._writes:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for tag, value in values.items():
            self._board.add_scalar(tag, value, step)

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Logs a text that TensorBoard shows as Markdown."""
        if self._writes:
            self._board.add_text(tag, markdown, step)

    def histogram(self, step: int, tag: str, found: Histogram) -> None:
        """Logs how values are spread, for TensorBoard alone."""
        if not self._writes:
            return
        middles = (found.edges[:-1] + found.edges[1:]) / 2
        self._board.add_histogram_raw(
            tag,
            min=float(found.edges[0]),
            max=float(found.edges[-1]),
            num=int(found.counts.sum()),
            sum=float(found.counts @ middles),
            sum_squares=float(found.counts @ middles**2),
            bucket_limits=found.edges[1:].tolist(),
            bucket_counts=found.counts.tolist(),
            global_step=step,
        )

    def flush(self) -> None:
        """Hands what was logged to the disk: called before a checkpoint names the step as done."""
        if self._writes:
            self._file.flush()
            self._board.flush()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writes:
            self._file.close()
            self._board.close()


def _without_queue(board: SummaryWriter) -> SummaryWriter:
    """tensorboardX queues events, and its `flush` does not wait for the queue (2.6.5): a crash
    would lose some of steps that a checkpoint has passed. Here they are written at once."""
    events = board.file_writer.event_writer
    events._worker.stop()  # ends when the queue is empty
    events.add_event = events._ev_writer.write_event
    return board


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; a last line that was cut off is left out."""
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), 1):
        if line.endswith("\n"):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error.msg})") from None
    return rows
