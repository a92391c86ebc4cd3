"""Several processes, one program, through JAX's own runtime.

Every process runs the same command on the same run folder (a shared disk); the first one writes it.
Data that all processes have is placed a part on each device; what devices hold is fetched whole.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

Tree = TypeVar("Tree")


@dataclass(frozen=True)
class ClusterConfig:
    """The processes of a run. Under Slurm's `srun` and Open MPI, and where TPU_WORKER_HOSTNAMES or
    JAX_COORDINATOR_ADDRESS is set, JAX finds them by itself."""

    coordinator: str | None = None
    """HOST:PORT at which process 0 can be reached by all."""
    num_processes: int | None = None
    """How many processes the run has."""
    process_id: int | None = None
    """Which of them this is, from 0."""

    def __post_init__(self) -> None:
        given = [self.coordinator, self.num_processes, self.process_id]
        if any(x is not None for x in given) and any(x is None for x in given):
            raise ValueError(
                "--coordinator, --num-processes and --process-id go "
                "together, or none of them where JAX detects the cluster"
            )
        if self.num_processes is not None and self.process_id is not None:
            if not 0 <= self.process_id < self.num_processes:
                raise ValueError(
                    f"--process-id {self.process_id}: must be from 0 to {self.num_processes - 1}"
                )


def is_cluster_job() -> bool:
    """Whether the environment is that of one process among several, in a cluster that JAX knows."""
    env = os.environ
    return (
        int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1
        or int(env.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
        or "," in env.get("TPU_WORKER_HOSTNAMES", "")
        or "JAX_COORDINATOR_ADDRESS" in env
    )


def initialize(cfg: ClusterConfig, num_devices: int) -> None:
    """Joins the run's processes; alone, does nothing. Comes before any other use of JAX.

    Args:
        num_devices: of the whole mesh; with processes named by flags, on machines without
            accelerators, each simulates its share.

    Raises:
        ValueError: the processes do not share the devices evenly.
    """
    if cfg.num_processes is None:
        if is_cluster_job() and not jax.distributed.is_initialized():
            jax.distributed.initialize()
        return
    if num_devices % cfg.num_processes:
        raise ValueError(
            f"--num-processes {cfg.num_processes}: does not divide the mesh's {num_devices} devices"
        )
    if cfg.num_processes > 1 and not jax.distributed.is_initialized():
        # Only the CPU backend reads this.
        jax.config.update("jax_num_cpu_devices", num_devices // cfg.num_processes)
        jax.distributed.initialize(cfg.coordinator, cfg.num_processes, cfg.process_id)


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def on_main(action: Callable[[], None]) -> None:
    """Runs `action` in process 0 while the others wait.

    Raises:
        ValueError: in the other processes, that process 0 stopped; in it, whatever `action` raised.
    """
    error: BaseException | None = None
    if is_main():
        try:
            action()
        except BaseException as raised:  # of whatever kind: the others must not wait for ever
            error = raised
    if jax.process_count() > 1:
        failed = multihost_utils.broadcast_one_to_all(np.array(error is not None))
        if failed and not is_main():
            raise ValueError("process 0 stopped; its message says why")
    if error is not None:
        raise error


def from_main(make: Callable[[], list[float]], count: int) -> list[float]:
    """`count` numbers that process 0 makes, in every process.

    Raises:
        ValueError: as `on_main`.
    """
    found = [0.0] * count

    def action() -> None:
        found[:] = make()

    on_main(action)
    if jax.process_count() == 1:
        return found
    return multihost_utils.broadcast_one_to_all(np.array(found)).tolist()


def any_process(flag: bool) -> bool:
    """Whether `flag` holds in any process. All of them must ask."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def place(tree: Tree, sharding: Sharding) -> Tree:
    """Arrays that all processes have alike, as arrays of the mesh."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda x: _place(x, sharding), tree)


def _place(x: Any, sharding: Sharding) -> jax.Array:
    if jax.dtypes.issubdtype(getattr(x, "dtype", None), jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_place(jax.random.key_data(x), sharding))
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def place_rows(make: Callable[[list[int]], Tree], num_rows: int, sharding: Sharding) -> Tree:
    """A batch of the mesh, of which each process makes only the rows that its devices hold.

    Args:
        make: the arrays [rows, ...] of the rows asked for.
        sharding: splits rows.
    """
    if jax.process_count() == 1:
        return jax.device_put(make(list(range(num_rows))), sharding)
    parts = sharding.addressable_devices_indices_map((num_rows,)).values()
    mine = sorted({row for part in parts if part for row in range(num_rows)[part[0]]})
    where = {row: i for i, row in enumerate(mine)}

    def one(x: np.ndarray) -> jax.Array:
        def read(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            return x[[where[row] for row in range(num_rows)[index[0]]]]

        return jax.make_array_from_callback((num_rows, *x.shape[1:]), sharding, read)

    return jax.tree.map(one, make(mine))


def share_work(function: Callable[[int], int], count: int) -> list[int]:
    """[function(0), ..., function(count - 1)], of which each process works out its share; results
    are 0 or more.

    Raises:
        ValueError: in every process, where `function` raised one in any.
    """
    num_processes, me = jax.process_count(), jax.process_index()
    if num_processes == 1:
        return [function(i) for i in range(count)]
    mine = np.zeros(-(-count // num_processes), np.int64)
    error: ValueError | None = None
    try:
        for at, i in enumerate(range(me, count, num_processes)):
            mine[at] = function(i)
    except ValueError as raised:
        error = raised
        mine[:] = -1
    found = multihost_utils.process_allgather(mine)
    if error is not None:
        raise error
    if (found < 0).any():
        bad = int(np.argmax((found < 0).any(axis=1)))
        raise ValueError(f"process {bad} stopped; its message says why")
    return found.T.reshape(-1)[:count].tolist()


def fetch(tree: Any) -> Any:
    """Arrays of the mesh as NumPy's, whole, in every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(lambda x: multihost_utils.process_allgather(x, tiled=True), tree)
