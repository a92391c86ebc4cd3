"""The whole job: data -> pairs -> traces -> SFT -> RFT -> evaluation -> report.

    python -m experiments.rft                                  # `tiny`: a laptop, minutes
    python -m experiments.rft smollm2 --data TEXTS.jsonl.gz    # a pretrained model, real authors
    python -m experiments.rft --mesh 8x1 --loss.clip-high 0.28
    python -m experiments.rft --init runs/tiny --out runs/again # from an SFT model, RFT on

Finished stages are skipped: after Ctrl-C, the same command goes on. Departures from RM-R1's GRPO
(arXiv 2505.02387): one update a rollout unless --rft.mini-batches says otherwise, and each pair is
shown in one order, not both.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
from jax.sharding import Mesh

from experiments.evaluate import evaluate_run
from experiments.prepare import base_model, dev_watch, prepare
from experiments.presets import PRESETS, RunConfig, parse_run
from experiments.report import report_runs
from experiments.rivals import continued_sft, rejection_sft
from experiments.sft import run_sft
from experiments.stage import Stage, train_stage
from experiments.synthesize import load_pairs
from persrm_jax import cli
from persrm_jax.distributed import on_main
from persrm_jax.models.load import Model, load_model, model_folder
from persrm_jax.models.trainable import split
from persrm_jax.runs import RunFolder
from persrm_jax.training.rft import make_rft_step
from persrm_jax.training.rft_config import needs_reference


def run_rft(cfg: RunConfig, run: RunFolder, start: Model, mesh: Mesh) -> None:
    """Trains `start`, which is also the KL reference, and saves the model in `RUN/rft/model`."""
    with run.stage("rft"):
        key = jax.random.key(cfg.seed)
        trained, frozen = split(start.params, start.config, cfg.train, key, mesh)
        step_fn = make_rft_step(
            load_pairs(run.path, "train"),
            start.config,
            cfg.compute,
            cfg.rft,
            cfg.loss,
            ref_params=start.params if needs_reference(cfg.rft, cfg.loss) else None,
            tokenizer=start.tokenizer,
            prompt=cfg.prompt,
            seed=cfg.seed,
            mesh=mesh,
            trainable=replace(cfg.train, lora_dropout=0.0),
            frozen=frozen,
        )
        watch = dev_watch(
            cfg,
            run,
            start,
            mesh,
            every=cfg.rft.eval_every,
            patience=cfg.rft.patience,
            frozen=frozen,
        )
        steps, updates, save_every = cfg.rft.steps, cfg.rft.num_updates, cfg.rft.save_every
        how = Stage("rft", steps, updates, cfg.rft.optimizer, save_every, "reward/mean")
        train_stage(cfg, run, how, start, trained, frozen, step_fn, watch, key=key, mesh=mesh)


def run_all(cfg: RunConfig) -> RunFolder:
    """Every stage that is not done, in order."""
    run, mesh = prepare(cfg)
    dtype = cfg.compute.param_dtype
    todo = [rival for rival in cfg.rivals if not run.is_done(rival)]
    if todo:
        run.reopen("evaluation")
    with jax.set_mesh(mesh):
        if cfg.init is None and not run.is_done("sft"):
            base = base_model(cfg, run, mesh)
            run_sft(cfg, run, base, mesh, stage="sft", sft=cfg.sft, seed=cfg.seed)
            del base
        if not run.is_done("rft"):
            run_rft(cfg, run, load_model(sft_folder(cfg, run), mesh, dtype), mesh)
        if "sft_continued" in todo:
            start = load_model(sft_folder(cfg, run), mesh, dtype)
            sft = continued_sft(cfg, run, start)
            # Another seed: fresh orders of the traces, not the batches that SFT began with.
            run_sft(cfg, run, start, mesh, stage="sft_continued", sft=sft, seed=cfg.seed + 1)
        if "sft_rejection" in todo:
            start = load_model(sft_folder(cfg, run), mesh, dtype)
            sft, traces = rejection_sft(cfg, run, start, mesh)
            stage = "sft_rejection"
            run_sft(cfg, run, start, mesh, stage=stage, sft=sft, seed=cfg.seed, traces=traces)
        if not run.is_done("evaluation"):
            evaluate_run(cfg, run, mesh)
    on_main(lambda: report_runs([run.path], run.path))
    return run


def sft_folder(cfg: RunConfig, run: RunFolder) -> Path:
    """Where RFT's starting model is."""
    return model_folder(cfg.init if cfg.init is not None else run.path)


def main(args: Sequence[str]) -> None:
    """The command line."""
    run_all(parse_run(PRESETS, "python -m experiments.rft", args))


if __name__ == "__main__":
    cli.run_main(main)
