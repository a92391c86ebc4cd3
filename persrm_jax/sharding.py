"""Meshes and where arrays live on them: logical axes -> PartitionSpec -> NamedSharding.

A mesh has two axes: `data` splits the batch and, as fully sharded data parallelism does, the
parameters; `model` splits heads, MLP and vocabulary (tensor parallelism). To change the layout,
change a rule below.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

Rules = Mapping[str, str | tuple[str, ...] | None]
PARAM_RULES: Rules = {
    "layers": None,
    "embed": "data",
    "heads": "model",
    "kv_heads": "model",
    "head_width": None,
    "mlp": "model",
    # By rows, which a TPU gathers and scatters whole; a part of a vector is rarely a whole tile.
    "vocab": ("model", "data"),
    "vector": None,
    "norm": None,
    "rank": None,
}
ACTIVATION_RULES: Rules = {
    "batch": "data",
    "length": None,
    "embed": None,
    "heads": "model",
    "kv_heads": "model",
    "head_width": None,
    "mlp": "model",
    "vocab": "model",
}
MAX_SIMULATED_DEVICES = 64


@dataclass(frozen=True)
class MeshShape:
    """Devices along `data` and along `model`; written `8x1` on the command line."""

    data: int = 1
    model: int = 1

    def __post_init__(self) -> None:
        if self.data < 1 or self.model < 1:
            raise ValueError(f"--mesh {self}: both sides must be at least 1")

    def __str__(self) -> str:
        return f"{self.data}x{self.model}"

    @property
    def num_devices(self) -> int:
        return self.data * self.model

    @classmethod
    def parse(cls, text: str) -> "MeshShape":
        """Reads `DATAxMODEL`."""
        sides = text.lower().split("x")
        if len(sides) != 2 or not all(side.isascii() and side.isdigit() for side in sides):
            raise ValueError(f"--mesh {text}: expected DATAxMODEL, such as 8x1")
        return cls(*map(int, sides))


def make_mesh(shape: MeshShape) -> Mesh:
    """The mesh on this machine's accelerators or, where it has none, on simulated CPU devices.

    Raises:
        ValueError: the machine has fewer devices than `shape` asks for.
    """
    # Of several processes each has simulated its share before.
    if shape.num_devices <= MAX_SIMULATED_DEVICES and not jax.distributed.is_initialized():
        try:
            # Only the CPU backend reads this, and only before it starts.
            set_before = jax.config.jax_num_cpu_devices  # type: ignore[attr-defined]
            jax.config.update("jax_num_cpu_devices", max(shape.num_devices, set_before))
        except RuntimeError:
            pass  # It has started: its devices are counted below.
    devices = jax.devices()
    if len(devices) < shape.num_devices:
        have = len(devices)
        kind = devices[0].device_kind
        too_many = shape.num_devices > MAX_SIMULATED_DEVICES
        limit = MAX_SIMULATED_DEVICES if devices[0].platform == "cpu" and too_many else have
        raise ValueError(
            f"--mesh {shape} needs {shape.num_devices} devices and this machine offers {limit} "
            f"({kind}): --mesh {limit}x1 would fit"
        )
    if jax.process_count() > 1 and len(devices) != shape.num_devices:
        raise ValueError(
            f"--mesh {shape} has {shape.num_devices} devices and the run's {jax.process_count()} "
            f"processes have {len(devices)}: --mesh {len(devices)}x1 would fit"
        )
    grid = np.array(devices[: shape.num_devices]).reshape(shape.data, shape.model)
    return Mesh(grid, ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))


def check_mesh(shape: MeshShape, num_heads: int, batches: Mapping[str, int]) -> None:
    """Refuses a mesh that does not divide the model's heads or a batch.

    Args:
        num_heads: query heads of the model.
        batches: sequences per step, under the name of the flag that sets them.

    Raises:
        ValueError: in one sentence, with the sides that would fit.
    """
    if num_heads % shape.model:
        fits = ", ".join(str(n) for n in range(1, num_heads + 1) if num_heads % n == 0)
        raise ValueError(
            f"--mesh {shape}: the model has {num_heads} query heads, which {shape.model} does not "
            f"divide; the second side can be {fits}"
        )
    for name, size in batches.items():
        if size % shape.data:
            fits = ", ".join(str(n) for n in range(1, size + 1) if size % n == 0)
            raise ValueError(
                f"--mesh {shape}: {name} is {size}, which {shape.data} does not divide; "
                f"the first side can be {fits}"
            )


def check_parts(flag: str, num_parts: int, batch_size: int, shape: MeshShape) -> None:
    """Refuses parts of a batch that are not alike, or that the data axis does not divide.

    Raises:
        ValueError: with the numbers of parts that would fit.
    """
    fits = [n for n in range(1, batch_size + 1) if batch_size % (n * shape.data) == 0]
    if num_parts not in fits:
        raise ValueError(
            f"{flag} {num_parts}: a step's {batch_size} rows on --mesh {shape} can be taken in "
            f"{', '.join(map(str, fits))} parts"
        )


def partition(
    shape: Sequence[int],
    axes: Sequence[str],
    rules: Rules,
    mesh: Mesh | AbstractMesh,
) -> PartitionSpec:
    """The spec of an array whose dims have the logical `axes`. A dim that its mesh axis does not
    divide (SmolLM2 has 3 key-value heads) is replicated; of several mesh axes it takes those, in
    their order, that divide it."""
    dims: list[str | tuple[str, ...] | None] = []
    for size, axis in zip(shape, axes, strict=True):
        wanted = rules[axis] or ()
        names: list[str] = []
        for name in (wanted,) if isinstance(wanted, str) else wanted:
            if size % (mesh.shape[name] * math.prod(mesh.shape[n] for n in names)) == 0:
                names.append(name)
        dims.append(tuple(names) if len(names) > 1 else names[0] if names else None)
    return PartitionSpec(*dims)


def param_sharding(
    shape: Sequence[int], axes: Sequence[str], mesh: Mesh | AbstractMesh
) -> NamedSharding:
    """Where a parameter lives."""
    return NamedSharding(mesh, partition(shape, axes, PARAM_RULES, mesh))


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Where batch-major arrays live."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def constrain(x: jax.Array, *axes: str) -> jax.Array:
    """Pins an activation's layout under the mesh of `jax.set_mesh`; without one, does nothing."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition(x.shape, axes, ACTIVATION_RULES, mesh))
