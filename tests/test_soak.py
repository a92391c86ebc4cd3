import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.soak import faults, main, measure

MIB = 2**20


def write_run(folder: Path, steps: int = 40, **changed: Any) -> Path:
    """A run's leavings; `changed` maps a tag to its values from step 20 on."""
    stage = folder / "rft"
    for path in (stage / "checkpoints" / "20", stage / "checkpoints" / "40", stage / "model"):
        path.mkdir(parents=True)
        (path / "data").write_bytes(bytes(MIB))
    rows = []
    for step in range(steps):
        row = {"time/memory_gib": 2.0, "time/tokens_per_s": 100.0, "time/step_s": 9.0}
        row |= {"time/compilations": 5.0 if step == 0 else 0.0}
        row |= {"length/completion": 50.0, "reward/mean": 0.1}
        rows.append({"step": step, **row, **(changed if step >= 20 else {})})
    (stage / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "provenance.json").write_text('{"commit": "abc"}')
    return folder


def test_a_steady_run_is_measured(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    out = tmp_path / "soak.json"
    main(["--run", str(run), "--out", str(out)])
    found = json.loads(out.read_text())
    assert found["steps"] == 40 and found["hours"] == pytest.approx(0.1)
    assert found["memory_gib"] == {"second_tenth": 2.0, "last_tenth": 2.0}
    assert found["compilations"] == {"first_tenth": 5, "after": 0}
    assert found["disk"]["checkpoints"] == [20, 40]
    assert found["disk"]["checkpoints_mib"] == 2.0
    assert 0 < found["disk"]["logs_mib"] < 0.1
    assert found["provenance"] == {"commit": "abc"}
    assert out.with_suffix(".png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("tag", "value", "why"),
    [
        ("time/memory_gib", 2.1, "memory grew from 2.00 to 2.10 GiB"),
        ("time/compilations", 1.0, "20 compilations after the first tenth"),
        ("time/tokens_per_s", 80.0, "throughput fell from 100 to 80 tokens/s"),
    ],
)
def test_a_run_that_is_not_is_said_to_be(tmp_path: Path, tag: str, value: float, why: str) -> None:
    run = write_run(tmp_path / "run", **{tag: value})
    assert faults(measure(run / "rft")) == [why]
    with pytest.raises(ValueError, match=why):
        main(["--run", str(run)])


def test_a_short_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="19 steps logged; a soak needs at least 20"):
        measure(write_run(tmp_path / "run", steps=19) / "rft")
