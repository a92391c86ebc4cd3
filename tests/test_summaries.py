from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from persrm_jax.summaries import write_figures, write_hparams


def _read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


def test_a_session_has_its_hyperparameters_and_metrics(tmp_path: Path) -> None:
    hparams = {"variant": "dapo", "loss.kl-coef": 1e-3, "rft.group-size": 8, "rft.drop-flat": True}
    write_hparams(tmp_path / "run", hparams, {"eval/test_accuracy": 0.8125, "eval/gain": -0.25})
    events = _read(tmp_path / "run")
    found = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    session = metadata.parse_session_start_info_plugin_data(found).hparams
    assert session["variant"].string_value == "dapo"
    assert session["loss.kl-coef"].number_value == 1e-3
    assert session["rft.group-size"].number_value == 8
    assert session["rft.drop-flat"].bool_value is True and len(session) == 4
    assert "_hparams_/session_end_info" in events.summary_metadata
    assert "_hparams_/experiment" not in events.summary_metadata
    assert [(e.step, e.value) for e in events.Scalars("eval/test_accuracy")] == [(0, 0.8125)]
    assert [(e.step, e.value) for e in events.Scalars("eval/gain")] == [(0, -0.25)]


def test_a_session_that_is_written_again_replaces_itself_alone(tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.1.other").write_bytes(b"")
    for value in (0.5, 0.75):
        write_hparams(tmp_path, {"kl": value}, {"eval/gain": value})
    assert len(list(tmp_path.iterdir())) == 2
    assert (tmp_path / "events.out.tfevents.1.other").exists()
    assert [e.value for e in _read(tmp_path).Scalars("eval/gain")] == [0.75]


@pytest.mark.parametrize(("hparams", "metrics"), [({}, {"a": 1.0}), ({"a": 1}, {})])
def test_a_session_without_either_is_refused(
    tmp_path: Path, hparams: dict[str, int], metrics: dict[str, float]
) -> None:
    with pytest.raises(ValueError, match="needs a hyperparameter and a metric"):
        write_hparams(tmp_path / "run", hparams, metrics)
    assert not (tmp_path / "run").exists()


def test_figures_come_back_byte_for_byte(tmp_path: Path) -> None:
    figure = Figure(figsize=(2, 1), dpi=50)
    figure.subplots().plot(np.arange(3))
    path = tmp_path / "accuracy.png"
    figure.savefig(path)
    for _ in range(2):
        write_figures(tmp_path / "board", {"eval/accuracy": path, "eval/again": path})
    events = _read(tmp_path / "board")
    assert sorted(events.Tags()["images"]) == ["eval/accuracy", "eval/again"]
    (image,) = events.Images("eval/accuracy")
    assert image.encoded_image_string == path.read_bytes()
    assert (image.width, image.height, image.step) == (100, 50, 0)


def test_what_is_no_png_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("<svg/>")
    with pytest.raises(ValueError, match="a.png: not a PNG"):
        write_figures(tmp_path / "board", {"eval/a": tmp_path / "a.png"})
    assert not (tmp_path / "board").exists()
