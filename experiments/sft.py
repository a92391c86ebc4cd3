"""Supervised fine-tuning on reasoning traces.

    python -m experiments.sft [PRESET] [--mesh 8x1] [--data FILE.jsonl.gz] [--out DIR]

Makes the data first where the run folder has none. Departures from PersRM-R1 (arXiv 2508.14076):
the traces come from an offline stylometric teacher; --sft.pack-length packs them, and
--sft.group-size reads the exemplars that several of them share once.
"""

from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from experiments.prepare import base_model, dev_watch, prepare
from experiments.presets import PRESETS, RunConfig, parse_run
from experiments.stage import Stage, train_stage
from experiments.synthesize import load_pairs, load_traces
from persrm_jax import cli
from persrm_jax.data.batches import encode_traces
from persrm_jax.data.feed import Feed, make_feed
from persrm_jax.models.load import Model
from persrm_jax.models.trainable import split
from persrm_jax.runs import RunFolder
from persrm_jax.tokenizer import Tokenizer
from persrm_jax.training.sft import SftConfig, make_sft_step
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
    with run.stage(stage):
        key = jax.random.key(seed)
        trained, frozen = split(start.params, start.config, cfg.train, key, mesh)
        step_fn = make_sft_step(
            sft_feed(cfg, run, start.tokenizer, traces or load_traces(run.path), sft, seed),
            start.config,
            cfg.compute,
            sft,
            mesh=mesh,
            trainable=cfg.train,
            frozen=frozen,
            loss_cfg=cfg.loss,
        )
        watch = dev_watch(
            cfg,
            run,
            start,
            mesh,
            every=sft.eval_every,
            stop_at=sft.stop_accuracy,
            patience=sft.patience,
            frozen=frozen,
        )
        how = Stage(stage, sft.steps, sft.steps, sft.optimizer, sft.save_every, "loss/total")
        train_stage(cfg, run, how, start, trained, frozen, step_fn, watch, key=key, mesh=mesh)


def sft_feed(
    cfg: RunConfig,
    run: RunFolder,
    tokenizer: Tokenizer,
    traces: Sequence[Trace],
    sft: SftConfig,
    seed: int,
) -> Feed:
    """The batches that SFT makes of traces; those that show the same exemplars begin alike."""
    shown = {pair.pair_id: (pair.prompt, pair.exemplars) for pair in load_pairs(run.path, "train")}
    return make_feed(
        encode_traces(traces, tokenizer, cfg.prompt),
        [shown[trace.pair_id] for trace in traces],
        batch_size=sft.batch_size,
        pack_length=sft.pack_length,
        group_size=sft.group_size,
        pad_id=tokenizer.pad_id,
        seed=seed,
    )


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
