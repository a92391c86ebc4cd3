"""Orbax checkpoints: the train state (parameters, optimizer, step, key) of a stage."""

from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

State = TypeVar("State")
KEEP_LATEST = 2
ACCURACY, NOT_MEASURED = "dev_accuracy", -1.0


class Checkpoints:
    """The two latest states of one stage and its best, in `folder`, one subfolder a step.

    A write that was cut off is ignored on the next start. Writes go on in the background; `close`
    waits for them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                    [
                        checkpoint_managers.LatestN(KEEP_LATEST),
                        checkpoint_managers.BestN(get_metric_fn=_rank, n=1),
                    ]
                ),
                best_fn=_accuracy,  # or metrics would not be stored
                cleanup_tmp_directories=True,
                create=True,
            ),
        )

        # Orbax knows a checkpoint's metrics only once its write has ended.
        self._accuracies = {
            step: _accuracy(metrics)
            for step in self._manager.all_steps()
            if (metrics := self._manager.metrics(step))
        }

    def latest_step(self) -> int | None:
        """The last step saved, or None."""
        return self._manager.latest_step()

    def best_step(self) -> tuple[int, float] | None:
        """The step with the highest accuracy, the first of equals, and that accuracy."""
        scored = [(value, -step) for step, value in self._accuracies.items() if value >= 0]
        return (-max(scored)[1], max(scored)[0]) if scored else None

    def save(self, step: int, state: Any, accuracy: float = NOT_MEASURED) -> None:
        """Saves `state` as `step`, unless that step is there already.

        Raises:
            ValueError: the disk takes no more; it names the last checkpoint that is whole.
        """
        if step == self._manager.latest_step():
            return
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state)),
                metrics={ACCURACY: accuracy, "step": step},
            )
            self._accuracies[step] = accuracy
        except OSError as error:
            raise self._bad_disk(error) from None

    def _bad_disk(self, error: Exception) -> ValueError:
        whole = [s for s in sorted(self.folder.glob("[0-9]*")) if s.name.isdigit()]
        last = max((int(s.name) for s in whole), default=None)
        kept = "no checkpoint is whole" if last is None else f"step {last} is whole"
        return ValueError(f"{self.folder}: a checkpoint cannot be written ({error}); {kept}")

    def restore(self, step: int, like: State) -> State:
        """Loads `step` into the shapes, dtypes and shardings of `like`, which may be abstract."""
        target = jax.tree.map(_abstract, like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        return self._manager.restore(step, args=args)["state"]

    def close(self) -> None:
        """Waits for the last write.

        Raises:
            ValueError: it failed; as `save`.
        """
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._bad_disk(error) from None
        finally:
            self._manager.close()


def _accuracy(metrics: dict[str, float]) -> float:
    return metrics[ACCURACY]


def _rank(metrics: dict[str, float]) -> tuple[float, float]:
    """What the best checkpoint has most of. Of equals the first is kept, of those that were not
    measured the last, which is kept anyway."""
    step = float(metrics["step"])
    return metrics[ACCURACY], step if metrics[ACCURACY] == NOT_MEASURED else -step


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def save_tree(folder: Path, tree: Any) -> None:
    """Writes one pytree (a model's parameters), whole or not at all."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute(), tree, force=True)


def load_tree(folder: Path, like: State) -> State:
    """Reads a pytree that `save_tree` wrote into the shapes, dtypes and shardings of `like`.

    Raises:
        ValueError: no such folder, or arrays of other shapes.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such checkpoint folder")
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.metadata(folder.absolute()).item_metadata
        if found is None:
            raise ValueError(f"{folder}: holds no checkpoint")
        if (problem := _mismatch(like, found)) is not None:
            raise ValueError(f"{folder}: not a checkpoint of this model ({problem})")
        return checkpointer.restore(folder.absolute(), jax.tree.map(_abstract, like))


def stored_dtypes(folder: Path) -> set[str]:
    """The dtypes of the arrays that `save_tree` wrote."""
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.metadata(folder.absolute()).item_metadata
    leaves = jax.tree.leaves(found, is_leaf=lambda x: hasattr(x, "shape"))
    return {str(leaf.dtype) for leaf in leaves}


def load_params(step: Path, like: State) -> State:
    """The parameters alone of a train state that `Checkpoints` wrote as the folder `step`.

    Raises:
        ValueError: no such checkpoint, or another model's.
    """
    item = {"params": jax.tree.map(_abstract, like)}
    args = ocp.args.PyTreeRestore(
        item=item,
        restore_args=ocp.checkpoint_utils.construct_restore_args(item),
        partial_restore=True,
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        try:
            return checkpointer.restore(step.absolute() / "state", args=args)["params"]
        except (FileNotFoundError, KeyError, ValueError) as error:
            raise ValueError(f"{step}: not a checkpoint of this model ({error})") from None


def _mismatch(like: Any, found: Any) -> str | None:
    """The first difference in names or shapes, in words."""
    want = {jax.tree_util.keystr(p): x.shape for p, x in jax.tree.leaves_with_path(like)}
    have = {
        jax.tree_util.keystr(p): tuple(x.shape)
        for p, x in jax.tree.leaves_with_path(found, is_leaf=lambda x: hasattr(x, "shape"))
    }
    for name in sorted(want.keys() | have.keys()):
        if want.get(name) != have.get(name):
            return f"{name}: shape {have.get(name)} where the model has {want.get(name)}"
    return None
