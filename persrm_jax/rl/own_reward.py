"""A reward function of the user's own, in processes of its own: what it does wrong, or too slowly,
costs the completion that it was asked about, and no more."""

import importlib
import importlib.util
import math
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pebble import ProcessPool

from persrm_jax.distributed import from_main
from persrm_jax.rl.rewards import CompletionRecord

RewardFunction = Callable[[Sequence[CompletionRecord]], Sequence[float]]
NUM_PROCESSES = 4


def find_function(path: str) -> RewardFunction:
    """The function that FILE.py:NAME or package.module:NAME means.

    Raises:
        ValueError: there is none.
    """
    where, _, name = path.rpartition(":")
    try:
        if where.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(where).stem, where)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
        return getattr(module, name)
    except Exception as error:
        raise ValueError(f"--rft.reward.own {path}: {type(error).__name__}: {error}") from error


def _call(path: str, records: Sequence[CompletionRecord]) -> list[float]:
    """In the other process."""
    rewards = [float(reward) for reward in find_function(path)(records)]
    if len(rewards) != len(records):
        raise ValueError(f"{len(rewards)} rewards for {len(records)} completions")
    for record, reward in zip(records, rewards, strict=True):
        if not math.isfinite(reward):
            raise ValueError(f"a reward of {reward} for a completion of {record.pair.pair_id}")
    return rewards


class OwnReward:
    """Calls the function for each group of a rollout, several groups at a time."""

    def __init__(self, path: str, timeout: float, warn: Callable[[str], None] = print) -> None:
        """`warn` is told of what went wrong.

        Raises:
            ValueError: there is no such function.
        """
        find_function(path)
        self._path, self._timeout, self._warn = path, timeout, warn
        # Not forked: a process that runs JAX has threads, whose locks a fork would leave closed.
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPool(NUM_PROCESSES, context=context)

    def __call__(self, records: Sequence[CompletionRecord], group_size: int) -> list[float]:
        """Rewards of records that are grouped; NaN where the function raised, or gave no number, or
        no answer in time."""
        # One process asks: another's answers could differ, and so would its update.
        return from_main(lambda: self._rewards(records, group_size), len(records))

    def _rewards(self, records: Sequence[CompletionRecord], group_size: int) -> list[float]:
        starts = range(0, len(records), group_size)
        groups = [records[start : start + group_size] for start in starts]
        rewards: list[float] = []
        for group, (found, error) in zip(groups, self._ask(groups), strict=True):
            if error is None:
                rewards += found
                continue
            alone = self._ask([[record] for record in group])
            rewards += [math.nan if error else found[0] for found, error in alone]
            failed = [error for _, error in alone if error is not None]
            if failed:
                self._warn(
                    f"{self._path}: no reward for {len(failed)} of {len(group)} completions of "
                    f"{group[0].pair.pair_id} ({failed[0]})"
                )
        return rewards

    def _ask(
        self, lists: Sequence[Sequence[CompletionRecord]]
    ) -> list[tuple[list[float], str | None]]:
        """(rewards, None) or (none, what went wrong) of each."""
        asked = [
            self._pool.schedule(_call, [self._path, list(records)], timeout=self._timeout)
            for records in lists
        ]
        answers: list[tuple[list[float], str | None]] = []
        for future in asked:
            try:
                answers.append((future.result(), None))
            except TimeoutError:
                answers.append(([], f"no answer in {self._timeout:g} s"))
            except Exception as error:
                answers.append(([], f"{type(error).__name__}: {error}"))
        return answers

    def close(self) -> None:
        """Ends its processes."""
        self._pool.stop()
        self._pool.join()
