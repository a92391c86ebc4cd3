"""The loop that SFT and RFT share: resume, step, log, checkpoint, stop when asked."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from persrm_jax.checkpoint import Checkpoints
from persrm_jax.metrics import MetricsWriter
from persrm_jax.models.params import Params
from persrm_jax.training.step import TrainState


@dataclass(frozen=True)
class StepLog:
    """What one step leaves behind: scalars, and texts by tag."""

    scalars: Mapping[str, float]
    texts: Mapping[str, str] = field(default_factory=dict)


StepFn = Callable[[TrainState, int], tuple[TrainState, StepLog]]


@dataclass(frozen=True)
class Watch:
    """An evaluation during training, passed in by the experiment."""

    every: int
    """Steps between evaluations; 0 for none."""
    evaluate: Callable[[Params], float]
    """Accuracy on dev authors."""
    stop_at: float = math.inf
    """Training ends once the accuracy reaches this."""

    def due(self, done: int) -> bool:
        """Whether `done` steps are a time to look."""
        return self.every > 0 and done > 0 and done % self.every == 0


def train(
    name: str,
    state: TrainState,
    step_fn: StepFn,
    *,
    num_steps: int,
    save_every: int,
    checkpoints: Checkpoints,
    writer: Callable[[int], MetricsWriter],
    show: str,
    watch: Watch,
) -> TrainState:
    """Runs `step_fn(state, step)` from the last checkpoint to `num_steps`.

    Ctrl-C and SIGTERM end the current step, save, and raise KeyboardInterrupt; a second one ends at
    once.

    Args:
        writer: makes the metrics writer for the first step that will be run.
        show: the tag beside the progress bar.
        watch: looks at the model now and then, and may end training early.
    """
    first = checkpoints.latest_step()
    if first is not None:
        state = checkpoints.restore(first, state)
    first = first or 0
    # A run cut off between its last checkpoint and its end must not train on.
    reached = watch.due(first) and watch.evaluate(state.params) >= watch.stop_at
    if reached:
        num_steps = first
    with writer(first) as metrics, _stop_requests() as stop, _progress() as bar:
        task = bar.add_task(name, total=num_steps, completed=first, note="")
        for step in range(first, num_steps):
            start = time.perf_counter()
            state, log = step_fn(state, step)
            seconds = time.perf_counter() - start
            scalars = {**log.scalars, "time/step_s": seconds}
            done = step + 1
            if watch.due(done):
                scalars["eval/dev_accuracy"] = watch.evaluate(state.params)
                reached = scalars["eval/dev_accuracy"] >= watch.stop_at
            metrics.scalars(step, scalars)
            for tag, text in log.texts.items():
                metrics.text(step, tag, text)
            bar.update(task, advance=1, note=f"{show} {log.scalars[show]:.3f}")
            last = reached or done == num_steps
            if last or done % save_every == 0 or stop.is_set():
                metrics.flush()
                checkpoints.save(done, state)
            if stop.is_set():
                raise KeyboardInterrupt
            if last:
                break
    return state


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; the handlers before it come back after."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Only the main thread may set handlers.
        return

    def request(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    old = {n: signal.signal(n, request) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:>12}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
