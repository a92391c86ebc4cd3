"""Supervised fine-tuning on reasoning traces.

    python -m experiments.sft [PRESET] [--mesh 8x1] [--data FILE.jsonl.gz] [--out DIR]

Makes the data first where the run folder has none. Departures from PersRM-R1 (arXiv 2508.14076):
the traces come from an offline stylometric teacher, and rows are padded, not packed.
"""

from collections.abc import Sequence
from dataclasses import replace

import jax
from jax.sharding import Mesh

from experiments.presets import DEFAULT, FREE_FIELDS, PRESETS, RunConfig
from experiments.synthesize import load_traces, synthesize
from persrm_jax import cli
from persrm_jax.checkpoint import Checkpoints
from persrm_jax.data.batches import encode_traces
from persrm_jax.metrics import MetricsWriter
from persrm_jax.models.load import (
    FROM_SCRATCH,
    Model,
    load_pretrained,
    model_folder,
    new_model,
    read_config,
    save_model,
)
from persrm_jax.runs import RunFolder
from persrm_jax.sharding import check_mesh, make_mesh
from persrm_jax.tokenizer import Tokenizer
from persrm_jax.training.loop import train
from persrm_jax.training.optimizer import make_optimizer
from persrm_jax.training.sft import SftConfig, make_sft_step
from persrm_jax.training.step import init_state


def base_model(cfg: RunConfig, run: RunFolder, mesh: Mesh) -> Model:
    """The model that training starts from: fresh weights, or a pretrained model's."""
    dtype = cfg.compute.param_dtype
    if cfg.model == FROM_SCRATCH:
        tokenizer = Tokenizer.load(run.path / "tokenizer")
        return new_model(tokenizer, jax.random.key(cfg.seed), mesh, dtype)
    return load_pretrained(cfg.model, mesh, dtype)


def check_fit(cfg: RunConfig) -> None:
    """Refuses, before anything is written, what cannot run.

    Raises:
        ValueError: a mesh that does not divide the model's heads or a batch, or prompts and
            completions longer than the model's context.
    """
    model = read_config(cfg.model if cfg.init is None else str(model_folder(cfg.init)))
    check_mesh(
        cfg.mesh,
        model.num_heads,
        {
            "--sft.batch-size": cfg.sft.batch_size,
            "--rft.prompts": cfg.rft.prompts,
            "--eval.batch-size": cfg.eval.batch_size,
        },
    )
    for flag, sampling in (("rft", cfg.rft.sampling), ("eval", cfg.eval.sampling)):
        if cfg.prompt.max_tokens + sampling.max_new_tokens > model.max_positions:
            raise ValueError(
                f"--prompt.max-tokens {cfg.prompt.max_tokens} and "
                f"--{flag}.sampling.max-new-tokens {sampling.max_new_tokens} exceed the "
                f"model's context of {model.max_positions} tokens"
            )


def run_sft(
    cfg: RunConfig,
    run: RunFolder,
    start: Model,
    mesh: Mesh,
    *,
    stage: str,
    sft: SftConfig,
    seed: int,
) -> None:
    """Trains `start` on the run's traces and saves the model in `RUN/STAGE/model`."""
    folder = run.path / stage
    with run.stage(stage):
        rows = encode_traces(load_traces(run.path), start.tokenizer, cfg.prompt)
        step_fn = make_sft_step(
            rows,
            start.config,
            cfg.compute,
            sft,
            pad_id=start.tokenizer.pad_id,
            seed=seed,
            mesh=mesh,
        )
        optimizer = make_optimizer(sft.optimizer, sft.steps)
        checkpoints = Checkpoints(folder / "checkpoints")
        try:
            state = train(
                stage,
                init_state(start.params, optimizer, jax.random.key(seed), mesh),
                step_fn,
                num_steps=sft.steps,
                save_every=sft.save_every,
                checkpoints=checkpoints,
                writer=lambda first: MetricsWriter(folder, first),
                show="loss/total",
            )
        finally:
            checkpoints.close()
        save_model(folder / "model", replace(start, params=state.params))


def prepare(cfg: RunConfig) -> tuple[RunFolder, Mesh]:
    """The mesh and the run folder, its data made."""
    mesh = make_mesh(cfg.mesh)
    check_fit(cfg)
    run = RunFolder(cfg.folder, cfg, free=FREE_FIELDS)
    if not run.is_done("data"):
        synthesize(cfg, run)
    return run, mesh


def main(args: Sequence[str]) -> None:
    """The command line."""
    cfg = cli.parse_preset(PRESETS, DEFAULT, "python -m experiments.sft", args)
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
