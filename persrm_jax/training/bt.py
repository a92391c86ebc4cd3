"""A scalar reward model from pairs, after Bradley and Terry: the reasoning judge's rival without
reasoning."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool

from persrm_jax.chips import peak_flops
from persrm_jax.data.batches import batch_indices, bucketed
from persrm_jax.data.pair_rows import PairRow, alike, group_pairs, longest
from persrm_jax.distributed import place_rows
from persrm_jax.models.config import ComputeConfig, ModelConfig
from persrm_jax.models.flops import forward_flops, train_flops
from persrm_jax.models.params import Params
from persrm_jax.models.reward import rewards
from persrm_jax.models.trainable import TrainableConfig, trained_share
from persrm_jax.sharding import batch_sharding
from persrm_jax.training.guard import StepLog
from persrm_jax.training.loop import StepFn
from persrm_jax.training.optimizer import (
    OptimizerConfig,
    make_optimizer,
    make_schedule,
    num_updates,
)
from persrm_jax.training.step import ALL, LossFn, Metrics, TrainState, make_train_step
from persrm_jax.types import Groups, Totals


@dataclass(frozen=True)
class BtConfig:
    """Training of the scalar Bradley-Terry reward model."""

    steps: int = 100
    """Optimizer steps."""
    batch_size: int = 64
    """Rows a step: pairs, or groups of pairs."""
    group_size: int = 1
    """Pairs of a row, at most, that show the same exemplars (`--pairs.exemplars-shared-by`), which
    are then computed once."""
    accumulate: int = 1
    """Parts in which a step takes its rows; more parts take less memory."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    save_every: int = 100
    """Steps between checkpoints."""
    eval_every: int = 0
    """Steps between evaluations on dev authors; 0 for none."""
    patience: int = 0
    """Evaluations without a new best after which training ends with the best; 0: never."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "group_size"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise ValueError(f"--bt.{flag} {getattr(self, name)}: must be at least 1")
        if self.patience and not self.eval_every:
            raise ValueError(f"--bt.patience {self.patience}: needs --bt.eval-every")


def count_pairs(batch: Groups) -> Totals:
    """Pairs and their tokens."""
    tokens = jnp.sum(batch.prompt_mask) + jnp.sum(batch.mask)
    return Totals(jnp.sum(_present(batch)), tokens)


def _present(batch: Groups) -> Bool[Array, "P num_pairs"]:
    """Which places hold a pair."""
    return jnp.any(batch.mask, axis=2)[:, ::2]


def make_bt_loss(cfg: ModelConfig, compute: ComputeConfig) -> LossFn:
    """-log sigmoid(r_chosen - r_rejected), mean over pairs, in nats: the negative log-likelihood of
    the preferences under Bradley and Terry's model (1952), as in InstructGPT (arXiv 2203.02155,
    eq. 1) with one pair a comparison."""

    def bt_loss(
        params: Params, batch: Groups, totals: Totals | None = None
    ) -> tuple[jax.Array, Metrics]:
        num_pairs, present = (totals or count_pairs(batch)).sequences, _present(batch)
        found = rewards(params, cfg, batch, compute)
        margins = found[:, ::2] - found[:, 1::2]

        def mean(x: jax.Array) -> jax.Array:
            return jnp.sum(jnp.where(present, x, 0.0)) / num_pairs

        loss = -mean(jax.nn.log_sigmoid(margins))
        return loss, {
            "loss/total": loss,
            "reward/accuracy": mean(jnp.where(margins == 0, 0.5, margins > 0)),
            "reward/margin": mean(margins),
        }

    return bt_loss


def make_bt_step(
    rows: Sequence[PairRow],
    model: ModelConfig,
    compute: ComputeConfig,
    cfg: BtConfig,
    *,
    pad_id: int,
    seed: int,
    mesh: Mesh,
    trainable: TrainableConfig = ALL,
    frozen: Params | None = None,
) -> StepFn:
    """Returns (state, step) -> (state, log) over encoded pairs, all batches of one shape.

    Args:
        frozen: parameters that the state does not hold, as `trainable` has it.
    """
    train_step = make_train_step(
        make_bt_loss(model, compute),
        make_optimizer(cfg.optimizer, cfg.steps),
        count=count_pairs,
        accumulate=cfg.accumulate,
        trainable=trainable,
    )
    schedule = make_schedule(cfg.optimizer, cfg.steps)
    groups = [
        part.tolist()
        for members in alike(rows)
        for part in np.array_split(members, -(-len(members) // cfg.group_size))
    ]
    start_length, length = map(bucketed, longest(rows))
    sharding = batch_sharding(mesh)

    def step_fn(state: TrainState, step: int) -> tuple[TrainState, StepLog]:
        begin = time.perf_counter()
        numbers = batch_indices(len(groups), cfg.batch_size, step, seed).tolist()
        chosen = [[rows[i] for i in groups[number]] for number in numbers]

        def make(places: list[int]) -> Groups:
            inside = [chosen[i] for i in places]
            return group_pairs(inside, cfg.group_size, (start_length, length), pad_id)

        placed = place_rows(make, len(chosen), sharding)
        learning_rate = float(schedule(num_updates(state.opt_state)))
        state, metrics = train_step(state, placed, frozen)
        scalars = {tag: float(value) for tag, value in jax.device_get(metrics).items()}
        seconds = time.perf_counter() - begin
        starts = np.array([len(members[0].before) for members in chosen])
        texts = [[len(ids) for row in members for ids in row.texts] for members in chosen]
        after = np.repeat(starts, list(map(len, texts)))
        lengths = np.concatenate([starts, *texts])
        forward = forward_flops(
            model, lengths, np.concatenate([np.zeros_like(starts), after]), scored=0.0
        )
        room = placed.tokens.size
        flops = train_flops(forward, trained_share(state.params, frozen))
        return state, StepLog(
            {
                **scalars,
                "loss/learning_rate": learning_rate,
                "time/train_s": seconds,
                "time/tokens_per_s": int(lengths.sum()) / seconds,
                "time/mfu": flops / seconds / (peak_flops() * mesh.size),
                "length/padding": 1 - int(lengths.sum()) / (start_length * len(starts) + room),
            },
            batch=placed,
        )

    return step_fn
