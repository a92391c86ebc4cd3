"""A scalar Bradley-Terry reward model of the run's pairs, scored beside the reasoning judges.

    python -m experiments.bt [PRESET] [--out DIR] [--mesh 8x1]

With the flags of a run it works in that run's folder, on the same pairs and from the same start as
SFT, and makes the data first where there is none. The model reads the judge's prompt with one text
alone; its reward is a linear function of the last token's hidden state. Training ends with the best
on dev authors, or after --bt.steps. Its predictions on test authors and on training authors' unseen
texts lie beside the others', as `bt.CONDITION.jsonl`.
"""

from collections.abc import Sequence

import jax
from jax.sharding import Mesh
from rich.console import Console

from experiments.evaluate import own_sets, score_sets
from experiments.prepare import base_model, prepare
from experiments.presets import PRESETS, RunConfig, parse_run
from experiments.report import read_sets
from experiments.stage import Stage, train_stage
from experiments.synthesize import load_pairs
from persrm_jax import cli
from persrm_jax.data.pair_rows import encode_alone
from persrm_jax.distributed import is_main
from persrm_jax.evaluation.judge import JudgePairs
from persrm_jax.evaluation.report import accuracy_table
from persrm_jax.evaluation.scalar import make_scalar_judge
from persrm_jax.evaluation.statistics import judgement_credit
from persrm_jax.models.load import Model
from persrm_jax.models.params import Params
from persrm_jax.models.reward import init_head
from persrm_jax.models.trainable import join, split
from persrm_jax.runs import RunFolder
from persrm_jax.training.bt import make_bt_step
from persrm_jax.training.loop import Watch

NAME = "bt"
"""Of the stage, its folder and its row."""


def run_bt(cfg: RunConfig, run: RunFolder, start: Model, mesh: Mesh) -> None:
    """Trains `start` with a head on the run's training pairs and saves it in `RUN/bt/model`."""
    with run.stage(NAME):
        key = jax.random.key(cfg.seed)
        trained, frozen = split(start.params, start.config, cfg.train, key, mesh)
        trained = {**trained, **init_head(start.config, key, mesh)}
        pairs = load_pairs(run.path, "train")
        step_fn = make_bt_step(
            encode_alone(pairs, start.tokenizer, cfg.prompt),
            start.config,
            cfg.compute,
            cfg.bt,
            pad_id=start.tokenizer.pad_id,
            seed=cfg.seed,
            mesh=mesh,
            trainable=cfg.train,
            frozen=frozen,
        )
        watch = _dev_watch(cfg, run, start, mesh, frozen)
        steps, save_every = cfg.bt.steps, cfg.bt.save_every
        how = Stage(NAME, steps, steps, cfg.bt.optimizer, save_every, "reward/accuracy")
        train_stage(cfg, run, how, start, trained, frozen, step_fn, watch, key=key, mesh=mesh)


def _judge_of(cfg: RunConfig, model: Model, mesh: Mesh) -> JudgePairs:
    return make_scalar_judge(
        model.config,
        cfg.eval,
        tokenizer=model.tokenizer,
        prompt=cfg.prompt,
        compute=cfg.compute,
        seed=cfg.seed,
        mesh=mesh,
    )


def _dev_watch(cfg: RunConfig, run: RunFolder, model: Model, mesh: Mesh, frozen: Params) -> Watch:
    """Accuracy on all pairs of dev authors: two short forward passes a pair."""
    pairs = load_pairs(run.path, "dev")
    judge = _judge_of(cfg, model, mesh)

    def evaluate(params: Params) -> float:
        credits = list(
            map(judgement_credit, judge(join(params, frozen, cfg.train), pairs, "dev", NAME))
        )
        return sum(credits) / len(credits)

    return Watch(cfg.bt.eval_every if pairs else 0, evaluate, patience=cfg.bt.patience)


def main(args: Sequence[str]) -> None:
    """The command line."""
    cfg = parse_run(PRESETS, "python -m experiments.bt", args)
    run, mesh = prepare(cfg)
    with jax.set_mesh(mesh):
        if not run.is_done(NAME):
            run_bt(cfg, run, base_model(cfg, run, mesh), mesh)
        folder = run.path / "evaluation"
        score_sets(cfg, run, own_sets(cfg, run), mesh, folder, only=(NAME,))
    if is_main():
        for name, judged in read_sets([folder]).items():
            Console().print(f"{name}:", accuracy_table(judged.rows()))
    print(f"bt: the model is in {run.path / NAME / 'model'}")


if __name__ == "__main__":
    cli.run_main(main)
