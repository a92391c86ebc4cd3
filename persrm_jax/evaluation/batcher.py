"""Requests of many clients -> batches of one device. A single thread owns the model.

Questions wait in pools, one for each kind of program. The fullest pool goes first, and one that has
been passed over counts as fuller each time; where none is full, it waits a few milliseconds for
more. So batches are full under load and prompt without it.
"""

import logging
import math
import queue
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from persrm_jax.evaluation.ask import Reply
from persrm_jax.evaluation.reward_model import Judge, Kind, Question, Request, Score

PATIENCE = 12
"""Batches of other kinds after which a pool counts as much as a full one, however empty it is."""


@dataclass(frozen=True)
class BatchConfig:
    """How requests are gathered."""

    gather_ms: float = 5.0
    """How long a batch that is not full waits for more questions, in milliseconds."""
    max_waiting: int = 4096
    """Questions that may be unanswered; a request that would exceed it is turned away."""

    def __post_init__(self) -> None:
        if self.gather_ms < 0:
            raise ValueError(f"--batch.gather-ms {self.gather_ms}: must be 0 or more")
        if self.max_waiting < 1:
            raise ValueError(f"--batch.max-waiting {self.max_waiting}: must be at least 1")


class Busy(Exception):
    """Too many questions wait."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"too many requests are waiting: try again in {seconds} s")
        self.seconds = seconds


@dataclass(eq=False)
class _Job:
    """A request on its way."""

    request: Request
    size: int
    """Its questions."""
    future: Future[list[Score]] = field(default_factory=Future)
    questions: list[Question] = field(default_factory=list)
    replies: dict[int, Reply] = field(default_factory=dict)
    over: bool = False
    """Answered, failed, or given up by its client."""


_Waiting = tuple[_Job, int, float]
"""A job, the number of its question, and when it came."""


class Batcher:
    """Scores requests in the background, from `start` to `stop`.

    Attributes:
        ready: Whether every program is compiled.
        failure: What ended the thread, if that was not `stop`.
    """

    def __init__(
        self,
        judge: Judge,
        cfg: BatchConfig,
        *,
        max_samples: int,
        on_failure: Callable[[], object] = lambda: None,
    ) -> None:
        """Takes over `judge`, which nobody else may use from `start` on.

        Args:
            max_samples: of a question; decides what is compiled before the first request.
            on_failure: called where the thread ends by itself.
        """
        self.judge, self.cfg = judge, cfg
        self.ready = False
        self.failure: BaseException | None = None
        self._max_samples, self._on_failure = max_samples, on_failure
        self._arrivals: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._pools: dict[Kind, list[_Waiting]] = defaultdict(list)
        self._passed_over: Counter[Kind] = Counter()
        self._lock = threading.Lock()
        self._unanswered = 0
        self._seconds_each = 0.0
        """Of device time that a question takes, by the latest batches."""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="judge")

    @property
    def waiting(self) -> int:
        """Questions without an answer."""
        return self._unanswered

    def start(self) -> None:
        """Begins to compile, then to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answers what was taken on, and ends."""
        self._stopping.set()
        self._arrivals.put(None)
        self._thread.join()

    def submit(self, request: Request) -> Future[list[Score]]:
        """The scores to come. Cancelling the future drops the questions that are not yet asked. A
        request that cannot be asked ends the future with its ValueError.

        Raises:
            Busy: too many questions wait.
        """
        job = _Job(request, self.judge.num_questions(len(request.candidates), request.n))
        with self._lock:
            if self._unanswered + job.size > self.cfg.max_waiting:
                raise Busy(max(1, math.ceil(self._unanswered * self._seconds_each)))
            self._unanswered += job.size
        self._arrivals.put(job)
        return job.future

    def _run(self) -> None:
        try:
            for kind in self.judge.kinds(self._max_samples):
                if self._stopping.is_set():
                    return
                self.judge.warm_up(kind)
            self.ready = True
            while self._take_arrivals():
                if batch := self._next_batch():
                    self._answer(batch)
            self.ready = False
        except BaseException as error:  # of whatever kind: a service without its thread must end
            self.failure = error
            self.ready = False
            self._abandon()
            self._on_failure()

    def _abandon(self) -> None:
        """Ends every request that nobody will answer."""
        left = [job for pool in self._pools.values() for job, _, _ in pool]
        while not self._arrivals.empty():
            left += [job for job in [self._arrivals.get()] if job is not None]
        for job in left:
            self._close(job, error=RuntimeError("the judge has stopped"))

    def _take_arrivals(self) -> bool:
        """Waits for a request where there is nothing to do before; False at the end."""
        while True:
            wait = self._patience()
            try:
                job = self._arrivals.get(block=wait != 0, timeout=wait or None)
            except queue.Empty:
                return True
            if job is not None:
                self._open(job)
            elif not any(self._pools.values()):
                return False
            else:
                self._arrivals.put(None)  # what was taken on is answered first
                return True

    def _patience(self) -> float | None:
        """Seconds for which the next request may be waited for; None: for ever."""
        pools = [pool for pool in self._pools.values() if pool]
        if not pools:
            return None
        if self._stopping.is_set() or any(self._is_full(pool) for pool in pools):
            return 0.0
        oldest = min(came for pool in pools for _, _, came in pool[:1])
        return max(0.0, oldest + self.cfg.gather_ms / 1000 - time.monotonic())

    def _is_full(self, pool: list[_Waiting]) -> bool:
        return len(pool) >= self.judge.cfg.batch_size

    def _open(self, job: _Job) -> None:
        """Puts a request's questions into their pools."""
        try:
            if not job.future.cancelled():
                job.questions = self.judge.questions(job.request)
        except ValueError as error:
            self._close(job, error=error)
        came = time.monotonic()
        for i, question in enumerate(job.questions):
            self._pools[question.kind].append((job, i, came))
        if not job.questions:
            self._close(job)

    def _next_batch(self) -> list[_Waiting]:
        """Takes the questions that are to be answered now."""
        for pool in self._pools.values():
            for job in {job for job, _, _ in pool if job.future.cancelled()}:
                self._close(job)
            pool[:] = [waiting for waiting in pool if not waiting[0].over]
        kinds = [kind for kind, pool in self._pools.items() if pool]
        for kind in self._pools.keys() - set(kinds):
            del self._pools[kind], self._passed_over[kind]
        if not kinds:
            return []
        size = self.judge.cfg.batch_size

        def urgency(kind: Kind) -> float:
            """How full its batch would be, and how long it has waited."""
            return min(len(self._pools[kind]) / size, 1) + self._passed_over[kind] / PATIENCE

        chosen = max(kinds, key=urgency)
        self._passed_over.update(kind for kind in kinds if kind != chosen)
        self._passed_over[chosen] = 0
        pool = self._pools[chosen]
        batch, pool[:] = pool[:size], pool[size:]
        return batch

    def _answer(self, batch: list[_Waiting]) -> None:
        start = time.perf_counter()
        try:
            replies = self.judge.answer([job.questions[i] for job, i, _ in batch])
        except Exception as error:  # one batch's trouble, such as a lack of memory, is not the end
            logging.exception("a batch of %d questions failed", len(batch))
            for job in {job for job, _, _ in batch}:
                self._close(job, error=error)
            return
        self._seconds_each = (time.perf_counter() - start) / len(batch)
        for (job, i, _), reply in zip(batch, replies, strict=True):
            job.replies[i] = reply
            if len(job.replies) == len(job.questions) and not job.over:
                found = [job.replies[i] for i in range(len(job.questions))]
                self._close(job, self.judge.read(job.request, job.questions, found))

    def _close(
        self, job: _Job, scores: list[Score] | None = None, error: Exception | None = None
    ) -> None:
        """Ends a request, with its scores if it has not been given up."""
        if job.over:
            return
        job.over = True
        with self._lock:
            self._unanswered -= job.size
        if not job.future.set_running_or_notify_cancel():
            return
        if error is not None:
            job.future.set_exception(error)
        else:
            job.future.set_result(scores or [])
