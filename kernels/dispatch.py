"""Which implementation of an operation runs where.

Every operation has one public function with `impl`: `reference` is its specification, `xla` runs
everywhere, `pallas` on TPUs and Hopper GPUs. `auto` takes what `kernels.tune` measured as fastest
on the chip, and XLA where nobody has measured. An explicit `impl` that cannot run raises.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

Impl = Literal["auto", "xla", "pallas", "reference"]
Ref = Any
"""What a Pallas kernel reads and writes; Mosaic GPU hands it wrapped ones too."""
QWEN_CHUNK = 160 * 2**20
"""Logits of 1,024 tokens over Qwen's vocabulary, 640 MiB."""
TUNED = Path(__file__).parent / "tuned.json"


class Target(NamedTuple):
    """The chip that a program is traced for, which may not be here."""

    platform: str
    kind: str
    """`device_kind`, as JAX reports it."""
    num_cores: int
    interpret: bool = False
    """Whether Pallas kernels run as an imitation on this machine's CPU."""


@dataclass(frozen=True)
class Tuned:
    """What was measured as fastest on one kind of chip."""

    forward_chunk: int = QWEN_CHUNK
    """Logits that exist at once on a device, where a forward pass takes tokens in chunks."""
    gradient_chunk: int = QWEN_CHUNK
    """And where gradients form with them: each chunk reads and writes the weight's gradient."""
    min_tokens: int = 128
    """In a chunk, however large the vocabulary: fewer would starve a matrix product."""
    linear_logprob: Literal["xla", "pallas"] = "xla"
    tokens: int = 0
    """Tokens of the Pallas kernel's tile; 0: as the chip's memory allows."""
    vocabulary: int = 0
    """Rows of the vocabulary in it."""
    token_loss: Literal["xla", "pallas"] = "xla"
    group_advantage: Literal["xla", "pallas"] = "xla"


_imitated: list[Target] = []
_used: list[Tuned] = []


def platform() -> str:
    """The platform of the mesh in force, which may be one that is not here; without a mesh, this
    machine's."""
    return target().platform


def target() -> Target:
    """The chip of the mesh in force; without a mesh, this machine's."""
    if _imitated:
        return _imitated[-1]
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None:
        return Target(device.platform, device.device_kind, device.num_cores or 1)
    here = jax.devices()[0]
    return Target(here.platform, here.device_kind, getattr(here, "core_count", 1))


@contextmanager
def imitate(kind: str, platform: str, num_cores: int = 1) -> Iterator[None]:
    """What is traced inside takes this machine for a chip of `kind`, and runs kernels for it in
    Pallas's imitation of it: slowly, for tests."""
    _imitated.append(Target(platform, kind, num_cores, interpret=True))
    try:
        yield
    finally:
        _imitated.pop()


@cache
def _all_tuned() -> dict[str, Tuned]:
    return {kind: Tuned(**fields) for kind, fields in json.loads(TUNED.read_text()).items()}


def tuned() -> Tuned:
    """The settings in force: those of `using`, else what `kernels.tune` measured on the chip."""
    return _used[-1] if _used else _all_tuned().get(target().kind, Tuned())


@contextmanager
def using(settings: Tuned) -> Iterator[None]:
    """What is traced inside takes these settings."""
    _used.append(settings)
    try:
        yield
    finally:
        _used.pop()


def save_tuned(kind: str, found: Tuned) -> None:
    """Keeps `found` for chips of `kind`, beside those of others."""
    everything = json.loads(TUNED.read_text()) | {kind: asdict(found)}
    TUNED.write_text(json.dumps(everything, indent=2, sort_keys=True) + "\n")
    _all_tuned.cache_clear()


def gpu_interpreter() -> dict[str, Any]:
    """The argument with which a Mosaic GPU kernel runs on a CPU, inside `imitate`."""
    if not target().interpret:
        return {}
    from jax.experimental.pallas import mosaic_gpu

    if not hasattr(mosaic_gpu, "InterpretGPUParams"):
        raise ValueError("GPU kernels run on a CPU only with jax 0.11 or later")
    return {"interpret": mosaic_gpu.InterpretGPUParams()}


def has_kernels() -> bool:
    """Whether the chip in force is one that Pallas kernels are written for."""
    chip = target()
    return chip.platform == "tpu" or chip.kind.startswith(("NVIDIA H100", "NVIDIA H200"))


def require_pallas(operation: str, why_not: str | None = None) -> None:
    """Refuses an explicit `impl="pallas"` that cannot run.

    Raises:
        ValueError: the chip is none that has kernels, or `why_not` says what is in the way.
    """
    if not has_kernels():
        why_not = f"it is written for TPUs and Hopper GPUs, and this is {target().kind}"
    if why_not is not None:
        raise ValueError(f"{operation}: impl pallas cannot run here: {why_not}; use auto or xla")
