"""Pairwise accuracy of a run's models and of scorers without a language model.

    python -m experiments.evaluate --run runs/tiny --json out.json
    python -m experiments.evaluate --run runs/tiny --data TEXTS.jsonl.gz --json out.json

Every judge sees each pair in both orders, with the person's exemplars and, as the control, with a
third author's. Without `--data` the pairs are the run's own, of authors that training never saw;
with it, all authors of the file are paired. Predictions are kept: a second call scores only what is
new.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import Progress

from experiments.prepare import base_model, check_fit, judge_of
from experiments.presets import RunConfig
from experiments.report import WRONG_AUTHOR, find_rows
from experiments.synthesize import load_pairs, read_documents
from persrm_jax import cli
from persrm_jax.data.documents import Counts
from persrm_jax.data.pairs import make_test_pairs, with_wrong_author
from persrm_jax.distributed import is_main, on_main
from persrm_jax.evaluation.baselines import BASELINES, baseline_predictions
from persrm_jax.evaluation.report import accuracy_table
from persrm_jax.jsonl import read_records, write_records, write_text
from persrm_jax.models.load import Model, load_model
from persrm_jax.runs import RunFolder, read_config_file
from persrm_jax.sharding import MeshShape, make_mesh
from persrm_jax.types import Document, Pair


def evaluate_run(cfg: RunConfig, run: RunFolder, mesh: Mesh) -> None:
    """Scores the run's test authors, training authors' unseen texts, and if asked dev authors."""
    documents = read_records(run.path / "documents.jsonl", Document)
    sets = {
        "test": load_pairs(run.path, "test"),
        "seen": read_records(run.path / "pairs_seen.jsonl", Pair),
    }
    if cfg.eval.dev:
        sets["dev"] = load_pairs(run.path, "dev")
    with run.stage("evaluation"):
        for name, pairs in sets.items():
            folder = run.path / "evaluation" / name
            score_pairs(cfg, run, pairs, documents, mesh, folder)


def models_of(cfg: RunConfig, run: RunFolder, mesh: Mesh) -> dict[str, Callable[[], Model]]:
    """The loader of each model that the run has, the untrained base first."""
    dtype = cfg.compute.param_dtype
    loaders: dict[str, Callable[[], Model]] = {}
    if cfg.init is None:
        loaders["base"] = partial(base_model, cfg, run, mesh)
    for stage in ("sft", "sft_continued", "rft"):
        if run.is_done(stage):
            loaders[stage] = partial(load_model, run.path / stage / "model", mesh, dtype)
    return loaders


def score_pairs(
    cfg: RunConfig,
    run: RunFolder,
    pairs: Sequence[Pair],
    documents: Sequence[Document],
    mesh: Mesh,
    folder: Path,
) -> None:
    """Writes `FOLDER/pairs.jsonl`, and each judge's predictions in each condition, unless there."""
    if not pairs:
        return
    # The control draws on all pairs, so that a few that are scored still find a third author.
    wrong = with_wrong_author(pairs, cfg.seed)[: cfg.eval.max_pairs or None]
    pairs = list(pairs[: cfg.eval.max_pairs or None])
    path = folder / "pairs.jsonl"
    if path.is_file() and read_records(path, Pair) != pairs:
        raise ValueError(f"{folder} holds predictions about other pairs: give another --out")
    conditions = {
        str(len(pairs[0].exemplars)): pairs,
        WRONG_AUTHOR: wrong,
    }
    fit_texts = [d.text for d in documents if d.split == "train"]

    def write_baselines() -> None:
        write_records(folder / "pairs.jsonl", pairs)
        for name in BASELINES:
            for condition, shown in conditions.items():
                path = folder / f"{name}.{condition}.jsonl"
                if not path.exists():
                    write_records(path, baseline_predictions(name, shown, fit_texts, condition))

    on_main(write_baselines)
    for name, load in models_of(cfg, run, mesh).items():
        paths = {c: folder / f"{name}.{c}.jsonl" for c in conditions}
        todo = {c: path for c, path in paths.items() if not path.exists()}
        if not todo:
            continue
        model = load()
        with Progress(disable=not is_main()) as bar:
            task = bar.add_task(f"{folder.name}: {name:>13}", total=2 * len(pairs) * len(todo))
            judge = judge_of(cfg, model, mesh, partial(bar.advance, task))
            for condition, path in todo.items():
                found = judge(model.params, conditions[condition], condition, name)
                on_main(partial(write_records, path, found))


@dataclass(frozen=True)
class EvaluateConfig:
    """What to score."""

    run: Path
    """Folder of a finished run."""
    data: str | None = None
    """`personas`, `embedded` or a documents file; without it, the run's own test authors."""
    json: Path | None = None
    """File for the table's rows."""
    out: Path | None = None
    """Folder for predictions; RUN/evaluation, or RUN/evaluation-NAME of the data."""
    max_pairs: int | None = None
    """Pairs to score; those of the run's config where none is given."""
    mesh: cli.Mesh = MeshShape(1, 1)
    """Devices along data x model."""


def main(args: Sequence[str]) -> None:
    """The command line."""
    asked = cli.parse_flags(EvaluateConfig, "python -m experiments.evaluate", args)
    if not (asked.run / "config.json").is_file():
        raise ValueError(f"--run {asked.run}: holds no run; expected a folder with a config.json")
    cfg = read_config_file(asked.run / "config.json", RunConfig)
    cfg = replace(cfg, mesh=asked.mesh)
    if asked.max_pairs is not None:
        cfg = replace(cfg, eval=replace(cfg.eval, max_pairs=asked.max_pairs))
    mesh = make_mesh(cfg.mesh)
    check_fit(cfg)
    run = RunFolder(asked.run, cfg, free=("mesh", "out", "eval.max_pairs"))
    if not any(run.is_done(stage) for stage in ("sft", "rft")):
        raise ValueError(f"--run {asked.run}: no stage of training has finished in this run")
    if asked.data is None:
        documents = read_records(run.path / "documents.jsonl", Document)
        pairs = load_pairs(run.path, "test")
        folder = (asked.out or run.path / "evaluation") / "test"
    else:
        cfg = replace(cfg, data=asked.data)
        documents = list(read_documents(cfg, Counts()))
        pairs = make_test_pairs(documents, cfg.pairs, cfg.seed)
        name = Path(asked.data).name.removesuffix(".gz").removesuffix(".jsonl")
        folder = asked.out or run.path / f"evaluation-{name}"
    if not pairs:
        raise ValueError(f"--data {asked.data}: too few authors to make a pair of")
    with jax.set_mesh(mesh):
        score_pairs(cfg, run, pairs, documents, mesh, folder)
    rows = find_rows([folder])
    Console().print(accuracy_table(rows))
    if asked.json is not None:
        result = {
            "run": str(asked.run),
            "data": asked.data or cfg.data,
            "rows": [dataclasses.asdict(row) for row in rows],
        }
        write_text(asked.json, json.dumps(result, indent=2) + "\n")
        print(f"rows: in {asked.json}")


if __name__ == "__main__":
    cli.run_main(main)
