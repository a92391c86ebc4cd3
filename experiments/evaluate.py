"""The whole protocol: accuracy of a run's models and of scorers without a language model.

    python -m experiments.evaluate --run runs/tiny --json out.json
    python -m experiments.evaluate --run runs/tiny --data TEXTS.jsonl.gz --json out.json

Every judge sees each pair in both orders, with the person's exemplars and, as the control, with a
third author's; the trained ones also with other numbers of exemplars, and several times each, for
votes. Without `--data` the pairs are the run's own: of authors that training never saw, of training
authors' unseen texts, and of unseen domains; with it, all authors of the file are paired.
Predictions are kept: a second call scores only what is new. A run whose texts may not be passed on
can be kept without them: they are made again from its config.
"""

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console

from experiments.judges import Asked, ask_endpoint, ask_model, conditions_of, model_judges
from experiments.prepare import check_fit
from experiments.presets import RunConfig
from experiments.report import SETS, protocol, read_sets
from experiments.synthesize import load_pairs, read_documents, synthesize
from persrm_jax import cli
from persrm_jax.data.batches import encode_pairs
from persrm_jax.data.documents import Counts
from persrm_jax.data.openai_writer import OpenAIConfig
from persrm_jax.data.pairs import make_test_pairs
from persrm_jax.distributed import on_main
from persrm_jax.evaluation.baselines import (
    BASELINES,
    WITHOUT_EXEMPLARS,
    baseline_predictions,
)
from persrm_jax.evaluation.conditions import WRONG_AUTHOR, make_conditions
from persrm_jax.evaluation.judged import Judged, in_main_table, read_judged
from persrm_jax.evaluation.remote_judge import ENDPOINT
from persrm_jax.evaluation.report import accuracy_table
from persrm_jax.jsonl import read_records, write_records, write_text
from persrm_jax.models.load import load_tokenizer
from persrm_jax.runs import RunFolder, read_config_file
from persrm_jax.sharding import MeshShape, make_mesh
from persrm_jax.types import Document, Pair

COUNTS = (0, 1, 2, 4, 8)
"""Numbers of exemplars of the protocol."""
PairSet = tuple[Sequence[Pair], Sequence[Document]]
"""Pairs, and the documents that they are made of."""


def evaluate_run(cfg: RunConfig, run: RunFolder, mesh: Mesh) -> None:
    """Scores the run's test authors, training authors' unseen texts, texts of unseen domains, and
    if asked dev authors."""
    with run.stage("evaluation"):
        folder = run.path / "evaluation"
        score_sets(cfg, run, own_sets(cfg, run), mesh, folder, beginnings=False)


def own_sets(cfg: RunConfig, run: RunFolder) -> dict[str, PairSet]:
    """The run's sets of pairs."""
    documents = read_records(run.path / "documents.jsonl", Document)
    sets = {"test": load_pairs(run.path, "test")}
    sets["seen"] = read_records(run.path / "pairs_seen.jsonl", Pair)
    if cfg.eval.dev:
        sets["dev"] = load_pairs(run.path, "dev")
    if (run.path / "pairs_elsewhere.jsonl").is_file():
        sets["elsewhere"] = read_records(run.path / "pairs_elsewhere.jsonl", Pair)
    return {name: (pairs, documents) for name, pairs in sets.items()}


def score_sets(
    cfg: RunConfig,
    run: RunFolder,
    sets: Mapping[str, PairSet],
    mesh: Mesh,
    out: Path,
    **options: Any,
) -> None:
    """Scores each set, into `OUT/SET`; test authors as wholly as `cfg.eval` asks for. The options
    are those of `score_pairs`."""
    for name, (pairs, documents) in sets.items():
        whole = name in ("", "test")
        score_pairs(cfg, run, pairs, documents, mesh, out / name, whole=whole, **options)


def score_pairs(
    cfg: RunConfig,
    run: RunFolder,
    pairs: Sequence[Pair],
    documents: Sequence[Document],
    mesh: Mesh,
    folder: Path,
    *,
    whole: bool = True,
    only: Collection[str] = (),
    beginnings: bool = True,
    label: str = "",
    endpoint: OpenAIConfig | None = None,
) -> None:
    """Writes `FOLDER/pairs.jsonl`, and each judge's predictions in each condition, unless there.

    Args:
        whole: also with the numbers of exemplars and the samples that `cfg.eval` asks for.
        only: names of the models to ask, as `model_judges` has them; all where there is none.
        beginnings: as `model_judges` has it.
        label: of the judges that the run trained, who alone are asked where there is one.
        endpoint: also asks the model behind it.

    Raises:
        ValueError: the folder holds predictions about other pairs, or the run has no such model.
    """
    if not pairs:
        return
    counts = cfg.eval.exemplars if whole else ()
    # The control draws on all pairs, so that a few that are scored still find a third author.
    conditions = make_conditions(pairs, documents, counts, cfg.seed)
    pairs = list(pairs[: cfg.eval.max_pairs or None])
    ids = {pair.pair_id for pair in pairs}
    conditions = {c: [p for p in some if p.pair_id in ids] for c, some in conditions.items()}
    path = folder / "pairs.jsonl"
    if path.is_file() and read_records(path, Pair) != pairs:
        raise ValueError(f"{folder} holds predictions about other pairs: give another --out")
    on_main(partial(_write_baselines, pairs, conditions, documents, folder))
    own = str(len(pairs[0].exemplars))
    asked = {c: Asked(some) for c, some in conditions.items()}
    if whole and cfg.eval.samples:
        asked[f"samples/{own}"] = Asked(pairs, cfg.eval.samples)
    judges = model_judges(cfg, run, mesh, beginnings=beginnings)
    if unknown := sorted({*only} - judges.keys()):
        raise ValueError(f"--judges {' '.join(unknown)}: this run has {', '.join(judges)}")
    for name, judge in judges.items():
        if (only and name not in only) or (label and not judge.is_trained):
            continue
        name = f"{label}_{name}" if label else name
        ask_model(name, judge, conditions_of(judge, asked, (own, WRONG_AUTHOR)), folder)
    if endpoint is not None:
        main = {c: asked[c] for c in (own, WRONG_AUTHOR)}
        ask_endpoint(endpoint, cfg, main, folder)


def _write_baselines(
    pairs: Sequence[Pair],
    conditions: Mapping[str, Sequence[Pair]],
    documents: Sequence[Document],
    folder: Path,
) -> None:
    if not (folder / "pairs.jsonl").exists():
        write_records(folder / "pairs.jsonl", pairs)
    fit_texts = [d.text for d in documents if d.split == "train"]
    own = str(len(pairs[0].exemplars))
    for name in BASELINES:
        for condition, shown in conditions.items():
            if name in WITHOUT_EXEMPLARS and condition != own:
                continue
            path = folder / f"{name}.{condition}.jsonl"
            if not path.exists():
                write_records(path, baseline_predictions(name, shown, fit_texts, condition))


@dataclass(frozen=True)
class EvaluateConfig:
    """What to score."""

    run: Path
    """Folder of a finished run."""
    data: str | None = None
    """`personas`, `embedded` or a documents file; without it, the run's own sets of pairs."""
    exemplars: tuple[int, ...] | None = None
    """Numbers of exemplars to show beside the run's own number; without it 0, 1, 2, 4 and 8, as far
    as the authors have so many texts and --prompt.max-tokens holds them."""
    judges: tuple[str, ...] = ()
    """Models to ask: rft, sft, base, likelihood and so on, as the tables name them; all that the
    run has where none is given."""
    samples: int = 4
    """Answers to each question for votes and mean scores (0: none)."""
    openai: OpenAIConfig = ENDPOINT
    """With --openai.model: also ask that model, behind an OpenAI-compatible endpoint."""
    json: Path | None = None
    """File for the tables' rows."""
    out: Path | None = None
    """Folder for predictions; RUN/evaluation, or RUN/evaluation-NAME of the data."""
    label: str = ""
    """Put before the names of the judges that the run trained, who then stand beside those of
    another run in --out, on the same pairs."""
    max_pairs: int | None = None
    """Pairs to score; those of the run's config where none is given."""
    mesh: cli.Mesh = MeshShape(1, 1)
    """Devices along data x model."""


def main(args: Sequence[str]) -> None:
    """The command line."""
    asked = cli.parse_flags(EvaluateConfig, "python -m experiments.evaluate", args)
    if asked.label and asked.out is None:
        raise ValueError(
            "--label: needs --out, the evaluation of the run beside whose rows to stand"
        )
    if not (asked.run / "config.json").is_file():
        raise ValueError(f"--run {asked.run}: holds no run; expected a folder with a config.json")
    cfg = read_config_file(asked.run / "config.json", RunConfig)
    wanted = replace(cfg.eval, exemplars=asked.exemplars or (), samples=asked.samples)
    if asked.max_pairs is not None:
        wanted = replace(wanted, max_pairs=asked.max_pairs)
    cfg = replace(cfg, mesh=asked.mesh, eval=wanted)
    mesh = make_mesh(cfg.mesh)
    check_fit(cfg)
    run = RunFolder(asked.run, cfg, free=("mesh", "out", "eval"))
    if not any(run.is_done(stage) for stage in ("sft", "rft")):
        raise ValueError(f"--run {asked.run}: no stage of training has finished in this run")
    endpoint = asked.openai if asked.openai.model else None
    folder = asked.out or run.path / _folder_name(asked.data)
    if asked.data is None and not run.is_done("data"):
        synthesize(cfg, run, mesh)
    sets = own_sets(cfg, run) if asked.data is None else {"": _other_texts(cfg, asked.data)}
    if asked.exemplars is None:
        pairs, documents = sets["" if asked.data else "test"]
        counts = _counts_that_fit(cfg, run, pairs, documents)
        cfg = replace(cfg, eval=replace(cfg.eval, exemplars=counts))
    with jax.set_mesh(mesh):
        options = {
            "only": asked.judges,
            "label": asked.label,
            "beginnings": not asked.label,
            "endpoint": endpoint,
        }
        score_sets(cfg, run, sets, mesh, folder, **options)
    found = read_sets([folder]) if asked.data is None else {SETS["test"]: read_judged([folder])}
    _show(found, asked, cfg)


def _folder_name(data: str | None) -> str:
    if data is None:
        return "evaluation"
    return f"evaluation-{Path(data).name.removesuffix('.gz').removesuffix('.jsonl')}"


def _other_texts(cfg: RunConfig, data: str) -> PairSet:
    """Pairs of all authors of other texts."""
    documents = list(read_documents(replace(cfg, data=data), Counts()))
    pairs = make_test_pairs(documents, cfg.pairs, cfg.seed)
    if not pairs:
        raise ValueError(f"--data {data}: too few authors to make a pair of")
    return pairs, documents


def _counts_that_fit(
    cfg: RunConfig, run: RunFolder, pairs: Sequence[Pair], documents: Sequence[Document]
) -> tuple[int, ...]:
    """Those of `COUNTS` for which there are texts and room; says what there is not."""
    stage = "rft" if run.is_done("rft") else "sft"
    tokenizer = load_tokenizer(str(run.path / stage / "model"))
    counts = []
    for k in COUNTS:
        try:
            shown = make_conditions(pairs, documents, (k,), cfg.seed)[str(k)]
            encode_pairs(shown, [pair.order for pair in shown], tokenizer, cfg.prompt)
        except ValueError as error:
            print(f"{k} exemplars and more are left out: {error}")
            break
        counts.append(k)
    return tuple(counts)


def _show(sets: Mapping[str, Judged], asked: EvaluateConfig, cfg: RunConfig) -> None:
    """Prints the tables, and writes their rows."""
    judged = sets[SETS["test"]]
    rows = judged.rows()
    console = Console()
    console.print(accuracy_table([row for row in rows if in_main_table(row, judged.own_condition)]))
    grids = protocol(sets)
    for grid in grids:
        console.print(grid.rich())
    if asked.json is not None:
        result = {
            "run": str(asked.run),
            "data": asked.data or cfg.data,
            "rows": [dataclasses.asdict(row) for row in rows],
            "tables": [dataclasses.asdict(grid) for grid in grids],
        }
        write_text(asked.json, json.dumps(result, indent=2) + "\n")
        print(f"rows: in {asked.json}")


if __name__ == "__main__":
    cli.run_main(main)
