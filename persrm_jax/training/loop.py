"""The loop that SFT and RFT share: resume, step, log, checkpoint, stop when asked."""

import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from persrm_jax.checkpoint import NOT_MEASURED, Checkpoints
from persrm_jax.distributed import any_process
from persrm_jax.metrics import MetricsWriter
from persrm_jax.models.params import Params
from persrm_jax.training.guard import Guard, StepLog
from persrm_jax.training.progress import StepLine, Tracer
from persrm_jax.training.step import TrainState

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
    patience: int = 0
    """Training ends after so many evaluations without a new best, and takes the best; 0: never."""

    def due(self, done: int) -> bool:
        """Whether `done` steps are a time to look."""
        return self.every > 0 and done > 0 and done % self.every == 0

    def is_best(self, checkpoints: Checkpoints, accuracy: float) -> bool:
        """Whether no saved state did as well."""
        found = checkpoints.best_step()
        return found is None or accuracy > found[1]

    def is_tired(self, checkpoints: Checkpoints, done: int) -> bool:
        """Whether `patience` evaluations have passed since the best. What is on disk tells, so that
        a resumed run ends where an uninterrupted one does."""
        found = checkpoints.best_step()
        return (
            self.patience > 0
            and found is not None
            and done // self.every - found[0] // self.every >= self.patience
        )


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
    profile: int = 0,
) -> TrainState:
    """Runs `step_fn(state, step)` from the last checkpoint to `num_steps`.

    Ctrl-C and SIGTERM end the current step, save, and raise KeyboardInterrupt; a second one ends at
    once.

    Raises:
        ValueError: `MAX_SKIPPED` updates in a row were not finite; the last one's batch is then
            beside the checkpoints, as `bad_batch.npz`. Or the disk takes no more.

    Args:
        writer: makes the metrics writer for the first step that will be run.
        show: the tag beside the progress bar.
        watch: looks at the model now and then, and may end training early.
        profile: steps of which a JAX trace is recorded beside the metrics.
    """
    first = checkpoints.latest_step()
    if first is not None:
        state = checkpoints.restore(first, state)
    first = first or 0
    # A run cut off between its last checkpoint and its end must not train on.
    reached = watch.due(first) and (
        watch.evaluate(state.params) >= watch.stop_at or watch.is_tired(checkpoints, first)
    )
    if reached:
        num_steps = first
    folder = checkpoints.folder.parent
    guard = Guard(folder)
    line = StepLine(name, show, first, num_steps)
    tracer = Tracer(folder / "tensorboard", first, num_steps, profile)
    with writer(first) as metrics, _stop_requests() as stop, line:
        guard.recall(metrics.kept)
        for step in range(first, num_steps):
            line.begin()
            with tracer.step(step):
                state, log = step_fn(state, step)
            done = step + 1
            scalars = {**log.scalars, **line.end(done)}
            if watch.due(done):
                scalars["eval/dev_accuracy"] = watch.evaluate(state.params)
                reached = scalars["eval/dev_accuracy"] >= watch.stop_at
            metrics.scalars(step, scalars)
            for warning in guard.look(step, log):
                line.warn(f"step {step}: {warning}")
            for tag, text in log.texts.items():
                metrics.text(step, tag, text)
            for tag, spread in log.histograms.items():
                metrics.histogram(step, tag, spread)
            line.show(done, scalars)
            accuracy = scalars.get("eval/dev_accuracy", NOT_MEASURED)
            best = watch.due(done) and watch.is_best(checkpoints, accuracy)
            tired = watch.due(done) and not best and watch.is_tired(checkpoints, done)
            last = reached or tired or done == num_steps
            asked = any_process(stop.is_set())
            if last or best or done % save_every == 0 or asked:
                metrics.flush()
                checkpoints.save(done, state, accuracy)
            if asked:
                raise KeyboardInterrupt
            if last:
                break
    if watch.patience and (found := checkpoints.best_step()) is not None:
        return checkpoints.restore(found[0], state)
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
