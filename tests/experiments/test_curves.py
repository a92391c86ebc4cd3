import json
from pathlib import Path

import pytest

from experiments.curves import main


def _run(folder: Path) -> str:
    path = folder / "rft" / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    rows = [{"step": step, "reward/mean": step / 8, "kl/mean": 0.1} for step in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_runs_are_drawn_in_the_same_panels(tmp_path: Path) -> None:
    runs = [_run(tmp_path / name) for name in ("plain", "blown")]
    out = tmp_path / "figures" / "kl.png"
    main([*runs, "--tags", "kl/mean", "reward/mean", "--out", str(out)])
    assert out.read_bytes().startswith(b"\x89PNG")
    alone = tmp_path / "alone.png"
    main([*runs[:1], "--tags", "kl/mean", "reward/mean", "--out", str(alone)])
    assert alone.read_bytes() != out.read_bytes()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "name at least one run folder"),
        (["RUN", "--stage", "sft"], "RUN: no metrics of the stage sft in this folder"),
        (["RUN", "--tags", "no/such"], "no row of the metrics has any of no/such"),
    ],
)
def test_what_cannot_be_drawn_is_said(tmp_path: Path, args: list[str], says: str) -> None:
    run = _run(tmp_path / "run")
    with pytest.raises(ValueError, match=says.replace("RUN", run)):
        main([word.replace("RUN", run) for word in args])
