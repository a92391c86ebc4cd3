"""What every command does first: check that the run can work, make its data, load its model."""

from collections.abc import Callable

import jax
from jax.sharding import Mesh

from experiments.presets import FREE_FIELDS, RunConfig
from experiments.synthesize import load_pairs, synthesize
from persrm_jax.distributed import initialize
from persrm_jax.evaluation.judge import JudgePairs, make_judge
from persrm_jax.evaluation.statistics import judgement_credit
from persrm_jax.models.load import (
    FROM_SCRATCH,
    Model,
    load_pretrained,
    model_folder,
    new_model,
    read_config,
)
from persrm_jax.models.params import Params
from persrm_jax.models.trainable import join
from persrm_jax.runs import RunFolder
from persrm_jax.sharding import check_mesh, check_parts, make_mesh
from persrm_jax.tokenizer import Tokenizer
from persrm_jax.training.loop import Watch


def prepare(cfg: RunConfig) -> tuple[RunFolder, Mesh]:
    """The mesh and the run folder, its data made."""
    initialize(cfg.cluster, cfg.mesh.num_devices)
    mesh = make_mesh(cfg.mesh)
    check_fit(cfg)
    run = RunFolder(cfg.folder, cfg, free=FREE_FIELDS, apart=("bt",))
    if not run.is_done("data"):
        synthesize(cfg, run, mesh)
    return run, mesh


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
            "--bt.batch-size": cfg.bt.batch_size,
            "--eval.batch-size": cfg.eval.batch_size,
        },
    )
    check_parts("--sft.accumulate", cfg.sft.accumulate, cfg.sft.batch_size, cfg.mesh)
    check_parts("--bt.accumulate", cfg.bt.accumulate, cfg.bt.batch_size, cfg.mesh)
    check_parts("--rft.mini-batches", cfg.rft.mini_batches, cfg.rft.prompts, cfg.mesh)
    rows = cfg.rft.prompts // cfg.rft.mini_batches
    check_parts("--rft.accumulate", cfg.rft.accumulate, rows, cfg.mesh)
    shared = cfg.pairs.exemplars_shared_by
    if cfg.bt.group_size > shared:
        raise ValueError(
            f"--bt.group-size {cfg.bt.group_size}: at most {shared} pairs share their exemplars "
            f"with --pairs.exemplars-shared-by {shared}"
        )
    most = shared * (1 + cfg.teacher.judges_both_orders)
    if cfg.sft.group_size > most:
        raise ValueError(
            f"--sft.group-size {cfg.sft.group_size}: at most {most} traces share their exemplars "
            f"with --pairs.exemplars-shared-by {shared}"
        )
    if cfg.rft.prompts % cfg.prompt.questions_a_pair:
        raise ValueError(
            f"--rft.prompts {cfg.rft.prompts}: must be even with --prompt.answer score, which "
            "shows each text of a pair alone"
        )
    if cfg.rft.pack_length and cfg.compute.attention == "splash":
        raise ValueError(
            f"--rft.pack-length {cfg.rft.pack_length}: --compute.attention splash cannot keep the "
            "completions of a row apart; use chunked or auto"
        )
    if cfg.rft.rollout_parts > 1:
        num_pairs = cfg.rft.prompts // cfg.prompt.questions_a_pair
        check_parts("--rft.rollout-parts", cfg.rft.rollout_parts, num_pairs, cfg.mesh)
    for flag, sampling in (("rft", cfg.rft.sampling), ("eval", cfg.eval.sampling)):
        if cfg.prompt.max_tokens + sampling.max_new_tokens > model.max_positions:
            raise ValueError(
                f"--prompt.max-tokens {cfg.prompt.max_tokens} and "
                f"--{flag}.sampling.max-new-tokens {sampling.max_new_tokens} exceed the "
                f"model's context of {model.max_positions} tokens"
            )


def judge_of(
    cfg: RunConfig,
    model: Model,
    mesh: Mesh,
    advance: Callable[[int], object] = lambda done: None,
    samples: int = 0,
) -> JudgePairs:
    """The model's decoder and tokenizer as a judge; its weights come with each call. It answers
    greedily, or so many times each."""
    return make_judge(
        model.config,
        cfg.eval,
        samples=samples,
        tokenizer=model.tokenizer,
        prompt=cfg.prompt,
        compute=cfg.compute,
        seed=cfg.seed,
        mesh=mesh,
        advance=advance,
    )


def dev_watch(
    cfg: RunConfig,
    run: RunFolder,
    model: Model,
    mesh: Mesh,
    *,
    every: int,
    stop_at: float = 2.0,
    patience: int = 0,
    frozen: Params,
) -> Watch:
    """Greedy accuracy on the run's dev authors, both orders, every so many steps."""
    pairs = load_pairs(run.path, "dev")[: cfg.eval.max_dev_pairs]
    judge = judge_of(cfg, model, mesh)

    def evaluate(params: Params) -> float:
        whole = join(params, frozen, cfg.train)
        credits = [judgement_credit(p) for p in judge(whole, pairs, "dev", "dev")]
        return sum(credits) / len(credits)

    return Watch(every if pairs else 0, evaluate, stop_at, patience)
