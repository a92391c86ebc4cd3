"""A sweep's runs and its table."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import json_format
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from experiments.ablate import AblateConfig, core_shares, jobs_of, main, run_jobs
from experiments.presets import PRESETS, parse_run
from experiments.sweep_report import Compared, collect, differences, gains, write_sessions
from experiments.sweeps import RFT_ALONE, SWEEPS, Sweep, make_sweep
from persrm_jax.evaluation.statistics import Difference
from persrm_jax.jsonl import write_records
from persrm_jax.types import Order, Pair, Prediction, right_verdict

TINIEST = (
    "--sft.steps 2 --sft.batch-size 4 --sft.eval-every 0 --rft.steps 1 --rft.prompts 2 "
    "--rft.group-size 2 --rft.eval-every 0 --rft.sampling.max-new-tokens 8 --eval.batch-size 4 "
    "--eval.sampling.max-new-tokens 8 --eval.max-pairs 2 --pairs.num-train 40 --pairs.num-dev 12 "
    "--pairs.num-test 12 --pairs.num-seen 12 --personas.num-personas 40"
).split()


@pytest.mark.parametrize("name", SWEEPS)
def test_every_row_is_a_run_of_its_own(name: str, tmp_path: Path) -> None:
    seeds = 2 if name == "reward" else 1  # each run's flags take a while to read
    cfg = AblateConfig(name, seeds=seeds, out=tmp_path)
    sweep = make_sweep(name, PRESETS["tiny"])
    jobs = jobs_of(cfg, sweep, ("--rft.steps", "7"))
    assert [(job.seed, job.row) for job in jobs] == [
        (seed, row) for seed in range(seeds) for row in sweep.rows
    ]
    made = [parse_run(PRESETS, "prog", job.args) for job in jobs]
    assert len({str(replace(run, out=None, init=None, continue_sft=False)) for run in made}) == len(
        jobs
    ), "no two rows are alike"
    for job, run in zip(jobs, made, strict=True):
        assert (run.seed, run.out, run.rft.steps, run.eval.dev) == (job.seed, job.folder, 7, True)
        start = jobs[job.seed * len(sweep.rows)].folder / "sft" / "model"
        shares = sweep.shares_sft and job.row != sweep.first
        assert run.init == (start if shares else None)
        if sweep.shares_sft:
            assert run.continue_sft == (job.row == sweep.first)


def test_each_kind_is_left_out_once_and_all_are_tested() -> None:
    pairs = replace(PRESETS["tiny"].pairs, negatives=("minor", "other_author", "random"))
    rows = make_sweep("negatives", replace(PRESETS["tiny"], pairs=pairs)).rows
    assert list(rows) == ["all kinds", "without minor", "without other_author", "without random"]
    for row, flags in rows.items():
        run = parse_run(PRESETS, "prog", flags)
        assert run.pairs.kinds_of("test") == pairs.negatives
        left_out = row.removeprefix("without ")
        assert run.pairs.kinds_of("train") == tuple(k for k in pairs.negatives if k != left_out)


def test_one_of_a_job_array(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    args = ["kl", "--seeds", "2", "--out", str(tmp_path)]
    with pytest.raises(ValueError, match="--index 8: this sweep has runs 0 to 7"):
        main([*args, "--index", "8"])
    with pytest.raises(ValueError, match="run the first rows before the others: --index 0, 4"):
        main([*args, "--index", "5"])
    with pytest.raises(SystemExit) as stopped:
        main([*args, "--index", "4", "--", "--data", str(tmp_path / "none.jsonl")])
    assert stopped.value.code == 1
    assert "failed: kl=1e-3, seed 1" in capfd.readouterr().out
    with pytest.raises(ValueError, match="no run of kl=1e-3 is finished"):
        main([*args, "--only-report"])


def test_workers_share_out_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4, 5, 6, 7, 8}, raising=False)
    assert core_shares(1) == [set()]
    assert core_shares(2) == [{4, 6, 8}, {5, 7}]
    assert core_shares(6) == [set()] * 6


def test_a_run_that_fails_is_named_and_rows_that_need_it_wait_in_vain(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cfg = AblateConfig("kl", seeds=1, jobs=2, out=tmp_path)
    flags = ("--data", str(tmp_path / "none.jsonl"))
    jobs = jobs_of(cfg, make_sweep("kl", PRESETS["tiny"]), flags)
    assert run_jobs(jobs, cfg.folder, 2, shares_sft=True) == jobs
    said = capfd.readouterr().out
    assert (
        said.count("seed 0") == 2
        and f"failed: kl=1e-3, seed 0: see {jobs[0].log(tmp_path)}" in said
    )
    assert "none.jsonl" in jobs[0].log(tmp_path).read_text()
    assert not jobs[1].log(tmp_path).exists()


def _run(folder: Path, seconds: float, credits: dict[str, dict[str, list[int]]]) -> Path:
    """A finished run; `credits` by set and judge: 1 where a pair is judged right in both orders."""
    folder.mkdir(parents=True)
    stages = {"sft": 1.0, "sft_continued": 2.0, "rft": seconds, "evaluation": 3.0}
    (folder / "stages.json").write_text(json.dumps(stages))
    for name, judges in credits.items():
        count = len(next(iter(judges.values())))
        pairs = [
            Pair(
                f"p{i}", f"a{i}", "test", "d", "", ("x",), ("1",), "c", "2", "r", "3", f"b{i}",
                "other_author", "AB", "human", 0,
            )
            for i in range(count)
        ]  # fmt: skip
        where = folder / "evaluation" / name
        write_records(where / "pairs.jsonl", pairs)
        for judge, values in judges.items():
            orders: tuple[Order, ...] = ("AB", "BA")
            rows = [
                Prediction(
                    f"p{i}", order, "1", judge, 0, 0, None, None,
                    right_verdict(order) if value else "tie", True, 1, "",
                )
                for i, value in enumerate(values)
                for order in orders
            ]  # fmt: skip
            write_records(where / f"{judge}.1.jsonl", rows)
    return folder


def test_the_table_by_hand(tmp_path: Path) -> None:
    """Right counts 1, a tie one half."""
    runs: dict[str, dict[int, Path]] = {"grpo": {}, "rloo": {}, "unfinished": {}}
    for seed, gained in enumerate([1, 0]):
        sets = {
            "test": {"sft": [1, 0], "sft_continued": [1, 1], "rft": [1, gained]},
            "dev": {"sft": [1, 0, 0, 0], "sft_continued": [1, 1, 0, 0], "rft": [1, gained, 0, 0]},
        }
        runs["grpo"][seed] = _run(tmp_path / "grpo" / f"seed{seed}", 10.0 + seed, sets)
        alone = {name: {"rft": [1] * len(judges["sft"])} for name, judges in sets.items()}
        runs["rloo"][seed] = _run(tmp_path / "rloo" / f"seed{seed}", 20.0, alone)
    sweep = Sweep({"grpo": (), "rloo": (), "unfinished": ()}, shares_sft=True)
    found = collect(runs, sweep)
    assert [row.label for row in found] == ["sft", "sft, continued", "grpo", "rloo"]
    assert [row.accuracy.accuracy.mean for row in found] == [0.75, 1.0, 0.875, 1.0]
    over_sft = [row.over_sft for row in found]
    assert [c and c.whole.mean for c in over_sft] == [None, 0.25, 0.125, 0.25]
    assert [c and c.by_seed for c in over_sft] == [None, [0.25, 0.25], [0.25, 0.0], [0.25, 0.25]]
    assert [row.over_first and row.over_first.by_seed for row in found] == [
        None,
        None,
        None,
        [0.0, 0.25],
    ]
    assert [row.dev for row in found[1:]] == [
        [(0.625, 0.75)] * 2,
        [(0.625, 0.75), (0.625, 0.625)],
        [(0.625, 1.0)] * 2,
    ]
    assert [row.seconds for row in found] == [1.0, 2.0, 10.5, 20.0]
    table = gains(found).markdown()
    assert "| grpo | 0.625 -> 0.750, 0.625 -> 0.625 | 1 of 2 | +0.125" in table
    assert "| rloo | 0.625 -> 1.000, 0.625 -> 1.000 | 2 of 2 | +0.250" in table
    assert table.count("\n") == 5
    beside = differences(found, "grpo")
    assert beside is not None and [row[0] for row in beside.rows] == ["rloo"]
    assert beside.rows[0][1].startswith("+0.125") and beside.rows[0][3] == "no"


def test_only_what_all_seeds_and_holm_agree_on_is_real() -> None:
    whole = Difference(0.1, 0.05, 0.15, 0.01)
    assert Compared(whole, [0.1, 0.2], p=0.04).is_real
    assert not Compared(whole, [0.1, -0.01], p=0.04).is_real
    assert not Compared(whole, [0.1, 0.2], p=0.06).is_real


def test_each_run_is_a_session_of_hparams(tmp_path: Path) -> None:
    sets = {name: {"sft": [1, 0], "rft": [1, 1]} for name in ("test", "dev")}
    alone = {name: {"rft": [1, 0]} for name in ("test", "dev")}
    rows = {"a": ("--rft.group-size", "8", "--variant", "grpo"), "b": ("--prompt.no-think",)}
    runs = {"a": {0: _run(tmp_path / "a", 1.0, sets)}, "b": {0: _run(tmp_path / "b", 1.0, alone)}}
    write_sessions(runs, Sweep(rows, shares_sft=True))
    wanted = {"a": (1.0, 1.0, 0.25), "b": (0.75, 0.75, 0.0)}
    for row, (test, dev, gain) in wanted.items():
        events = EventAccumulator(str(runs[row][0] / "hparams"))
        events.Reload()
        found = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
        assert found == {
            "final/test_accuracy": test,
            "final/dev_accuracy": dev,
            "final/gain_over_sft": gain,
        }
        content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        start = HParamsPluginData.FromString(content).session_start_info
        hparams = {name: json_format.MessageToDict(value) for name, value in start.hparams.items()}
        flags = (
            {"rft.group-size": 8.0, "variant": "grpo"} if row == "a" else {"prompt.no-think": True}
        )
        assert hparams == {"row": row, "seed": 0.0, **flags}


def test_runs_on_other_pairs_are_not_compared(tmp_path: Path) -> None:
    sets = {name: {"sft": [1, 0], "rft": [1, 1]} for name in ("test", "dev")}
    more = {name: {"sft": [1, 0, 1], "rft": [1, 1, 1]} for name in ("test", "dev")}
    runs = {
        "k=1": {0: _run(tmp_path / "a", 1.0, sets)},
        "k=2": {0: _run(tmp_path / "b", 1.0, more)},
    }
    found = collect(runs, Sweep({"k=1": (), "k=2": ()}, shares_sft=False))
    assert [row.label for row in found] == ["sft", "k=1", "k=2"]
    assert found[2].over_first is None and found[2].over_sft is not None


@pytest.mark.slow
def test_a_sweep_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows; done runs are not run again."""
    rows = {name: RFT_ALONE["variant"][name] for name in ("grpo", "rloo")}
    monkeypatch.setitem(RFT_ALONE, "variant", rows)
    args = ["variant", "--seeds", "1", "--jobs", "2", "--out", str(tmp_path), "--", *TINIEST]
    main(args)
    report = (tmp_path / "report.md").read_text()
    assert (
        "| rloo |" in report and "sft, continued" in report and "unseen authors, seed 0" in report
    )
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/seed0/**/*.jsonl")}
    main(args)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/seed0/**/*.jsonl")} == before
    with pytest.raises(ValueError, match="holds a run with other settings"):
        main([*args, "--rft.prompts", "4"])
