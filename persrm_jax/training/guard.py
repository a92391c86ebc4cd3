"""What is wrong with a training run, as its own numbers show it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from persrm_jax.distributed import fetch, on_main
from persrm_jax.metrics import Histogram

MAX_SKIPPED = 3
"""Updates in a row that may be skipped as not finite."""
MAX_KL = 1.0
"""Nats a token from the reference, above which a policy has left it."""
FLAT_STEPS = 5
"""Steps in a row after which a state is no accident."""
COLLAPSE = 0.5
"""Share of its gain over the start that the smoothed reward may lose."""
SMOOTHING = 0.9


@dataclass(frozen=True)
class StepLog:
    """What one step leaves behind: scalars, and now and then texts and histograms, by tag."""

    scalars: Mapping[str, float]
    texts: Mapping[str, str] = field(default_factory=dict)
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    batch: Any = None
    """The arrays of the update, for a look at what was not finite."""


class Guard:
    """Looks at each step's numbers. Each warning is given once."""

    def __init__(self, folder: Path) -> None:
        """`folder`: where a batch is kept whose loss or gradient was not finite."""
        self._folder = folder
        self._skipped = 0
        self._in_a_row: dict[str, int] = {}
        self._given: set[str] = set()
        self._reward: float | None = None
        self._first = self._best = 0.0

    def recall(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Looks at the steps that were logged before a run was cut off: it then goes on to warn as
        if it had never been."""
        for row in rows:
            scalars = {tag: value for tag, value in row.items() if tag != "step"}
            self.look(row["step"], StepLog(scalars))

    def look(self, step: int, log: StepLog) -> list[str]:
        """The warnings of a step.

        Raises:
            ValueError: `MAX_SKIPPED` updates in a row were not finite.
        """
        scalars = log.scalars
        found = {}
        if scalars.get("guard/skipped"):
            self._skipped += 1
            found["skipped"] = "the loss or gradient is not finite: the update is skipped"
            if self._skipped >= MAX_SKIPPED:
                raise ValueError(self._keep(step, log.batch))
        else:
            self._skipped = 0
        if scalars.get("kl/mean", 0.0) > MAX_KL:
            found["kl"] = (
                f"the policy is {scalars['kl/mean']:.1f} nats a token from its reference: lower "
                "--rft.optimizer.learning-rate, or raise --loss.kl-coef"
            )
        if self._lasts("flat", scalars.get("reward/varied_groups") == 0.0):
            found["flat"] = (
                f"in {FLAT_STEPS} steps no group had differing rewards: there is nothing to learn "
                "from; take another SFT model, a higher temperature or more completions a group"
            )
        if self._lasts("cut", scalars.get("length/truncated", 0.0) > 0.5):
            found["cut"] = (
                f"in {FLAT_STEPS} steps most completions were cut off: raise "
                "--rft.sampling.max-new-tokens"
            )
        if "reward/mean" in scalars and self._has_collapsed(scalars["reward/mean"]):
            found["collapse"] = (
                f"the reward has fallen from {self._best:.2f} to {self._reward:.2f}: lower "
                "--rft.optimizer.learning-rate, or raise --loss.kl-coef"
            )
        new = [text for name, text in found.items() if name not in self._given]
        self._given |= found.keys()
        return new

    def _lasts(self, name: str, is_so: bool) -> bool:
        self._in_a_row[name] = self._in_a_row.get(name, 0) + 1 if is_so else 0
        return self._in_a_row[name] >= FLAT_STEPS

    def _has_collapsed(self, reward: float) -> bool:
        if self._reward is None:
            self._reward = self._first = self._best = reward
        self._reward = SMOOTHING * self._reward + (1 - SMOOTHING) * reward
        self._best = max(self._best, self._reward)
        gain = self._best - self._first
        return bool(gain > 0.1 and self._best - self._reward > COLLAPSE * gain)

    def _keep(self, step: int, batch: Any) -> str:
        """Saves the batch, and says so."""
        path = self._folder / "bad_batch.npz"
        leaves = jax.tree.leaves_with_path(fetch(batch))
        arrays = {jax.tree_util.keystr(p).strip("."): x for p, x in leaves}
        on_main(lambda: np.savez(path, **arrays))
        return (
            f"{MAX_SKIPPED} updates in a row, up to step {step}, had a loss or gradient that is "
            f"not finite; the last batch is in {path}. Lower the learning rate and start again "
            "with another --out (and --init with this run, if its SFT is done)"
        )
