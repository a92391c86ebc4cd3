"""What all stages of training share: they resume, log, stop when asked, and leave a model."""

from dataclasses import dataclass, replace

import jax
from jax.sharding import Mesh

from experiments.presets import RunConfig
from persrm_jax.checkpoint import Checkpoints
from persrm_jax.metrics import MetricsWriter
from persrm_jax.models.load import Model, save_model
from persrm_jax.models.params import Params
from persrm_jax.models.trainable import merge
from persrm_jax.runs import RunFolder
from persrm_jax.training.loop import StepFn, Watch, train
from persrm_jax.training.optimizer import OptimizerConfig, make_optimizer
from persrm_jax.training.step import init_state


@dataclass(frozen=True)
class Stage:
    """How a stage trains."""

    name: str
    """Of its folder in the run."""
    num_steps: int
    num_updates: int
    """Of the optimizer."""
    optimizer: OptimizerConfig
    save_every: int
    """Steps between checkpoints."""
    show: str
    """The metric that its line on the console has."""


def train_stage(
    cfg: RunConfig,
    run: RunFolder,
    stage: Stage,
    start: Model,
    trained: Params,
    frozen: Params,
    step_fn: StepFn,
    watch: Watch,
    *,
    key: jax.Array,
    mesh: Mesh,
) -> None:
    """Trains and saves the model in `RUN/STAGE/model`.

    Args:
        start: whose config and tokenizer the model keeps.
        trained: its parameters that train, `frozen` the others.
    """
    folder = run.path / stage.name
    checkpoints = Checkpoints(folder / "checkpoints")
    try:
        state = train(
            stage.name,
            init_state(trained, make_optimizer(stage.optimizer, stage.num_updates), key, mesh),
            step_fn,
            num_steps=stage.num_steps,
            save_every=stage.save_every,
            checkpoints=checkpoints,
            writer=lambda first: MetricsWriter(folder, first),
            show=stage.show,
            watch=watch,
            profile=cfg.profile,
        )
    finally:
        checkpoints.close()
    merged = merge(state.params, frozen, cfg.train)
    save_model(folder / "model", replace(start, params=merged))
