"""Every judge of a run, and how it is asked: what a table's rows are made by."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from rich.progress import Progress

from experiments.prepare import base_model, judge_of
from experiments.presets import RunConfig
from persrm_jax.data.answers import Answers
from persrm_jax.data.openai_writer import OpenAIConfig
from persrm_jax.distributed import is_main, on_main
from persrm_jax.evaluation.judge import JudgePairs
from persrm_jax.evaluation.likelihood import make_likelihood
from persrm_jax.evaluation.remote_judge import make_remote_judge
from persrm_jax.evaluation.scalar import make_scalar_judge
from persrm_jax.jsonl import write_records
from persrm_jax.models.load import FROM_SCRATCH, Model, load_model, model_folder
from persrm_jax.models.reward import load_reward_model
from persrm_jax.runs import RunFolder
from persrm_jax.types import Pair, Prediction

Advance = Callable[[int], object]
STAGES = ("sft", "sft_continued", "sft_rejection", "rft")
"""Whose models write their judgements."""


@dataclass(frozen=True)
class Asked:
    """A condition's pairs, and how many answers are drawn to each question: 0 for a greedy one."""

    pairs: Sequence[Pair]
    samples: int = 0


@dataclass(frozen=True)
class ModelJudge:
    """A model that is loaded when it is asked something new."""

    load: Callable[[], Model]
    make: Callable[[Model, Advance, int], JudgePairs]
    is_trained: bool = True
    """The untrained one is asked about no other numbers of exemplars."""
    writes: bool = True
    """Whether it writes its judgements, so that they can be drawn several times."""


def model_judges(
    cfg: RunConfig, run: RunFolder, mesh: Mesh, *, beginnings: bool = True
) -> dict[str, ModelJudge]:
    """Those that the run has, the untrained model first.

    Args:
        beginnings: of a run with --init, also what came before it: --model, where that is a
            pretrained one, and the model that it started from (`sft`, or `init` of another stage).
    """
    dtype = cfg.compute.param_dtype

    def answering(model: Model, advance: Advance, samples: int) -> JudgePairs:
        return judge_of(cfg, model, mesh, advance, samples)

    def scoring(make: Callable[..., JudgePairs]) -> Callable[[Model, Advance, int], JudgePairs]:
        def made(model: Model, advance: Advance, samples: int) -> JudgePairs:
            return make(
                model.config,
                cfg.eval,
                tokenizer=model.tokenizer,
                prompt=cfg.prompt,
                compute=cfg.compute,
                seed=cfg.seed,
                mesh=mesh,
                advance=advance,
            )

        return made

    found: dict[str, ModelJudge] = {}
    if cfg.init is None or (beginnings and cfg.model != FROM_SCRATCH):
        base = partial(base_model, cfg, run, mesh)
        found["base"] = ModelJudge(base, answering, is_trained=False)
        gain = partial(make_likelihood, is_gain=True)
        for name, make in (("likelihood", make_likelihood), ("likelihood_gain", gain)):
            found[name] = ModelJudge(base, scoring(make), is_trained=False, writes=False)
    if run.is_done("bt"):
        load = partial(load_reward_model, run.path / "bt" / "model", mesh, dtype)
        found["bt"] = ModelJudge(load, scoring(make_scalar_judge), writes=False)
    folders = {s: run.path / s / "model" for s in STAGES if run.is_done(s)}
    if cfg.init is not None and beginnings:
        start = model_folder(cfg.init)
        is_sft = "sft" in (start.name, start.parent.name)
        folders = {"sft" if is_sft else "init": start, **folders}
    for stage, folder in folders.items():
        found[stage] = ModelJudge(partial(load_model, folder, mesh, dtype), answering)
    return found


def ask_model(name: str, judge: ModelJudge, asked: Mapping[str, Asked], folder: Path) -> None:
    """Writes `FOLDER/NAME.CONDITION.jsonl` of conditions that are not there yet; those of a
    condition `samples/K` into `FOLDER/samples`."""
    todo = {_path(folder, name, c): (c, one) for c, one in asked.items()}
    todo = {path: one for path, one in todo.items() if not path.exists()}
    if not todo:
        return
    model = judge.load()
    with Progress(disable=not is_main()) as bar:
        total = 2 * sum(len(one.pairs) * max(one.samples, 1) for _, one in todo.values())
        task = bar.add_task(f"{folder.name}: {name:>15}", total=total)
        made: dict[int, JudgePairs] = {}  # each compiles once
        for path, (condition, one) in todo.items():
            if one.samples not in made:
                made[one.samples] = judge.make(model, partial(bar.advance, task), one.samples)
            last = condition.rpartition("/")[2]
            found = made[one.samples](model.params, one.pairs, last, name)
            on_main(partial(write_records, path, found))


def ask_endpoint(
    endpoint: OpenAIConfig, cfg: RunConfig, asked: Mapping[str, Asked], folder: Path
) -> None:
    """As `ask_model`, of the model behind an endpoint; what it answered is kept in
    `FOLDER/answers.jsonl`.

    Raises:
        ValueError: as `make_remote_judge`, or several processes ask.
    """
    name = "remote"
    if jax.process_count() > 1:
        raise ValueError("--openai.model: ask an endpoint with one process")
    todo = {_path(folder, name, c): (c, one) for c, one in asked.items() if not one.samples}
    todo = {path: one for path, one in todo.items() if not path.exists()}
    if not todo:
        return
    with Progress() as bar, closing(Answers(folder / "answers.jsonl")) as answers:
        total = 2 * sum(len(one.pairs) for _, one in todo.values())
        task = bar.add_task(f"{folder.name}: {endpoint.model:>15}", total=total)
        advance = partial(bar.advance, task)
        judge = make_remote_judge(endpoint, answers, prompt=cfg.prompt, advance=advance)
        for path, (condition, one) in todo.items():
            found: list[Prediction] = judge(one.pairs, condition, name)
            write_records(path, found)


def _path(folder: Path, name: str, condition: str) -> Path:
    where, _, last = condition.rpartition("/")
    return folder / where / f"{name}.{last}.jsonl"


def conditions_of(judge: ModelJudge, asked: Mapping[str, Asked], main: Sequence[str]) -> Any:
    """The part of `asked` that suits a judge; `main` names the conditions that all are asked in."""
    if not judge.is_trained:
        return {condition: asked[condition] for condition in main}
    return {c: one for c, one in asked.items() if judge.writes or not one.samples}
