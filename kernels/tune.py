"""Finds the fastest settings on the chip at hand, and keeps them in `kernels/tuned.json`.

    python -m kernels.tune [--sizes qwen2.5-0.5b qwen2.5-7b-8k]

`impl="auto"` follows them. One setting after the other is varied, the others as found so far; the
time of each candidate is compared with the first one's, and the ratios' geometric mean over the
sizes decides.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import geometric_mean
from typing import Any, Literal

import jax
from rich.console import Console

from kernels.cases import ON_CPU, OPERATIONS, SIZES, compiled, impls, medians
from kernels.dispatch import Impl, Tuned, save_tuned, target, using
from kernels.linear_logprob.tpu import TILES
from persrm_jax import cli

CHUNKS = [2**k for k in range(18, 29)]


@dataclass(frozen=True)
class Config:
    """What to tune for."""

    sizes: tuple[str, ...] = ()
    """Names in `kernels.cases`; none: those for this machine."""
    rounds: int = 5
    """Turns of each candidate, whose median counts."""


def best(
    operation: str,
    impl: Impl,
    candidates: Iterable[Tuned],
    sizes: Sequence[str],
    rounds: int,
    console: Console,
) -> tuple[Tuned, float]:
    """The fastest of the candidates that run at every size, and its mean time over the first's.

    Raises:
        ValueError: none runs.
    """
    ratios: dict[Tuned, list[float]] = {candidate: [] for candidate in candidates}
    for size in sizes:
        arrays = OPERATIONS[operation].arrays(SIZES[size])
        programs: dict[str, Any] = {}
        for i, candidate in enumerate(ratios):
            try:
                with using(candidate):
                    program = compiled(OPERATIONS[operation], impl, arrays)
                jax.block_until_ready(program(*arrays))
            except jax.errors.JaxRuntimeError:
                continue  # no room for it
            programs[str(i)] = program
        times = medians(programs, arrays, rounds)
        first = next(iter(times.values()), 0.0)
        for i, candidate in enumerate(ratios):
            if str(i) in times:
                ratios[candidate].append(times[str(i)] / first)
    means = {c: geometric_mean(r) for c, r in ratios.items() if len(r) == len(sizes)}
    if not means:
        raise ValueError(f"{operation}, impl {impl}: no setting runs at {', '.join(sizes)}")
    found = min(means, key=lambda candidate: means[candidate])
    for candidate, mean in means.items():
        mark = "  <-" if candidate == found else ""
        changed = {k: v for k, v in vars(candidate).items() if v != getattr(Tuned(), k)}
        console.print(f"{operation} {impl} {changed}: {mean:.3f}{mark}", highlight=False)
    return found, means[found]


def main(args: Sequence[str]) -> None:
    """The command line."""
    cfg = cli.parse_flags(Config, "python -m kernels.tune", args)
    on_cpu = jax.default_backend() == "cpu"
    sizes = cfg.sizes or (ON_CPU[:2] if on_cpu else ("qwen2.5-0.5b", "qwen2.5-7b-8k"))
    console = Console()
    found = Tuned()

    def pick(operation: str, impl: Impl, candidates: Iterable[Tuned]) -> Tuned:
        return best(operation, impl, candidates, sizes, cfg.rounds, console)[0]

    found = pick("linear_logprob", "xla", [replace(found, forward_chunk=n) for n in CHUNKS])
    found = pick(
        "grpo_loss and gradients", "xla", [replace(found, gradient_chunk=n) for n in CHUNKS]
    )
    if "pallas" in impls():
        if target().platform == "tpu":
            tiles = [replace(found, tokens=t, vocabulary=v) for t, v in TILES]
            found = pick("linear_logprob", "pallas", tiles)
        both: tuple[Literal["xla", "pallas"], ...] = ("xla", "pallas")
        found = pick("linear_logprob", "auto", [replace(found, linear_logprob=i) for i in both])
        found = pick(
            "token_loss and gradient", "auto", [replace(found, token_loss=i) for i in both]
        )
        found = pick("group_advantage", "auto", [replace(found, group_advantage=i) for i in both])
    save_tuned(target().kind, found)
    console.print(f"kept for {target().kind}: {found}", highlight=False)


if __name__ == "__main__":
    cli.run_main(main)
