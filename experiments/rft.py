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
from experiments.sft import run_sft
from experiments.synthesize import load_pairs, load_traces
from persrm_jax import cli
from persrm_jax.checkpoint import Checkpoints
from persrm_jax.data.batches import bucketed, encode_pairs, encode_traces
from persrm_jax.distributed import on_main
from persrm_jax.metrics import MetricsWriter
from persrm_jax.models.load import Model, load_model, model_folder, save_model
from persrm_jax.models.trainable import merge, split
from persrm_jax.runs import RunFolder
from persrm_jax.training.loop import train
from persrm_jax.training.optimizer import make_optimizer
from persrm_jax.training.rft import make_rft_step
from persrm_jax.training.rft_config import needs_reference
from persrm_jax.training.sft import SftConfig
from persrm_jax.training.step import init_state
from persrm_jax.types import Trace


def run_rft(cfg: RunConfig, run: RunFolder, start: Model, mesh: Mesh) -> None:
    """Trains `start`, which is also the KL reference, and saves the model in `RUN/rft/model`."""
    folder = run.path / "rft"
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
        optimizer = make_optimizer(cfg.rft.optimizer, cfg.rft.num_updates)
        checkpoints = Checkpoints(folder / "checkpoints")
        try:
            state = train(
                "rft",
                init_state(trained, optimizer, key, mesh),
                step_fn,
                num_steps=cfg.rft.steps,
                save_every=cfg.rft.save_every,
                checkpoints=checkpoints,
                writer=lambda first: MetricsWriter(folder, first),
                show="reward/mean",
                watch=dev_watch(
                    cfg,
                    run,
                    start,
                    mesh,
                    every=cfg.rft.eval_every,
                    patience=cfg.rft.patience,
                    frozen=frozen,
                ),
                profile=cfg.profile,
            )
        finally:
            checkpoints.close()
        merged = merge(state.params, frozen, cfg.train)
        save_model(folder / "model", replace(start, params=merged))


def matched_steps(cfg: RunConfig, model: Model, traces: Sequence[Trace], prompt_length: int) -> int:
    """SFT steps that cost what RFT does, counted in token passes: a forward is one, a backward two.

    RFT: prefill once a group, decode, forward for the reference and for the old policy, forward and
    backward. SFT: forward and backward. Padding counts, since it is computed; a prompt that a
    group shares counts once. (With
    --rft.pack-length RFT computes less padding than is counted here, in the rival's favour.)
    """
    rows = encode_traces(traces, model.tokenizer, cfg.prompt)
    length = cfg.sft.pack_length or bucketed(max(rows.lengths))
    sft_step = 3 * cfg.sft.batch_size * length
    new = cfg.rft.sampling.max_new_tokens
    passes = 3 * cfg.rft.epochs + needs_reference(cfg.rft, cfg.loss) + (cfg.rft.updates_a_step > 1)
    group = cfg.rft.group_size * new
    shares = 1 if cfg.rft.shared_prefix else cfg.rft.group_size
    step = cfg.rft.prompts * (prompt_length + group + passes * (shares * prompt_length + group))
    return round(cfg.rft.steps * step / sft_step)


def continued_sft(cfg: RunConfig, run: RunFolder, start: Model) -> SftConfig:
    """SFT's config for the rival: the same optimizer, for as much compute as RFT."""
    pairs = load_pairs(run.path, "train")
    prompts = encode_pairs(pairs, [p.order for p in pairs], start.tokenizer, cfg.prompt)
    length = bucketed(max(map(len, prompts)))
    steps = matched_steps(cfg, start, load_traces(run.path), length)
    return replace(cfg.sft, steps=steps, stop_accuracy=2.0, patience=0)


def run_all(cfg: RunConfig) -> RunFolder:
    """Every stage that is not done, in order."""
    run, mesh = prepare(cfg)
    dtype = cfg.compute.param_dtype
    with jax.set_mesh(mesh):
        if cfg.init is None and not run.is_done("sft"):
            base = base_model(cfg, run, mesh)
            run_sft(cfg, run, base, mesh, stage="sft", sft=cfg.sft, seed=cfg.seed)
            del base
        if not run.is_done("rft"):
            run_rft(cfg, run, load_model(sft_folder(cfg, run), mesh, dtype), mesh)
        if cfg.continue_sft and not run.is_done("sft_continued"):
            start = load_model(sft_folder(cfg, run), mesh, dtype)
            sft = continued_sft(cfg, run, start)
            # Another seed: fresh orders of the traces, not the batches that SFT began with.
            run_sft(cfg, run, start, mesh, stage="sft_continued", sft=sft, seed=cfg.seed + 1)
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
