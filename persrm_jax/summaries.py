"""What TensorBoard shows of a finished run: its hyperparameters and result, its figures.

Each call writes one file of events, in place of what it wrote before.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from struct import unpack

from tensorboardX import FileWriter
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import hparams as hparams_summaries
from tensorboardX.summary import scalar

Value = str | float | int | bool
_RGBA = 4
"""What TensorBoard calls the colours of a PNG with an alpha channel."""


def write_hparams(folder: Path, hparams: Mapping[str, Value], metrics: Mapping[str, float]) -> None:
    """A session of TensorBoard's HParams tab: a row of its table, a line of its parallel
    coordinates. Sessions may have different keys; what one lacks is empty there.

    Args:
        folder: of this session alone, such as RUN/hparams: scalars of folders below it would count
            as its metrics too.
        hparams: the flags in which the runs of a sweep differ. A flag whose values are all numbers
            gets an axis of numbers.
        metrics: final numbers by tag, such as {"final/test_accuracy": 0.81}.

    Raises:
        ValueError: nothing to compare by.
    """
    if not hparams or not metrics:
        raise ValueError(f"{folder}: a session needs a hyperparameter and a metric")
    # Without an experiment's summary TensorBoard joins what the sessions have; with one in each
    # session it would take the first session's for all.
    _, start, end = hparams_summaries(dict(hparams), dict(metrics))
    with _replaced(folder, ".hparams") as events:
        events.add_summary(start)
        for tag, value in metrics.items():
            events.add_summary(scalar(tag, value), 0)
        events.add_summary(end)


def write_figures(folder: Path, figures: Mapping[str, Path]) -> None:
    """PNG files by tag, such as {"eval/accuracy": RUN/accuracy.png}, for the tab of images.

    Raises:
        ValueError: a file that is no PNG.
    """
    values = [_image(tag, path) for tag, path in figures.items()]
    with _replaced(folder, ".figures") as events:
        for value in values:
            events.add_summary(Summary(value=[value]), 0)


def _image(tag: str, path: Path) -> Summary.Value:
    data = path.read_bytes()
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError(f"{path}: not a PNG")
    width, height = unpack(">II", data[16:24])
    image = Summary.Image(height=height, width=width, colorspace=_RGBA, encoded_image_string=data)
    return Summary.Value(tag=tag, image=image)


@contextmanager
def _replaced(folder: Path, suffix: str) -> Iterator[FileWriter]:
    """A file of events in `folder`, and the only one there with this suffix."""
    for path in folder.glob(f"events.out.tfevents.*{suffix}"):
        path.unlink()
    events = FileWriter(str(folder), filename_suffix=suffix)
    try:
        yield events
    finally:
        events.close()
