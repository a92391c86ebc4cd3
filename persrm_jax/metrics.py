"""Scalars and sampled texts of a run -> TensorBoard and JSON Lines."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tensorboardX import SummaryWriter

from persrm_jax.distributed import is_main
from persrm_jax.jsonl import read_rows, write_text


class MetricsWriter:
    """Writes one stage's metrics: `FOLDER/metrics.jsonl` and TensorBoard events in
    `FOLDER/tensorboard`, each tag as `group/name`.

    A stage that starts again at `first_step` drops what was logged at or after it, so that no step
    appears twice. Of several processes the first one writes.
    """

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        self._writes = is_main()
        if not self._writes:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        kept = []
        if path.is_file():
            kept = [row for row in _whole_rows(path) if row["step"] < first_step]
        write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(
            str(folder / "tensorboard"),
            purge_step=first_step,
            filename_suffix=f".{first_step:06d}",
        )

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


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; a last line that was cut off is left out."""
    return _whole_rows(path) if path.is_file() else []


def _whole_rows(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):
        write_text(path, text[: text.rfind("\n") + 1])
    return [row for _, row in read_rows(path)]
