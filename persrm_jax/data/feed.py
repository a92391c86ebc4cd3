"""Encoded traces -> the batches that SFT takes, step by step: a trace a row, bins of traces, or
groups that read what their prompts begin with once. All batches have one shape, and each is a
function of (seed, step)."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from persrm_jax.data.batches import (
    Packer,
    Rows,
    batch_indices,
    bucketed,
    common_start,
    left_pad,
    packed_batch,
)
from persrm_jax.distributed import share_work
from persrm_jax.types import Batch, Groups


@dataclass(frozen=True)
class Fed:
    """What a step trains on."""

    make: Callable[[list[int]], Batch | Groups]
    """Makes those of its rows that are asked for, on the host."""
    lengths: Int[np.ndarray, " n"]
    """Of the sequences that are computed; what traces begin with alike is one of its own."""
    after: Int[np.ndarray, " n"]
    """Tokens that each of them sees before its own."""
    num_traces: int
    num_rows: int


@runtime_checkable
class Feed(Protocol):
    """The batches of a stage."""

    row_length: int
    """Tokens of a row, padding included."""

    def __call__(self, step: int) -> Fed: ...


def make_feed(
    rows: Rows,
    alike: Sequence[Hashable],
    *,
    batch_size: int,
    pack_length: int,
    group_size: int,
    pad_id: int,
    seed: int,
) -> Feed:
    """The feed of `SftConfig`'s fields of these names.

    Args:
        alike: of each trace; those whose `alike` is equal are expected to begin alike.

    Raises:
        ValueError: a trace longer than `pack_length`.
    """
    if group_size > 1:
        return _Groups(rows, alike, batch_size, group_size, pad_id, seed)
    return _Bins(rows, batch_size, pack_length, pad_id, seed)


class _Bins:
    """A trace a row, or so many as fit in `pack_length`."""

    def __init__(
        self, rows: Rows, batch_size: int, pack_length: int, pad_id: int, seed: int
    ) -> None:
        self.row_length = pack_length or bucketed(max(rows.lengths))
        self._rows, self._batch_size, self._pad_id, self._seed = rows, batch_size, pad_id, seed
        self._packer = Packer(rows.lengths, pack_length, seed) if pack_length else None

    def __call__(self, step: int) -> Fed:
        if self._packer is not None:
            bins = self._packer.batch(step, self._batch_size)
        else:
            chosen = batch_indices(len(self._rows), self._batch_size, step, self._seed)
            bins = [[i] for i in chosen.tolist()]

        def make(numbers: list[int]) -> Batch:
            inside = [[self._rows[i] for i in bins[n]] for n in numbers]
            return packed_batch(inside, self._pad_id, self.row_length)

        lengths = np.array([self._rows.lengths[i] for members in bins for i in members])
        return Fed(make, lengths, np.zeros_like(lengths), len(lengths), len(bins))


class _Groups:
    """At most `size` traces a row; of those that begin alike, as many groups as need be, of about
    the same size."""

    def __init__(
        self,
        rows: Rows,
        alike: Sequence[Hashable],
        batch_size: int,
        size: int,
        pad_id: int,
        seed: int,
    ) -> None:
        together: dict[Hashable, list[int]] = defaultdict(list)
        for i, key in enumerate(alike):
            together[key].append(i)
        self._rows, self._batch_size, self._size = rows, batch_size, size
        self._pad_id, self._seed = pad_id, seed
        self._members = [
            part.tolist()
            for members in together.values()
            for part in np.array_split(members, -(-len(members) // size))
        ]
        starts = share_work(self._start, len(self._members))
        # One alone shares all of its prompt, to whose length every batch would be padded.
        several = [s for s, m in zip(starts, self._members, strict=True) if len(m) > 1]
        self._starts = [min(start, max(several, default=start)) for start in starts]
        self._start_length = bucketed(max(1, *self._starts))
        self._own_length = bucketed(max(max(self._own(n)) for n in range(len(self._members))))
        self.row_length = self._start_length + size * self._own_length

    def _start(self, group: int) -> int:
        """With how many tokens all prompts of a group begin."""
        return common_start([self._rows[i][0] for i in self._members[group]])

    def _own(self, group: int) -> list[int]:
        """Tokens of each of its traces after that, response included."""
        return [self._rows.lengths[i] - self._starts[group] for i in self._members[group]]

    def __call__(self, step: int) -> Fed:
        chosen = batch_indices(len(self._members), self._batch_size, step, self._seed).tolist()
        starts = np.array([self._starts[group] for group in chosen])
        own = [self._own(group) for group in chosen]
        after = np.repeat(starts, list(map(len, own)))
        return Fed(
            make=lambda numbers: self._make([chosen[n] for n in numbers]),
            lengths=np.concatenate([starts, *own]),
            after=np.concatenate([np.zeros_like(starts), after]),
            num_traces=len(after),
            num_rows=len(chosen),
        )

    def _make(self, chosen: Sequence[int]) -> Groups:
        """Their mask holds what carries loss: the responses."""
        shape = (len(chosen), self._size, self._own_length)
        tokens, mask = np.full(shape, self._pad_id, np.int32), np.zeros(shape, bool)
        beginnings = []
        for n, group in enumerate(chosen):
            members, start = self._members[group], self._starts[group]
            beginnings.append(self._rows[members[0]][0][:start])
            for m, i in enumerate(members):
                prompt, response = self._rows[i]
                end = len(prompt) - start + len(response)
                tokens[n, m, :end] = [*prompt[start:], *response]
                mask[n, m, len(prompt) - start : end] = True
        return Groups(*left_pad(beginnings, self._pad_id, self._start_length), tokens, mask)
