"""A framework's side of taking turns: it waits to be told to start a step, and reports its time.

Lines of JSON over a pipe: `go` in, `{"step_s": ..., "rollout_s": ...}` out. Only the standard
library.
"""

import json
import os
import resource
import sys
import time


class Turns:
    """Steps that start when told, timed."""

    def __init__(self) -> None:
        # What a framework prints goes to standard error; the pipe is for reports.
        self._reports = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._begin: float | None = None
        self._rollout_s = 0.0

    def begin(self) -> bool:
        """Waits for a turn; False when there are no more."""
        if sys.stdin.readline().strip() != "go":
            return False
        self._begin = time.perf_counter()
        return True

    def rolled_out(self) -> None:
        """The completions are there."""
        assert self._begin is not None
        self._rollout_s = time.perf_counter() - self._begin

    def end(self) -> None:
        """The update is done: reports the step that began last, if one did."""
        if self._begin is None:
            return
        usage = resource.getrusage(resource.RUSAGE_SELF)
        report = {
            "step_s": time.perf_counter() - self._begin,
            "rollout_s": self._rollout_s,
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "peak_mib": usage.ru_maxrss / 1024,
        }
        self._begin = None
        print(json.dumps(report), file=self._reports)
