"""How fast the kernels are, and what memory they take, beside XLA's naive and chunked paths.

    python -m kernels.bench [--json OUT]

All implementations of an operation take turns in one process. On a CPU, where Pallas kernels cannot
run, it compares the XLA paths at sizes that fit there, and says so.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from kernels.cases import ON_CPU, OPERATIONS, SIZES, compiled, impls, medians
from persrm_jax import cli
from persrm_jax.chips import chip_of, peak_flops
from persrm_jax.jsonl import write_text
from persrm_jax.runs import provenance

MIB = 2**20


@dataclass(frozen=True)
class Config:
    """What to measure."""

    sizes: tuple[str, ...] = ()
    """Names in `kernels.cases`; none: those for this machine."""
    rounds: int = 7
    """Turns of each, whose median counts."""
    json: Path | None = None
    """Where to write the numbers."""


def measure(operation: str, size: str, rounds: int) -> list[dict[str, Any]]:
    """One row for each implementation."""
    op, arrays = OPERATIONS[operation], OPERATIONS[operation].arrays(SIZES[size])
    programs: dict[str, Any] = {}
    rows: dict[str, dict[str, Any]] = {}
    for impl in impls():
        row: dict[str, Any] = {"operation": operation, "size": size, "impl": impl}
        rows[str(impl)] = row
        try:
            program = compiled(op, impl, arrays)
            jax.block_until_ready(program(*arrays))
        except jax.errors.JaxRuntimeError as error:
            row["failed"] = str(error).strip().splitlines()[0][:200]
            continue
        programs[impl] = program
        row["temporaries_mib"] = program.memory_analysis().temp_size_in_bytes / MIB
    times = medians(programs, arrays, rounds)
    for name, seconds in times.items():
        rows[name] |= {"ms": 1e3 * seconds, "roofline": floor(operation, size) / seconds}
        for other, kind in (("reference", "naive"), ("xla", "chunked")):
            if other in times:
                rows[name][f"speed_over_{kind}"] = times[other] / seconds
    return list(rows.values())


def floor(operation: str, size: str) -> float:
    """Seconds that the operation takes at least: by its floating-point operations or, where the
    memory's bandwidth is known, by its bytes."""
    op, chip = OPERATIONS[operation], chip_of(jax.devices()[0].device_kind)
    by_flops = op.flops(SIZES[size]) / peak_flops()
    return max(by_flops, op.bytes(SIZES[size]) / chip.bandwidth if chip else 0.0)


def main(args: Sequence[str]) -> None:
    """The command line."""
    cfg = cli.parse_flags(Config, "python -m kernels.bench", args)
    unknown = [name for name in cfg.sizes if name not in SIZES]
    if unknown:
        raise ValueError(f"--sizes {unknown[0]}: unknown; sizes: {', '.join(SIZES)}")
    on_cpu = jax.default_backend() == "cpu"
    sizes = cfg.sizes or (ON_CPU if on_cpu else tuple(n for n in SIZES if not n.endswith("cpu")))
    console = Console()
    if "pallas" not in impls():
        kind = jax.devices()[0].device_kind
        console.print(f"{kind}: the XLA paths alone; Pallas kernels need a TPU or a Hopper GPU")
    table = Table("operation", "size", "impl", "ms", "/ naive", "/ chunked", "roofline", "MiB")
    rows = []
    for size in sizes:
        for operation in OPERATIONS:
            for row in measure(operation, size, cfg.rounds):
                rows.append(row)
                cells = [row["operation"], row["size"], row["impl"]]
                if "failed" in row:
                    table.add_row(*cells, row["failed"][:40])
                    continue
                speeds = [row.get(f"speed_over_{name}") for name in ("naive", "chunked")]
                table.add_row(
                    *cells,
                    f"{row['ms']:.3f}",
                    *("-" if speed is None else f"{speed:.2f} x" for speed in speeds),
                    f"{row['roofline']:.1%}",
                    f"{row['temporaries_mib']:,.0f}",
                )
    console.print(table)
    if cfg.json is not None:
        found = {
            "provenance": provenance(),
            "sizes": {n: vars(SIZES[n]) for n in sizes},
            "rows": rows,
        }
        write_text(cfg.json, json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    cli.run_main(main)
