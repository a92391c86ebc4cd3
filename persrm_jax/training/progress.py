"""What a run shows of itself while it trains: a bar in a terminal, lines in a log."""

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from persrm_jax.chips import memory_in_use
from persrm_jax.distributed import is_main

LINE_EVERY = 10
"""Steps between two lines of a log."""
RECENT = 20
"""Steps whose median says how long the rest will take."""
WARM_UP = 2
"""Steps that compile, and are not worth a trace."""


class StepLine:
    """Times steps, and shows each: its main number, tokens a second, MFU, memory, time left."""

    def __init__(self, name: str, tag: str, first: int, num_steps: int) -> None:
        """`tag`: the scalar to show."""
        self._name, self._tag, self._num_steps = name, tag, num_steps
        self._console = Console(soft_wrap=True, quiet=not is_main())
        self._bar = Progress(
            TextColumn("{task.description:>12}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(name, total=num_steps, completed=first, note="")
        self._seconds: list[float] = []
        self._begin = time.perf_counter()

    def __enter__(self) -> "StepLine":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def begin(self) -> None:
        """A step begins."""
        self._begin = time.perf_counter()

    def end(self, done: int) -> dict[str, float]:
        """A step has ended, `done` in all. Returns what it took, as scalars."""
        self._seconds = [*self._seconds, time.perf_counter() - self._begin][-RECENT:]
        return {
            "time/step_s": self._seconds[-1],
            "time/left_s": statistics.median(self._seconds) * (self._num_steps - done),
            "time/memory_gib": memory_in_use(),
        }

    def show(self, done: int, scalars: Mapping[str, float]) -> None:
        """Moves the bar, or now and then writes a line."""
        note = (
            f"{self._tag} {scalars[self._tag]:.3f}  {scalars['time/tokens_per_s']:,.0f} tokens/s  "
            f"MFU {scalars['time/mfu']:.0%}  {scalars['time/memory_gib']:.1f} GiB"
        )
        self._bar.update(self._task, completed=done, note=note)
        if not self._console.is_terminal and (done % LINE_EVERY == 0 or done == self._num_steps):
            left = timedelta(seconds=round(scalars["time/left_s"]))
            self._console.print(f"{self._name} {done}/{self._num_steps}  {note}  {left} left")

    def warn(self, text: str) -> None:
        """Says that something looks wrong."""
        self._console.print(f"[yellow]{self._name}:[/] {text}")


class Tracer:
    """Records a JAX trace of a few steps, for TensorBoard's profiler."""

    def __init__(self, folder: Path, first: int, num_steps: int, num_traced: int) -> None:
        """`num_traced`: steps to trace, past those that compile where there are enough; 0: none."""
        self._folder = folder
        self._begin = max(first, min(first + WARM_UP, num_steps - num_traced))
        self._end = min(self._begin + num_traced, num_steps)

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Around each step."""
        if step == self._begin < self._end:
            jax.profiler.start_trace(self._folder)
        try:
            with jax.profiler.StepTraceAnnotation("step", step_num=step):
                yield
        finally:
            if self._begin < self._end == step + 1:
                jax.profiler.stop_trace()
