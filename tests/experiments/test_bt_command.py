"""`python -m experiments.bt`, in process, on a shrunken `tiny`."""

from pathlib import Path

import pytest

import experiments.bt
from persrm_jax.evaluation.judged import read_judged
from persrm_jax.jsonl import read_records, write_records
from persrm_jax.metrics import read_metrics
from persrm_jax.types import Pair, Prediction

ARGS = (
    "--personas.num-personas 24 --personas.texts 8 --pairs.num-train 60 --pairs.num-dev 6 "
    "--pairs.num-test 12 --pairs.num-seen 6 --bt.steps 3 --bt.batch-size 8 --bt.eval-every 2 "
    "--bt.save-every 2 --eval.batch-size 8"
).split()


@pytest.mark.slow
def test_it_trains_scores_and_is_not_done_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    args = [*ARGS, "--out", str(out), "--mesh", "8x1"]
    experiments.bt.main(args)
    said = capsys.readouterr().out
    assert "wrong author" in said and "unseen authors:" in said and "training authors" in said
    rows = read_metrics(out / "bt" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert [("eval/dev_accuracy" in row) for row in rows] == [False, True, False]
    for name, count in (("test", 12), ("seen", 6)):
        folder = out / "evaluation" / name
        pairs = read_records(folder / "pairs.jsonl", Pair)
        assert len(pairs) == count
        for condition in ("1", "wrong_author"):
            found = read_records(folder / f"bt.{condition}.jsonl", Prediction)
            assert [(p.pair_id, p.order) for p in found] == [
                (pair.pair_id, order) for pair in pairs for order in ("AB", "BA")
            ]
            for ab, ba in zip(found[::2], found[1::2], strict=True):
                assert (ab.score_a, ab.score_b) == (ba.score_b, ba.score_a)
                assert 0 < ab.score_a < 10 and ab.verdict != ba.verdict
        rows = [(row.label, row.condition) for row in read_judged([folder]).rows()]
        assert rows[-2:] == [("bt", "1"), ("bt", "wrong_author")]
        assert ("stylometry", "1") in rows and not any(row[0] == "base" for row in rows)

    files = {p: p.stat().st_mtime_ns for p in (out / "bt").rglob("*") if p.is_file()}
    kept = out / "evaluation" / "test" / "bt.1.jsonl"
    before = kept.read_bytes()
    kept.unlink()
    experiments.bt.main(args)
    assert kept.read_bytes() == before, "what is missing is scored anew, by the saved model"
    assert {p: p.stat().st_mtime_ns for p in (out / "bt").rglob("*") if p.is_file()} == files

    kept.unlink()
    write_records(out / "evaluation" / "test" / "pairs.jsonl", pairs)
    with pytest.raises(ValueError, match=r"evaluation/test holds predictions about other pairs"):
        experiments.bt.main(args)
    with pytest.raises(ValueError, match=r"--bt.steps 3, now 4"):
        experiments.bt.main([*args, "--bt.steps", "4"])
    with pytest.raises(ValueError, match=r"--bt.batch-size is 12, which 8 does not divide"):
        experiments.bt.main([*args, "--bt.batch-size", "12"])
