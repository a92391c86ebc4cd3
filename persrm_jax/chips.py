"""What accelerators can do, by their makers' data sheets, and the machine at hand.

Sources: cloud.google.com/tpu/docs (v4, v5e, v5p, v6e, tpu7x) and nvidia.com's data sheets (A100
SXM, H100 SXM, H200; dense bfloat16). A tpu7x chip shows as two devices, and a v4 without megacore
too: their numbers here are per device.
"""

import re
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jax
import numpy as np

GIB = 2**30
MEASURED_SIDE = 1024
"""Side of the matrices that measure a device without a data sheet."""


@dataclass(frozen=True)
class Chip:
    """One JAX device."""

    name: str
    kind: str
    """`device_kind`, as JAX reports it: its start."""
    platform: str
    memory_gib: float
    flops: float
    """Peak bfloat16 floating-point operations a second."""
    bandwidth: float
    """Bytes a second from its memory."""


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "TPU v4", "tpu", 16.0, 137e12, 614e9),
        Chip("v5e", "TPU v5 lite", "tpu", 16.0, 197e12, 819e9),
        Chip("v5p", "TPU v5", "tpu", 95.0, 459e12, 2765e9),
        Chip("v6e", "TPU v6 lite", "tpu", 32.0, 918e12, 1640e9),
        Chip("tpu7x", "TPU7x", "tpu", 96.0, 1153e12, 3690e9),
        Chip("a100", "NVIDIA A100", "gpu", 80.0, 312e12, 2039e9),
        Chip("h100", "NVIDIA H100", "gpu", 80.0, 989e12, 3350e9),
        Chip("h200", "NVIDIA H200", "gpu", 141.0, 989e12, 4800e9),
    )
}


def chip_of(kind: str) -> Chip | None:
    """The chip that JAX calls `kind`; None where no data sheet is known."""
    found = [chip for chip in CHIPS.values() if kind.startswith(chip.kind)]
    return max(found, key=lambda chip: len(chip.kind), default=None)


@cache
def peak_flops() -> float:
    """Floating-point operations a second of one device here: its data sheet's or, on a machine
    without an accelerator, what NumPy's product of two float32 matrices reaches just now. Simulated
    devices share the machine, and its rate."""
    device = jax.local_devices()[0]
    if (chip := chip_of(device.device_kind)) is not None:
        return chip.flops
    x = np.ones((MEASURED_SIDE, MEASURED_SIDE), np.float32)
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        x @ x
        best = min(best, time.perf_counter() - begin)
    simulated = len(jax.local_devices()) if device.platform == "cpu" else 1
    return 2 * MEASURED_SIDE**3 / best / simulated


def memory_in_use() -> float:
    """GiB that the fullest local device has held at its peak or, where JAX does not count them,
    that this process holds now."""
    counted = [device.memory_stats() for device in jax.local_devices()]
    peaks = [stats["peak_bytes_in_use"] for stats in counted if stats]
    return (max(peaks) if peaks else process_memory("VmRSS")) / GIB


def process_memory(field: str) -> int:
    """Resident bytes of this process now (VmRSS) or at its peak (VmHWM); 0 where the system does
    not say. (The peak that `getrusage` gives may be the parent's.)"""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    found = re.search(rf"{field}:\s+(\d+) kB", status.read_text(encoding="utf-8"))
    return int(found[1]) * 1024 if found else 0
