"""The whole job, in process, on a shrunken `tiny`: once whole, once interrupted at every stage, and
once on another mesh. Untrained models write no verdicts, so the test reads one from a completion's
length: rewards then differ within groups, and RFT has a gradient."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import read_run
from jax.experimental.compilation_cache import compilation_cache

import experiments.evaluate
import experiments.judges
import experiments.report
import experiments.rft
import experiments.sft
import experiments.synthesize
import persrm_jax.rl.rollout
import persrm_jax.training.rft
from experiments.presets import FREE_FIELDS, PRESETS, RunConfig
from persrm_jax.data.personas import PersonaConfig, make_personas
from persrm_jax.data.prompts import Judgement
from persrm_jax.jsonl import read_records
from persrm_jax.metrics import read_metrics
from persrm_jax.models.load import load_model
from persrm_jax.runs import RunFolder
from persrm_jax.sampling import SamplingConfig
from persrm_jax.sharding import MeshShape, make_mesh
from persrm_jax.training.step import TrainState
from persrm_jax.types import Document, Trace, right_verdict

TINY = PRESETS["tiny"]
SMALL = replace(
    TINY,
    personas=PersonaConfig(num_personas=24, texts=8, clauses=2, elsewhere=4),
    pairs=replace(
        TINY.pairs,
        exemplars_shared_by=3,
        num_train=60,
        num_dev=6,
        num_test=12,
        num_seen=6,
        num_elsewhere=6,
    ),
    sft=replace(TINY.sft, steps=3, batch_size=4, group_size=2, save_every=2),
    rft=replace(
        TINY.rft,
        steps=2,
        prompts=8,
        group_size=2,
        sampling=SamplingConfig(max_new_tokens=24),
        save_every=2,
    ),
    eval=replace(
        TINY.eval, batch_size=8, sampling=SamplingConfig(max_new_tokens=24, temperature=0.0)
    ),
    continue_sft=True,
    rejection_sft=True,
)
STAGES = ["data", "sft", "rft", "sft_continued", "sft_rejection", "evaluation"]
ROLLOUTS: list[np.ndarray] = []
"""Completions of every rollout, newest last."""


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs of this file share what XLA compiles."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update(names[0], str(tmp_path_factory.mktemp("xla")))
    jax.config.update(names[1], 0.0)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module", autouse=True)
def _rewards_that_differ() -> Iterator[None]:
    def by_length(text: str, cfg: object) -> Judgement:
        return Judgement("A", 6.0, 4.0) if len(text) % 2 else Judgement("B", 1.0, 2.0)

    roll_out = persrm_jax.training.rft.roll_out

    def recorded(*args: Any, **kwargs: Any) -> Any:
        for asked, rollout in roll_out(*args, **kwargs):
            ROLLOUTS.append(rollout.groups.tokens)
            yield asked, rollout

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(persrm_jax.rl.rollout, "parse_judgement", by_length)
        patch.setattr(persrm_jax.training.rft, "roll_out", recorded)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, list[np.ndarray]]:
    """A whole run, and the completions that its RFT sampled."""
    cfg = replace(SMALL, out=tmp_path_factory.mktemp("runs") / "whole")
    begin = len(ROLLOUTS)
    experiments.rft.run_all(cfg)
    return cfg, ROLLOUTS[begin:]


def test_every_stage_is_done_and_reported(finished: tuple) -> None:
    out = finished[0].out
    assert read_run.stages_done(out) == STAGES
    report = (out / "report.md").read_text()
    for judge in ("chance", "char_ngrams", "base", "sft", "sft_continued", "rft"):
        assert f"| {judge}" in report or judge in report, judge
    for figure in ("accuracy.png", "curves.png"):
        assert (out / figure).read_bytes().startswith(b"\x89PNG")
        assert figure in report
        assert f'alt="{Path(figure).stem}"' in (out / "report.html").read_text()
    assert [row["step"] for row in read_run.metric_rows(out, "sft")] == [0, 1, 2]
    assert [row["step"] for row in read_run.metric_rows(out, "rft")] == [0, 1]
    assert {row["reward/varied_groups"] for row in read_run.metric_rows(out, "rft")} != {0.0}


def test_every_model_is_asked_about_every_pair_in_both_orders(finished: tuple) -> None:
    found = read_run.predictions(finished[0].out)
    judges = {name.split(".")[0] for name in found}
    assert judges >= {"base", "sft", "sft_continued", "rft", "length", "char_ngrams"}
    for name, predictions in found.items():
        asked = {(p.pair_id, p.order) for p in predictions}
        assert asked == {(f"test-{i:06d}", o) for i in range(12) for o in ("AB", "BA")}, name
        assert len(predictions) == 24


def test_the_rival_is_trained_on_the_models_own_right_answers(finished: tuple) -> None:
    traces = read_records(finished[0].out / "sft_rejection" / "traces.jsonl", Trace)
    assert traces and len({(t.pair_id, t.order, t.response) for t in traces}) == len(traces)
    for trace in traces:
        assert trace.teacher == "sft"
        verdict = "A" if len(trace.response) % 2 else "B"  # as this file's judge reads it
        assert verdict == trace.verdict == right_verdict(trace.order)
    asked = {trace.pair_id for trace in traces}
    drawn = SMALL.rft.steps * SMALL.rft.prompts * SMALL.rft.group_size
    assert len(traces) <= drawn and all(pair_id.startswith("train-") for pair_id in asked)


def test_the_models_that_were_trained_differ(finished: tuple) -> None:
    mesh = make_mesh(MeshShape(1, 1))
    trees = [
        load_model(finished[0].out / stage / "model", mesh, "float32").params
        for stage in ("sft", "rft", "sft_continued")
    ]
    weights = [np.asarray(tree["layers"]["q"]["kernel"]) for tree in trees]
    assert (weights[0] != weights[1]).any() and (weights[0] != weights[2]).any()
    assert all(np.isfinite(w).all() for w in weights)


def test_tensorboard_reads_what_rft_logged(finished: tuple) -> None:
    events = read_run.events(finished[0].out / "rft")
    wanted = {
        "reward/mean",
        "reward/accuracy",
        "kl/mean",
        "entropy/mean",
        "length/completion",
        "loss/learning_rate",
        "time/step_s",
        "time/rollout_s",
        "time/train_s",
        "time/rollout_tokens_per_s",
        "time/train_tokens_per_s",
    }
    assert wanted <= set(events.Tags()["scalars"])
    rows = read_metrics(finished[0].out / "rft" / "metrics.jsonl")
    for tag in wanted:
        found = [(e.step, e.value) for e in events.Scalars(tag)]
        assert found == [(row["step"], pytest.approx(row[tag], rel=1e-6)) for row in rows], tag
    texts = events.Tensors("rollout/sample/text_summary")
    assert texts and b"#### Completions" in texts[0].tensor_proto.string_val[0]
    assert set(events.Tags()["histograms"]) == {"reward/each", "advantage/each", "length/each"}
    (figure,) = read_run.events(finished[0].out / "evaluation").Images("eval/accuracy")
    assert figure.encoded_image_string == (finished[0].out / "accuracy.png").read_bytes()


def test_running_again_does_nothing(finished: tuple) -> None:
    before = read_run.files(finished[0].out)
    experiments.rft.run_all(finished[0])
    assert read_run.files(finished[0].out) == before


def _stop_at(make_step: Callable, at: int, seen: list[int]) -> Callable:
    """Ctrl-C in step `at` (-1: never) of the step function that `make_step` makes."""

    def make(*args: Any, **kwargs: Any) -> Callable:
        step_fn = make_step(*args, **kwargs)

        def stepped(state: TrainState, step: int) -> Any:
            seen.append(step)
            if step == at:
                os.kill(os.getpid(), signal.SIGINT)
            return step_fn(state, step)

        return stepped

    return make


def test_a_run_that_is_interrupted_everywhere_ends_the_same(
    finished: tuple, tmp_path: Path
) -> None:
    cfg = replace(SMALL, out=tmp_path / "run")
    done: dict[str, dict] = {}
    steps: dict[str, list[int]] = {"sft": [], "rft": [], "sft_continued": []}

    def interrupt(stage: str, target: object, name: str, replacement: Callable) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(target, name, replacement)
            with pytest.raises(KeyboardInterrupt):
                experiments.rft.run_all(cfg)
        finished_stages = STAGES[: STAGES.index(stage)]
        assert read_run.stages_done(cfg.out) == finished_stages
        for earlier in finished_stages:
            now = read_run.files(cfg.out, earlier)
            assert done.setdefault(earlier, now) == now, f"{earlier} was touched during {stage}"

    def stopped(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    interrupt("data", experiments.synthesize, "make_traces", stopped)
    make_sft, make_rft = experiments.sft.make_sft_step, experiments.rft.make_rft_step
    make = _stop_at(make_sft, 0, steps["sft"])
    interrupt("sft", experiments.sft, "make_sft_step", make)
    data = {p.name: p.stat().st_mtime_ns for p in cfg.out.glob("*.jsonl")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments.sft, "make_sft_step", _stop_at(make_sft, -1, steps["sft"]))
        interrupt("rft", experiments.rft, "make_rft_step", _stop_at(make_rft, 0, steps["rft"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments.rft, "make_rft_step", _stop_at(make_rft, -1, steps["rft"]))
        make = _stop_at(make_sft, 1, steps["sft_continued"])
        interrupt("sft_continued", experiments.sft, "make_sft_step", make)
    judge_of = experiments.judges.judge_of
    asked: list[str] = []

    def judging(*args: Any, **kwargs: Any) -> Callable:
        judge = judge_of(*args, **kwargs)

        def judge_once(params: object, pairs: object, condition: str, label: str) -> Any:
            if len(asked) == 1:
                raise KeyboardInterrupt
            asked.append(f"{label}.{condition}.jsonl")
            return judge(params, pairs, condition, label)

        return judge_once

    interrupt("evaluation", experiments.judges, "judge_of", judging)
    judged = cfg.out / "evaluation" / "test" / asked[0]
    written = judged.stat().st_mtime_ns

    experiments.rft.run_all(cfg)

    assert read_run.stages_done(cfg.out) == STAGES and (cfg.out / "report.md").is_file()
    assert steps["sft"] == [0, 1, 2] and steps["rft"] == [0, 1], "no step was done twice"
    assert steps["sft_continued"] == [0, 1]
    assert judged.stat().st_mtime_ns == written
    assert {p.name: p.stat().st_mtime_ns for p in cfg.out.glob("*.jsonl")} == data
    for stage in ("sft", "rft", "sft_continued"):
        assert read_run.metric_rows(cfg.out, stage) == read_run.metric_rows(finished[0].out, stage)
        assert read_run.histograms(cfg.out, stage) == read_run.histograms(finished[0].out, stage)
    assert read_run.predictions(cfg.out) == read_run.predictions(finished[0].out)


def _texts(path: Path, num_people: int = 6) -> Path:
    documents = make_personas(PersonaConfig(num_personas=num_people, texts=6, clauses=10), 9)
    rows = [{"author": d.author, "text": d.text} for d in documents]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_run_scores_any_documents_file(finished: tuple, tmp_path: Path) -> None:
    before = read_run.files(finished[0].out)
    data = _texts(tmp_path / "letters.jsonl")
    args = ["--run", str(finished[0].out), "--data", str(data), "--max-pairs", "2"]
    out = ["--json", str(tmp_path / "OUT.json"), "--out", str(tmp_path / "scored")]
    experiments.evaluate.main([*args, *out])
    result = json.loads((tmp_path / "OUT.json").read_text())
    rows = {(row["label"], row["condition"]): row["accuracy"] for row in result["rows"]}
    for judge in ("length", "base", "sft", "sft_continued", "sft_rejection", "rft"):
        for condition in ("1", "wrong_author"):
            accuracy = rows[judge, condition]
            assert accuracy["num_pairs"] == 2 and 0 <= accuracy["mean"] <= 1
            assert accuracy["low"] <= accuracy["mean"] <= accuracy["high"]
    assert result["data"] == str(data)
    assert read_run.files(finished[0].out) == before, "the run itself is only read"


def test_another_runs_judges_stand_beside(finished: tuple, tmp_path: Path) -> None:
    beside = tmp_path / "run"
    shutil.copytree(finished[0].out, beside)
    args = ["--run", str(finished[0].out), "--label", "other", "--samples", "0", "--exemplars", "1"]
    with pytest.raises(ValueError, match="--label: needs --out"):
        experiments.evaluate.main(args)
    args += ["--out", str(beside / "evaluation")]
    with pytest.raises(ValueError, match="--judges tfr: this run has base, likelihood, .*rft"):
        experiments.evaluate.main([*args, "--judges", "rft", "tfr"])
    folder = beside / "evaluation" / "test"
    experiments.evaluate.main([*args, "--judges", "rft"])
    asked = {path.name for path in folder.glob("other_*")}
    assert asked == {"other_rft.1.jsonl", "other_rft.wrong_author.jsonl"}
    experiments.evaluate.main(args)
    for name in ("rft.1.jsonl", "sft.wrong_author.jsonl"):
        same = (folder / name).read_text().replace('"model": "', '"model": "other_')
        assert (folder / f"other_{name}").read_text() == same
    assert not list(folder.glob("other_base.*"))
    lines = experiments.report.comparisons([folder])
    assert any(line.startswith("rft minus other_rft: +0.000 [+0.000, +0.000]") for line in lines)
    assert any(line.startswith("sft minus other_sft: +0.000") for line in lines)
    assert any(line.startswith("sft_continued minus other_sft_continued: ") for line in lines)
    assert any(line.startswith("rft minus stylometry: ") for line in lines)


def test_a_run_kept_without_its_texts_makes_them_again(finished: tuple, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished[0].out, run)
    before = read_run.files(run)
    for path in [*run.glob("*.jsonl"), *run.glob("card.*"), *run.glob("evaluation/*/pairs.jsonl")]:
        path.unlink()
    RunFolder(run, replace(finished[0], out=run), free=FREE_FIELDS).reopen("data")
    experiments.evaluate.main(["--run", str(run), "--samples", "0", "--exemplars", "1"])
    after = read_run.files(run)
    kept = {*before} - {"stages.json"}
    assert {name: after[name][1] for name in kept} == {name: before[name][1] for name in kept}


def test_scoring_fewer_pairs_does_not_spoil_the_runs_own_result(
    finished: tuple, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished[0].out, run)
    before = {
        name: content for name, (_, content) in read_run.files(run, "evaluation/test").items()
    }
    args = ["--run", str(run), "--max-pairs", "3", "--json", str(tmp_path / "OUT.json")]
    args += ["--samples", "0", "--exemplars", "1"]
    try:
        experiments.evaluate.main(args)
    except ValueError:
        assert not (tmp_path / "OUT.json").exists()
    else:
        rows = json.loads((tmp_path / "OUT.json").read_text())["rows"]
        assert {row["accuracy"]["num_pairs"] for row in rows} == {3}
    after = {name: content for name, (_, content) in read_run.files(run, "evaluation/test").items()}
    assert after == before


def test_other_texts_under_the_same_name_are_not_scored_by_old_predictions(
    finished: tuple, tmp_path: Path
) -> None:
    scored = ["--run", str(finished[0].out), "--max-pairs", "3", "--out", str(tmp_path / "scored")]
    scored += ["--samples", "0", "--exemplars", "1"]
    data = _texts(tmp_path / "letters.jsonl")
    experiments.evaluate.main([*scored, "--data", str(data)])
    texts = [d["text"] for d in map(json.loads, data.read_text().splitlines())]
    rows = [{"author": f"other-{i // 6}", "text": t} for i, t in enumerate(reversed(texts))]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = read_run.files(tmp_path / "scored")
    with pytest.raises(ValueError):
        experiments.evaluate.main([*scored, "--data", str(data)])
    assert read_run.files(tmp_path / "scored") == before


def test_init_starts_at_rft(finished: tuple, tmp_path: Path) -> None:
    cfg = replace(SMALL, init=finished[0].out, out=tmp_path / "again", continue_sft=False)
    cfg = replace(cfg, rejection_sft=False)
    begin = len(ROLLOUTS)
    experiments.rft.run_all(cfg)
    assert read_run.stages_done(cfg.out) == ["data", "rft", "evaluation"]
    assert not (cfg.out / "sft").exists()
    # The same start, the same seed: the same run.
    assert read_run.metric_rows(cfg.out, "rft") == read_run.metric_rows(finished[0].out, "rft")
    for ours, theirs in zip(ROLLOUTS[begin:], finished[1], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert read_records(cfg.out / "documents.jsonl", Document)
    ours, theirs = cfg.out / "evaluation" / "test", finished[0].out / "evaluation" / "test"
    assert not list(ours.glob("sft.*"))
    experiments.evaluate.main(["--run", str(cfg.out), "--samples", "0", "--exemplars", "1"])
    for name in ("sft.1.jsonl", "sft.wrong_author.jsonl", "rft.1.jsonl"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    assert not list(ours.glob("base.*")), "its tokenizer is the start's"
    # A rival that is wanted later is trained and asked beside what is there.
    experiments.rft.run_all(replace(cfg, continue_sft=True))
    done = ["data", "rft", "sft_continued", "evaluation"]
    assert read_run.stages_done(cfg.out) == done
    name = "sft_continued.1.jsonl"
    assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    assert "sft_continued" in (cfg.out / "report.md").read_text()
