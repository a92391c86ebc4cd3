"""Supervised fine-tuning on reasoning traces.

    python -m experiments.sft [PRESET] [--mesh 8x1] [--data FILE.jsonl.gz] [--out DIR]

Makes the data first where the run folder has none. Departures from PersRM-R1 (arXiv 2508.14076):
the traces come from an offline stylometric teacher; --sft.pack-length packs them.
"""

from collections.abc import Sequence
from dataclasses import replace

import jax
from jax.sharding import Mesh

from experiments.prepare import base_model, dev_watch, prepare
from experiments.presets import PRESETS, RunConfig, parse_run
from experiments.synthesize import load_traces
from persrm_jax import cli
from persrm_jax.checkpoint import Checkpoints
from persrm_jax.data.batches import encode_traces
from persrm_jax.metrics import MetricsWriter
from persrm_jax.models.load import (
    Model,
    save_model,
)
from persrm_jax.models.trainable import merge, split
from persrm_jax.runs import RunFolder
from persrm_jax.training.loop import train
from persrm_jax.training.optimizer import make_optimizer
from persrm_jax.training.sft import SftConfig, make_sft_step
from persrm_jax.training.step import init_state
from persrm_jax.types import Trace


def run_sft(
    cfg: RunConfig,
    run: RunFolder,
    start: Model,
    mesh: Mesh,
    *,
    stage: str,
    sft: SftConfig,
    seed: int,
    traces: Sequence[Trace] | None = None,
) -> None:
    """Trains `start` on `traces`, the run's own where none are given, and saves the model in
    `RUN/STAGE/model`."""
    folder = run.path / stage
    with run.stage(stage):
        key = jax.random.key(seed)
        trained, frozen = split(start.params, start.config, cfg.train, key, mesh)
        rows = encode_traces(traces or load_traces(run.path), start.tokenizer, cfg.prompt)
        step_fn = make_sft_step(
            rows,
            start.config,
            cfg.compute,
            sft,
            pad_id=start.tokenizer.pad_id,
            seed=seed,
            mesh=mesh,
            trainable=cfg.train,
            frozen=frozen,
            loss_cfg=cfg.loss,
        )
        optimizer = make_optimizer(sft.optimizer, sft.steps)
        checkpoints = Checkpoints(folder / "checkpoints")
        try:
            state = train(
                stage,
                init_state(trained, optimizer, key, mesh),
                step_fn,
                num_steps=sft.steps,
                save_every=sft.save_every,
                checkpoints=checkpoints,
                writer=lambda first: MetricsWriter(folder, first),
                show="loss/total",
                watch=dev_watch(
                    cfg,
                    run,
                    start,
                    mesh,
                    every=sft.eval_every,
                    stop_at=sft.stop_accuracy,
                    patience=sft.patience,
                    frozen=frozen,
                ),
                profile=cfg.profile,
            )
        finally:
            checkpoints.close()
        merged = merge(state.params, frozen, cfg.train)
        save_model(folder / "model", replace(start, params=merged))


def main(args: Sequence[str]) -> None:
    """The command line."""
    cfg = parse_run(PRESETS, "python -m experiments.sft", args)
    run, mesh = prepare(cfg)
    if run.is_done("sft"):
        print(f"sft: done before; the model is in {run.path / 'sft' / 'model'}")
        return
    with jax.set_mesh(mesh):
        start = base_model(cfg, run, mesh)
        run_sft(cfg, run, start, mesh, stage="sft", sft=cfg.sft, seed=cfg.seed)
    print(f"sft: the model is in {run.path / 'sft' / 'model'}")


if __name__ == "__main__":
    cli.run_main(main)
